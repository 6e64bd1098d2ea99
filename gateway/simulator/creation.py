"""`POST /responses`: the model's answer as a stream of events or as one object."""

from __future__ import annotations

from gateway.simulator.engine import Answer
from gateway.simulator.events import numbered
from gateway.simulator.exchange import Exchange
from gateway.simulator.faults import Steps
from gateway.simulator.replies import Reply, as_json, as_sse, stream_reply
from gateway.simulator.request_log import LoggedRequest, Outcome

_TERMINALS: dict[str, Outcome] = {
    "response.completed": "completed",
    "response.failed": "failed",
    "response.incomplete": "incomplete",
}


def create(exchange: Exchange) -> Reply:
    entry = exchange.entry
    answer = exchange.engine.answer(exchange.body, entry.size)
    entry.response_id = answer.response_id
    entry.context = answer.context
    steps = observed(numbered(exchange.fault.rewrite(answer.events())), entry, answer)
    return stream_reply(as_sse(steps)) if exchange.body.get("stream") else Reply(as_json(steps))


def observed(steps: Steps, entry: LoggedRequest, answer: Answer | None = None) -> Steps:
    """The same steps, noted in the log, and the response kept as it completes."""
    for step in steps:
        if isinstance(step, dict):
            if step["type"] == "response.completed" and answer is not None:
                answer.keep()
            entry.outcome = _TERMINALS.get(step["type"], entry.outcome)
            entry.events_sent += 1
        yield step
