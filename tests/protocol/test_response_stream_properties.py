"""The relay under random streams, cut anywhere: what must hold whatever upstreams send."""

from __future__ import annotations

import itertools
import json
import unittest.mock
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.events import PASSED_UNREAD
from gateway.protocol.response_body import with_one_type
from gateway.protocol.response_stream import (
    BrokenResponse,
    FinishedResponse,
    RefusedResponse,
    ResponseStream,
    UnchainedResponse,
)
from tests.support.sse import ServerSentEvent

TERMINALS = {"response.completed", "response.failed", "response.incomplete"}
NO_OUTPUT = {
    *("response.created", "response.in_progress", "response.queued", "response.metadata"),
    *("codex.rate_limits", "x.news"),
}

RESPONSES = st.fixed_dictionaries(
    {"id": st.sampled_from(["resp_1", "resp_2"])},
    optional={
        "previous_response_id": st.sampled_from([None, "resp_0", "resp_x"]),
        "output": st.lists(
            st.integers(0, 9).map(lambda n: {"type": "message", "n": n}), max_size=2
        ),
        "error": st.sampled_from([None, {"code": "server_error", "message": "x"}, {"code": "y"}]),
        "incomplete_details": st.sampled_from([None, {"reason": "max_output_tokens"}]),
        "usage": st.sampled_from([None, {}, {"input_tokens": 1}]),
    },
)
SOUND: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(
        lambda kind, response: {"type": kind, "response": response},
        st.sampled_from(sorted(TERMINALS | {"response.done", "response.cancelled"})),
        RESPONSES,
    ),
    st.builds(
        lambda kind, response: {"type": kind, "response": response},
        st.sampled_from(["response.created", "response.in_progress", "response.queued"]),
        RESPONSES,
    ),
    st.builds(
        lambda index, number: {
            "type": "response.output_item.done",
            "output_index": index,
            "item": {"type": "message", "id": f"msg_{number}"},
        },
        st.none() | st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.sampled_from(sorted(PASSED_UNREAD)).map(lambda name: {"type": name.decode(), "delta": "x"}),
    st.sampled_from(["response.new", "codex.rate_limits", "x.news", "response.metadata"]).map(
        lambda kind: {"type": kind}
    ),
    st.sampled_from([{}, {"code": "slow_down"}, {"message": "No."}]).map(
        lambda error: {"type": "error", "error": error}
    ),
)
BROKEN = st.sampled_from(
    [
        ServerSentEvent(b"response.created", b"nonsense"),
        ServerSentEvent(b"response.in_progress", b'{"type":"response.in_progress"}'),
        ServerSentEvent(b"response.completed", b'{"type":"response.completed"}'),
        ServerSentEvent(b"response.created", b'{"type":"response.created"}'),
        ServerSentEvent(b"error", b""),
    ]
)


def as_event(event: dict[str, Any], named: bool) -> ServerSentEvent:
    name = event["type"].encode() if named else b""
    reconciled = with_one_type((name, json.dumps(event).encode()))
    assert reconciled is not None
    return ServerSentEvent(*reconciled)


EVENTS = st.builds(as_event, SOUND, st.booleans()) | BROKEN
BATCHES = st.lists(st.lists(EVENTS, max_size=6), max_size=5)
CHAINED_TO = st.sampled_from([None, None, "resp_0"])


def kind_of(payload: bytes) -> str:
    kind = json.loads(payload)["type"]
    assert isinstance(kind, str)
    return kind


def is_made(payload: bytes) -> bool:
    """Whether it is the beginning of a response, which the gateway may make."""
    return kind_of(payload) in ("response.created", "response.in_progress", "response.queued")


class Run:
    """Feeds batches; releases before the batch of number ``release_at``; ends the stream.

    ``first`` is the first that was given out unasked.
    """

    def __init__(
        self, batches: list[list[ServerSentEvent]], chained_to: str | None, release_at: int = -1
    ) -> None:
        self.relay = ResponseStream(chained_to)
        self.given_out: list[bytes] = []
        self.first: list[bytes] = []
        for number, batch in enumerate(batches):
            if number == release_at:
                self.given_out += self.relay.release()
            outcome = self.relay.outcome
            payloads = self.relay.feed(batch)
            self.given_out += payloads
            self.first = self.first or payloads
            if outcome is not None:
                assert payloads == [], "nothing passes after the end"
                assert self.relay.outcome is outcome, "an attempt ends once"
        self.relay.end_of_stream()


@given(BATCHES, CHAINED_TO, st.integers(-1, 5))
def test_an_attempt_always_ends_and_tells_the_client_at_most_once(
    batches: list[list[ServerSentEvent]], chained_to: str | None, release_at: int
) -> None:
    run = Run(batches, chained_to, release_at)
    outcome = run.relay.outcome
    assert outcome is not None, "every attempt has an outcome"
    terminals = [kind for kind in map(kind_of, run.given_out) if kind in TERMINALS]
    assert len(terminals) == isinstance(outcome, FinishedResponse), (
        "only a finished one has a terminal"
    )
    if isinstance(outcome, FinishedResponse):
        assert kind_of(run.given_out[-1]) == f"response.{outcome.status}"
    elif isinstance(outcome, BrokenResponse):
        assert run.relay.released, "broken is what the client saw a part of"


@given(BATCHES, CHAINED_TO, st.integers(-1, 5))
def test_an_answer_has_one_beginning_before_all_output(
    batches: list[list[ServerSentEvent]], chained_to: str | None, release_at: int
) -> None:
    run = Run(batches, chained_to, release_at)
    kinds = [kind_of(payload) for payload in run.given_out]
    begins = [place for place, kind in enumerate(kinds) if kind == "response.created"]
    rest = [place for place, kind in enumerate(kinds) if kind not in NO_OUTPUT]
    assert len(begins) <= 1
    assert not rest or (begins and begins[0] < rest[0])
    ids = {
        event["response"]["id"] for event in map(json.loads, run.given_out) if "response" in event
    }
    assert ids <= {run.relay.response_id}, "one response has one id"


@given(BATCHES, CHAINED_TO)
def test_what_ends_before_output_was_never_seen(
    batches: list[list[ServerSentEvent]], chained_to: str | None
) -> None:
    run = Run(batches, chained_to)
    if isinstance(run.relay.outcome, (RefusedResponse, UnchainedResponse)):
        assert run.given_out == [], "a refused attempt leaves no trace"
    assert not run.first or any(kind_of(payload) not in NO_OUTPUT for payload in run.first), (
        "nothing is given out before there is output or an end"
    )


@given(BATCHES, CHAINED_TO, st.integers(-1, 5))
def test_payloads_are_the_upstreams_bytes_in_their_order(
    batches: list[list[ServerSentEvent]], chained_to: str | None, release_at: int
) -> None:
    run = Run(batches, chained_to, release_at)
    sent = [event.data for batch in batches for event in batch]
    rest = iter(sent)
    body = [payload for payload in run.given_out if payload in sent or not is_made(payload)]
    if isinstance(run.relay.outcome, FinishedResponse):
        while body and body[-1] not in sent:
            body.pop()  # the terminal where it was mended, and what it announced
    assert all(payload in rest for payload in body), "verbatim, in order, none twice"


@given(BATCHES, CHAINED_TO, st.integers(-1, 5))
def test_the_items_kept_are_the_items_given_out(
    batches: list[list[ServerSentEvent]], chained_to: str | None, release_at: int
) -> None:
    run = Run(batches, chained_to, release_at)
    seen: dict[tuple[int | None, str], object] = {}
    for payload in run.given_out:
        event = json.loads(payload)
        if event["type"] == "response.output_item.done":
            seen[event.get("output_index"), json.dumps(event["item"])] = event["item"]
    kept = [json.loads(item) for item in run.relay.items]
    assert all(item in kept for item in seen.values()), "no item the client saw is forgotten"
    assert all(item in seen.values() for item in kept), "no item is kept the client never saw"


@given(st.lists(EVENTS, max_size=20), CHAINED_TO, st.lists(st.integers(0, 20), max_size=5))
def test_how_events_are_batched_makes_no_difference(
    events: list[ServerSentEvent], chained_to: str | None, places: list[int]
) -> None:
    edges = [0, *sorted(places), len(events)]
    batches = [events[a:b] for a, b in itertools.pairwise(edges)]
    made = unittest.mock.patch(
        "gateway.protocol.response_stream.new_response_id", return_value="resp_made"
    )
    with made:
        whole, cut = Run([events], chained_to), Run(batches, chained_to)
    assert whole.given_out == cut.given_out
    assert whole.relay.items == cut.relay.items
    assert type(whole.relay.outcome) is type(cut.relay.outcome)
    assert whole.relay.last_number() == cut.relay.last_number()
