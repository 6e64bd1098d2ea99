"""Answers as they are made: `POST /responses`, and background ones read and cancelled again."""

from __future__ import annotations

from simulator.background import BackgroundRun
from simulator.dialects import speak_dialect
from simulator.engine import Answer
from simulator.events import numbered
from simulator.exchange import Exchange
from simulator.faults import Steps
from simulator.refusals import bad_request
from simulator.replies import Reply, as_json, as_sse, json_reply, stream_reply
from simulator.request_log import LoggedRequest, Outcome
from simulator.retrieval import check_include, find

_TERMINALS: dict[str, Outcome] = {
    "response.completed": "completed",
    "response.failed": "failed",
    "response.incomplete": "incomplete",
}


def create(exchange: Exchange) -> Reply:
    """`POST /responses`: a stream of events or one object; in the background both go on alone."""
    entry = exchange.entry
    answer = exchange.engine.answer(exchange.body, entry.size)
    entry.response_id = answer.response_id
    entry.context = answer.context
    if exchange.body.get("background"):
        return _start(exchange, answer)
    events = speak_dialect(exchange.engine.account, answer.events())
    steps = observed(numbered(exchange.fault.rewrite(events)), entry, answer)
    return stream_reply(as_sse(steps)) if exchange.body.get("stream") else Reply(as_json(steps))


def cancel(exchange: Exchange) -> Reply:
    """`POST /responses/{id}/cancel`: ends a background response, and may be repeated."""
    record = find(exchange)
    if record.run is None:
        message = "Only responses created with 'background' set to true can be cancelled."
        raise bad_request(message, None)
    record.run.cancel()
    status = record.run.response["status"]
    if status != "cancelled":
        raise bad_request(f"Cannot cancel a {status} response.", None)
    return json_reply(record.run.response, exchange.fault)


def retrieve(exchange: Exchange) -> Reply:
    """`GET /responses/{id}`; with `stream` the events of a background response, old and new."""
    record = find(exchange)
    check_include(exchange)
    after = exchange.integer("starting_after", 0)
    if not exchange.flag("stream"):
        return json_reply(record.response, exchange.fault)
    if record.run is None or not record.run.streamed:
        message = "Only responses created with 'background' and 'stream' can be streamed again."
        raise bad_request(message, "stream")
    return _followed(exchange, record.run, -1 if after is None else after)


def _start(exchange: Exchange, answer: Answer) -> Reply:
    fault, events = exchange.fault, answer.events()
    run = exchange.simulator.start_in_background(
        answer.record,
        fault.rewrite(events) if fault.is_of_response else events,
        exchange.engine.store.keep,
        streamed=bool(exchange.body.get("stream")),
    )
    return _followed(exchange, run) if run.streamed else json_reply(run.response, fault)


def _followed(exchange: Exchange, run: BackgroundRun, after: int = -1) -> Reply:
    """The run's events for one client, who may leave without ending the run."""
    steps = run.follow(after)
    if not exchange.fault.is_of_response:
        steps = exchange.fault.rewrite(steps)
    return stream_reply(as_sse(observed(steps, exchange.entry)))


def observed(steps: Steps, entry: LoggedRequest, answer: Answer | None = None) -> Steps:
    """The same steps, noted in the log, and the response kept as it completes."""
    for step in steps:
        if isinstance(step, dict):
            if step["type"] == "response.completed" and answer is not None:
                answer.keep()
            entry.outcome = _TERMINALS.get(step["type"], entry.outcome)
            entry.events_sent += 1
        yield step
