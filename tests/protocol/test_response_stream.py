"""The relay: what of an upstream's answer the client gets, when, and how it ends (§8.4)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.protocol.errors import ApiError
from gateway.protocol.response_body import with_one_type
from gateway.protocol.response_stream import (
    BackgroundResponse,
    BrokenResponse,
    FinishedResponse,
    RefusedResponse,
    ResponseStream,
    StreamPhase,
    UnchainedResponse,
)
from tests.support.sse import ServerSentEvent

MESSAGE = {"type": "message", "id": "msg_1", "content": [{"type": "output_text", "text": "hi"}]}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "arguments": "{}"}


def event(kind: str, **members: Any) -> ServerSentEvent:
    return ServerSentEvent(kind.encode(), json.dumps({"type": kind, **members}).encode())


def created(response_id: str = "resp_1", previous: str | None = None) -> ServerSentEvent:
    return event("response.created", response={"id": response_id, "previous_response_id": previous})


def done(item: object, index: int | None = 0) -> ServerSentEvent:
    return event("response.output_item.done", output_index=index, item=item)


def ended(status: str, **response: Any) -> ServerSentEvent:
    response = {"id": "resp_1", "status": status, "output": [], **response}
    return event(f"response.{status}", response=response)


def error(code: str, status: int) -> ServerSentEvent:
    return event("error", status=status, error={"code": code, "message": "No."})


IN_PROGRESS = event("response.in_progress", response={"id": "resp_1"})
DELTA = event("response.output_text.delta", delta="h")
RATE_LIMITS = event("codex.rate_limits", plan_type="plus")


def types(payloads: list[bytes] | tuple[bytes, ...]) -> list[str]:
    return [json.loads(payload)["type"] for payload in payloads]


def items(relay: ResponseStream) -> list[object]:
    return [json.loads(item) for item in relay.items]


def test_the_preamble_is_held_until_the_first_output() -> None:
    relay = ResponseStream()
    assert relay.feed([created(), IN_PROGRESS]) == []
    assert (relay.phase, relay.released) == (StreamPhase.ACKNOWLEDGED, False)
    assert relay.response_id == "resp_1"
    assert relay.feed([DELTA]) == [created().data, IN_PROGRESS.data, DELTA.data]
    assert (relay.phase, relay.released, relay.has_output) == (StreamPhase.OUTPUT, True, True)


def test_once_released_the_preamble_passes_at_once() -> None:
    relay = ResponseStream()
    relay.feed([created()])
    assert relay.release() == [created().data]
    assert relay.feed([IN_PROGRESS]) == [IN_PROGRESS.data]
    assert not relay.has_output


@pytest.mark.parametrize(
    ("is_background", "events", "outcome"),
    [
        (True, [created()], BackgroundResponse),
        (True, [created(), IN_PROGRESS], BackgroundResponse),
        (False, [created()], RefusedResponse),
        (True, [], RefusedResponse),
        (True, [event("response.created", response={"status": "queued"})], RefusedResponse),
        (True, [created(), DELTA], BrokenResponse),
        (True, [created(), ended("completed")], FinishedResponse),
    ],
)
def test_a_response_with_an_id_may_go_on_behind_its_answer(
    is_background: bool, events: list[ServerSentEvent], outcome: type
) -> None:
    """Where it was asked for like that, and before it began to tell its output."""
    relay = ResponseStream(is_background=is_background)
    relay.feed(events)
    relay.end_of_stream()
    assert isinstance(relay.outcome, outcome)


def test_a_preamble_without_end_is_not_held_without_end() -> None:
    relay = ResponseStream()
    given_out = relay.feed([created(), *[IN_PROGRESS] * 200])
    assert len(given_out) == 201, "what is too long for a preamble passes"


def test_an_answer_ends_with_the_upstreams_own_terminal() -> None:
    relay = ResponseStream()
    payloads = relay.feed([created(), DELTA, done(MESSAGE), ended("completed", output=[MESSAGE])])
    assert types(payloads)[-1] == "response.completed"
    assert relay.outcome == FinishedResponse("completed", None, None)
    assert items(relay) == [MESSAGE]


def test_an_empty_output_is_filled_with_what_was_relayed() -> None:
    relay = ResponseStream()
    *_, ending = relay.feed([created(), done(MESSAGE), ended("completed")])
    assert json.loads(ending)["response"]["output"] == [MESSAGE]


def test_an_output_that_comes_only_at_the_end_is_announced_and_remembered() -> None:
    relay = ResponseStream()
    payloads = relay.feed([created(), ended("completed", output=[MESSAGE, CALL])])
    assert types(payloads) == [
        "response.created",
        "response.output_item.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert items(relay) == [MESSAGE, CALL]


def test_items_are_in_the_order_of_their_index() -> None:
    relay = ResponseStream()
    relay.feed([created(), done(CALL, 1), done(MESSAGE, 0)])
    assert items(relay) == [MESSAGE, CALL]


@pytest.mark.parametrize("indices", [(0, 0, 0), (None, None, None), (0, None, 1), (0, 0, 1)])
def test_an_item_is_not_lost_to_another_of_its_index(indices: tuple[int | None, ...]) -> None:
    sent = [{**MESSAGE, "id": f"msg_{number}"} for number in range(3)]
    relay = ResponseStream()
    relay.feed([created(), *map(done, sent, indices)])
    assert items(relay) == sent


def test_an_item_told_twice_is_one_item() -> None:
    relay = ResponseStream()
    relay.feed([created(), done(MESSAGE, 0), done(MESSAGE, 0)])
    assert items(relay) == [MESSAGE]


# --- refusals ------------------------------------------------------------------------


def test_an_error_before_output_leaves_no_trace() -> None:
    relay = ResponseStream()
    assert relay.feed([created(), IN_PROGRESS, error("rate_limit_exceeded", 429)]) == []
    assert isinstance(relay.outcome, RefusedResponse)
    assert (relay.outcome.error.status, relay.outcome.terminal) == (429, ())


def test_a_failed_response_before_output_brings_its_own_words_along() -> None:
    relay = ResponseStream()
    failed = ended("failed", error={"code": "context_length_exceeded", "message": "Too long."})
    assert relay.feed([created(), failed]) == []
    assert isinstance(relay.outcome, RefusedResponse)
    assert relay.outcome.error.code == "context_length_exceeded"
    assert relay.outcome.terminal == (created().data, failed.data)


def test_a_failed_response_after_output_is_the_end() -> None:
    relay = ResponseStream()
    failed = ended("failed", error={"code": "server_error", "message": "Gone."}, output=[MESSAGE])
    payloads = relay.feed([created(), DELTA, done(MESSAGE), failed])
    assert types(payloads)[-1] == "response.failed"
    assert isinstance(relay.outcome, FinishedResponse)
    assert relay.outcome.status == "failed"
    assert relay.outcome.error is not None


def test_an_error_after_output_breaks_the_attempt() -> None:
    relay = ResponseStream()
    assert relay.feed([created(), DELTA, error("x", 500)]) == [created().data, DELTA.data]
    assert isinstance(relay.outcome, BrokenResponse)


def test_an_empty_error_waits_for_the_failure_it_announces() -> None:
    relay = ResponseStream()
    assert relay.feed([created(), event("error", error={})]) == []
    assert relay.outcome is None
    relay.feed([ended("failed", error={"code": "server_error", "message": "Gone."})])
    assert isinstance(relay.outcome, RefusedResponse)


def test_a_flat_error_under_its_event_name_is_an_error() -> None:
    relay = ResponseStream()
    relay.feed([ServerSentEvent(b"error", b'{"code":"slow_down","message":"Slow."}')])
    assert isinstance(relay.outcome, RefusedResponse)
    assert relay.outcome.error.code == "slow_down"


@pytest.mark.parametrize("relayed", [False, True])
def test_a_stream_that_just_ends_is_a_failure(relayed: bool) -> None:
    relay = ResponseStream()
    relay.feed([created(), DELTA] if relayed else [created()])
    relay.end_of_stream()
    assert isinstance(relay.outcome, BrokenResponse if relayed else RefusedResponse)
    assert relay.outcome.error.status == 502


@pytest.mark.parametrize(
    "broken",
    [
        ServerSentEvent(b"response.created", b"{"),
        ServerSentEvent(b"response.output_item.done", b'{"item":}'),
        ServerSentEvent(b"response.completed", b'{"type":"response.completed"}'),
        ServerSentEvent(b"response.completed", b"[]"),
    ],
    ids=lambda event: event.data.decode(),
)
def test_an_event_that_must_be_read_and_cannot_be_is_a_failure(broken: ServerSentEvent) -> None:
    relay = ResponseStream()
    relay.feed([broken])
    assert isinstance(relay.outcome, RefusedResponse)
    assert relay.outcome.error.status == 502


def test_interruptions_have_their_reason() -> None:
    for kind, reason in (("response.cancelled", "interrupted"), ("response.incomplete", "steered")):
        relay = ResponseStream()
        response = {"id": "resp_1", "incomplete_details": {"reason": "steered"}}
        (ending,) = relay.feed([created(), event(kind, response=response)])[1:]
        assert relay.outcome == FinishedResponse("incomplete", reason, None)
        assert json.loads(ending)["type"] == "response.incomplete"


# --- an answer without a beginning ---------------------------------------------------


def decoded(payloads: list[bytes] | tuple[bytes, ...]) -> list[dict[str, Any]]:
    return [json.loads(payload) for payload in payloads]


def numbered_ones(*events: ServerSentEvent, first: int = 0) -> list[ServerSentEvent]:
    return [
        ServerSentEvent(
            name, json.dumps({**json.loads(data), "sequence_number": first + place}).encode()
        )
        for place, (name, data) in enumerate(events)
    ]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    "stream",
    [
        (IN_PROGRESS, DELTA, done(MESSAGE), ended("completed", output=[MESSAGE])),
        (DELTA, done(MESSAGE), ended("completed", output=[MESSAGE])),
        (done(MESSAGE), ended("incomplete", output=[MESSAGE])),
        (RATE_LIMITS, DELTA, ended("completed")),
        (ended("completed", output=[MESSAGE]),),
    ],
)
def test_an_answer_gets_the_beginning_that_it_lacks(
    stream: tuple[ServerSentEvent, ...], first: int
) -> None:
    relay = ResponseStream(new_response=lambda _: {"model": msgspec.Raw(b'"m"')})
    sent = decoded(relay.feed(numbered_ones(*stream, first=first)))
    assert sent[0]["type"] == "response.created"
    assert [event["type"] for event in sent].count("response.created") == 1
    assert (sent[0]["response"]["status"], sent[0]["response"]["output"]) == ("in_progress", [])
    ids = {event["response"]["id"] for event in sent if "response" in event}
    assert ids == {relay.response_id}
    numbers = [event["sequence_number"] for event in sent]
    assert numbers == sorted(set(numbers))


def test_the_response_that_comes_first_gives_the_beginning() -> None:
    relay = ResponseStream()
    first, *_ = decoded(relay.feed([IN_PROGRESS, DELTA, ended("completed")]))
    assert first["response"]["id"] == "resp_1"
    assert not relay.id_is_ours, "what continues it may name it"


def test_a_beginning_that_comes_late_is_no_second_one() -> None:
    relay = ResponseStream()
    kinds = types(relay.feed([IN_PROGRESS, created(), DELTA, created(), ended("completed")]))
    assert kinds.count("response.created") == 1


def test_an_echo_without_created_counts() -> None:
    echo = event(
        "response.in_progress", response={"id": "resp_1", "previous_response_id": "resp_0"}
    )
    relay = ResponseStream(chained_to="resp_0")
    assert types(relay.feed([echo, DELTA]))[0] == "response.created"
    relay = ResponseStream(chained_to="resp_0")
    relay.feed([ended("completed", previous_response_id="resp_0", output=[MESSAGE])])
    assert isinstance(relay.outcome, FinishedResponse)


def test_a_failure_without_a_beginning_is_told_with_one() -> None:
    relay = ResponseStream()
    assert relay.feed([ended("failed", error={"code": "server_error", "message": "x"})]) == []
    assert isinstance(relay.outcome, RefusedResponse)
    assert types(relay.outcome.terminal) == ["response.created", "response.failed"]


# --- odd members -------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [None, 0, 7, 1.5, "", [], {}, False], ids=repr)
@pytest.mark.parametrize("member", ["id", "status", "previous_response_id", "error", "usage"])
@pytest.mark.parametrize("kind", ["response.created", "response.in_progress", "response.completed"])
def test_an_odd_member_ends_no_turn(kind: str, member: str, odd: object) -> None:
    stream = [created(), IN_PROGRESS, DELTA, done(MESSAGE), ended("completed", output=[MESSAGE])]
    for place, (name, data) in enumerate(stream):
        if name == kind.encode():
            changed = json.loads(data)
            changed["response"][member] = odd
            stream[place] = ServerSentEvent(name, json.dumps(changed).encode())
    relay = ResponseStream()
    sent = decoded(relay.feed(stream))
    assert relay.outcome == FinishedResponse("completed", None, None, relay.outcome.usage)  # type: ignore[union-attr]
    ids = {event["response"]["id"] for event in sent if "response" in event}
    assert ids == {relay.response_id}
    assert relay.response_id
    last = sent[-1]["response"]
    assert (last["status"], last["output"]) == ("completed", [MESSAGE])
    assert last.get("previous_response_id") in (None, "")
    assert last.get("usage") is None or "total_tokens" in last["usage"]


@pytest.mark.parametrize("odd", [None, 7, "text", [], {}], ids=repr)
@pytest.mark.parametrize("kind", ["response.created", "response.in_progress", "response.completed"])
def test_a_missing_response_ends_no_turn(kind: str, odd: object) -> None:
    stream = [created(), IN_PROGRESS, DELTA, done(MESSAGE), ended("completed", output=[MESSAGE])]
    stream = [event(kind, response=odd) if one.name == kind.encode() else one for one in stream]
    relay = ResponseStream(new_response=lambda _: {"model": msgspec.Raw(b'"m"')})
    sent = decoded(relay.feed(stream))
    assert isinstance(relay.outcome, FinishedResponse)
    ids = {event["response"]["id"] for event in sent if "response" in event}
    assert ids == {relay.response_id}
    assert sent[-1]["response"]["status"] == "completed"
    assert sent[-1]["response"]["output"] == [MESSAGE]


@pytest.mark.parametrize("odd", ["", [], 7, {}, {"reason": None}], ids=repr)
def test_odd_details_are_no_reason(odd: object) -> None:
    relay = ResponseStream()
    *_, ending = relay.feed([created(), DELTA, ended("completed", incomplete_details=odd)])
    assert relay.outcome == FinishedResponse("completed", None, None)
    shown = json.loads(ending)["response"]["incomplete_details"]
    assert shown is None or isinstance(shown, dict)


@pytest.mark.parametrize("odd", [{}, "text", 7, None, [None, 7, "x"]], ids=repr)
def test_an_odd_output_is_filled_with_what_was_seen(odd: object) -> None:
    relay = ResponseStream()
    *_, ending = relay.feed([created(), done(MESSAGE), ended("completed", output=odd)])
    assert json.loads(ending)["response"]["output"] == [MESSAGE]


def test_an_event_that_finishes_no_item_is_passed_over() -> None:
    relay = ResponseStream()
    sent = relay.feed([created(), done(None), done("text"), done(MESSAGE), ended("completed")])
    assert types(sent).count("response.output_item.done") == 1
    assert items(relay) == [MESSAGE]


def test_what_the_gateway_reads_is_json_that_every_client_reads() -> None:
    odd = {"type": "message", "id": "msg_1", "content": "hi \ud83d", "score": float("nan")}
    stream = [
        event("response.created", response={"id": "resp_1", "top_p": float("nan")}),
        event("response.in_progress", response={"id": "resp_1", "top_p": float("-inf")}),
        done(odd),
        ended("completed", output=[odd]),
    ]
    relay = ResponseStream()
    sent = [msgspec.json.decode(payload) for payload in relay.feed(stream)]
    item = {**odd, "content": "hi \ufffd", "score": None}
    assert [sent[2]["item"], *sent[3]["response"]["output"]] == [item, item]
    assert items(relay) == [item], "what is replayed is what the client saw"


# --- nothing after the end -----------------------------------------------------------


@pytest.mark.parametrize("after", [DELTA, created("resp_2"), ended("completed"), error("x", 500)])
def test_nothing_is_read_after_the_end(after: ServerSentEvent) -> None:
    relay = ResponseStream()
    relay.feed([created(), DELTA, ended("completed")])
    assert relay.feed([after]) == []
    assert relay.outcome == FinishedResponse("completed", None, None)


def test_nothing_of_the_batch_follows_the_terminal() -> None:
    payloads = ResponseStream().feed([created(), DELTA, ended("completed"), RATE_LIMITS, DELTA])
    assert types(payloads)[-1] == "response.completed"


def test_an_attempt_ends_once() -> None:
    relay = ResponseStream()
    relay.feed([created(), DELTA, ended("completed")])
    relay.fail(ApiError.bad_gateway("Too late."))
    relay.end_of_stream()
    assert relay.outcome == FinishedResponse("completed", None, None)


# --- the echo of the previous response -----------------------------------------------


def test_the_echo_of_the_previous_response_continues_it() -> None:
    relay = ResponseStream(chained_to="resp_0")
    relay.feed([created(previous="resp_0"), DELTA])
    assert (relay.outcome, relay.phase) == (None, StreamPhase.OUTPUT)


@pytest.mark.parametrize("echo", [None, "resp_x"])
def test_without_the_echo_the_conversation_is_not_continued(echo: str | None) -> None:
    relay = ResponseStream(chained_to="resp_0")
    assert relay.feed([RATE_LIMITS, created(previous=echo), DELTA]) == []
    assert relay.outcome == UnchainedResponse(echo)


@pytest.mark.parametrize("first", [DELTA, done(MESSAGE), ended("completed")])
def test_an_answer_that_never_said_what_it_continues_is_not_trusted(first: ServerSentEvent) -> None:
    relay = ResponseStream(chained_to="resp_0")
    assert relay.feed([first]) == []
    assert isinstance(relay.outcome, UnchainedResponse)


def test_a_refusal_of_a_chained_turn_is_a_refusal() -> None:
    relay = ResponseStream(chained_to="resp_0")
    relay.feed([error("previous_response_not_found", 400)])
    assert isinstance(relay.outcome, RefusedResponse)


# --- what else streams hold ----------------------------------------------------------


def test_events_nobody_knows_pass() -> None:
    relay = ResponseStream()
    new, foreign = event("response.hologram.delta"), event("x.news")
    assert relay.feed([created(), foreign]) == []
    assert relay.feed([new, foreign]) == [created().data, foreign.data, new.data, foreign.data]


def test_the_rate_limits_of_one_account_among_many_are_left_out() -> None:
    stream = [created(), RATE_LIMITS, DELTA]
    assert ResponseStream(pass_rate_limits=False).feed(stream) == [created().data, DELTA.data]
    assert ResponseStream(pass_rate_limits=True).feed(stream) == [one.data for one in stream]


def test_the_first_turn_state_is_kept() -> None:
    relay = ResponseStream()
    for state in ("first", "second"):
        relay.feed([event("response.metadata", headers={"X-Codex-Turn-State": state})])
    assert relay.turn_state == "first"


def test_the_last_number_is_that_of_the_last_event_given_out() -> None:
    relay = ResponseStream()
    assert relay.last_number() == -1
    relay.feed([event("response.created", sequence_number=0, response={"id": "resp_1"})])
    assert relay.last_number() == -1, "what is held was not given out"
    relay.release()
    assert relay.last_number() == 0
    relay.feed([event("response.output_text.delta", sequence_number=7)])
    assert relay.last_number() == 7


def test_a_replayed_turn_shows_the_previous_response_that_its_client_named() -> None:
    relay = ResponseStream(client_parent="resp_0")
    sent = relay.feed([created("resp_1", None), IN_PROGRESS, DELTA, ended("completed")])
    shown = [json.loads(payload).get("response") for payload in sent]
    assert [each["previous_response_id"] for each in shown if each] == ["resp_0"] * 3
    assert sent[2] is DELTA.data


def test_a_chained_turn_passes_verbatim() -> None:
    relay = ResponseStream("resp_0", client_parent="resp_0")
    first = created("resp_1", "resp_0")
    assert relay.feed([first, DELTA]) == [first.data, DELTA.data]


BARE = b'{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}'


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(
    "ending",
    [
        ServerSentEvent(b"", BARE),
        ServerSentEvent(b"message", BARE),
        ServerSentEvent(b"error", BARE),
        ServerSentEvent(b"response.error", BARE),
        ServerSentEvent(b"", b'{"detail":"context length: too long"}'),
        ServerSentEvent(b"", b'{"errors":[{"code":400,"message":"too long"}]}'),
        event("error", code=400, message="too long"),
        ServerSentEvent(b"error", b"Error: prompt is too long"),
        event("response.failed", error={"code": "context_length_exceeded", "message": "too long"}),
        event("response.failed", code="invalid_prompt", message="too long"),
        event("response.failed", response=None, error="the prompt is too long"),
    ],
    ids=lambda each: f"{each.name} {each.data}"[:60],
)
def test_an_error_of_any_shape_ends_the_attempt(ending: ServerSentEvent, begun: bool) -> None:
    relay = ResponseStream()
    named = with_one_type(ending)
    assert named is not None
    assert relay.feed([created()] * begun + [named]) == []
    assert isinstance(relay.outcome, RefusedResponse)
    assert relay.outcome.error.status == 400
    assert "too long" in relay.outcome.error.message
    assert relay.outcome.terminal == ()


def test_an_error_beside_the_response_that_failed_is_read() -> None:
    relay = ResponseStream()
    failed = ended("failed", error=None)
    data = json.dumps({**json.loads(failed.data), "error": {"code": 429, "message": "slow"}})
    relay.feed([created(), ServerSentEvent(b"response.failed", data.encode())])
    assert isinstance(relay.outcome, RefusedResponse)
    assert (relay.outcome.error.status, relay.outcome.error.message) == (429, "slow")


@pytest.mark.parametrize("seen", [[], [created(), DELTA]])
@pytest.mark.parametrize(
    "last",
    [
        event("error", status=500, error={"message": "It was sk-secret."}),
        ended("failed", error={"code": "server_error", "message": "It was sk-secret."}),
        event("response.failed", error={"message": "It was sk-secret."}),
    ],
)
def test_what_tells_of_a_failure_quotes_no_secret(
    seen: list[ServerSentEvent], last: ServerSentEvent
) -> None:
    relay = ResponseStream(without_secrets=lambda said: said.replace(b"sk-secret", b"*"))
    payloads = relay.feed([*seen, last])
    outcome = relay.outcome
    assert isinstance(outcome, (BrokenResponse, FinishedResponse, RefusedResponse))
    assert outcome.error is not None
    assert outcome.error.message == "It was *."
    told = [*payloads, *(outcome.terminal if isinstance(outcome, RefusedResponse) else ())]
    assert b"sk-secret" not in b"".join(told)
