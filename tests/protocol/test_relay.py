"""The relay: what of an upstream's answer the client gets, when, and how it ends (§8.4)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.protocol.errors import ApiError
from gateway.protocol.relay import Broken, Finished, NotContinued, Phase, Refused, Relay
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


def items(relay: Relay) -> list[object]:
    return [json.loads(item) for item in relay.items]


def test_the_preamble_is_held_until_the_first_output() -> None:
    relay = Relay()
    assert relay.feed([created(), IN_PROGRESS]) == []
    assert (relay.phase, relay.released) == (Phase.ACKNOWLEDGED, False)
    assert relay.response_id == "resp_1"
    assert relay.feed([DELTA]) == [created().data, IN_PROGRESS.data, DELTA.data]
    assert (relay.phase, relay.released, relay.has_output) == (Phase.OUTPUT, True, True)


def test_once_released_the_preamble_passes_at_once() -> None:
    relay = Relay()
    relay.feed([created()])
    assert relay.release() == [created().data]
    assert relay.feed([IN_PROGRESS]) == [IN_PROGRESS.data]
    assert not relay.has_output


def test_a_preamble_without_end_is_not_held_without_end() -> None:
    relay = Relay()
    given_out = relay.feed([created(), *[IN_PROGRESS] * 200])
    assert len(given_out) == 201, "what is too long for a preamble passes"


def test_an_answer_ends_with_the_upstreams_own_terminal() -> None:
    relay = Relay()
    payloads = relay.feed([created(), DELTA, done(MESSAGE), ended("completed", output=[MESSAGE])])
    assert types(payloads)[-1] == "response.completed"
    assert relay.outcome == Finished("completed", None, None)
    assert items(relay) == [MESSAGE]


def test_an_empty_output_is_filled_with_what_was_relayed() -> None:
    relay = Relay()
    *_, ending = relay.feed([created(), done(MESSAGE), ended("completed")])
    assert json.loads(ending)["response"]["output"] == [MESSAGE]


def test_an_output_that_comes_only_at_the_end_is_announced_and_remembered() -> None:
    relay = Relay()
    payloads = relay.feed([created(), ended("completed", output=[MESSAGE, CALL])])
    assert types(payloads) == [
        "response.created",
        "response.output_item.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert items(relay) == [MESSAGE, CALL]


def test_items_are_in_the_order_of_their_index() -> None:
    relay = Relay()
    relay.feed([created(), done(CALL, 1), done(MESSAGE, 0)])
    assert items(relay) == [MESSAGE, CALL]


@pytest.mark.parametrize("indices", [(0, 0, 0), (None, None, None), (0, None, 1), (0, 0, 1)])
def test_an_item_is_not_lost_to_another_of_its_index(indices: tuple[int | None, ...]) -> None:
    sent = [{**MESSAGE, "id": f"msg_{number}"} for number in range(3)]
    relay = Relay()
    relay.feed([created(), *map(done, sent, indices)])
    assert items(relay) == sent


def test_an_item_told_twice_is_one_item() -> None:
    relay = Relay()
    relay.feed([created(), done(MESSAGE, 0), done(MESSAGE, 0)])
    assert items(relay) == [MESSAGE]


# --- refusals ------------------------------------------------------------------------


def test_an_error_before_output_leaves_no_trace() -> None:
    relay = Relay()
    assert relay.feed([created(), IN_PROGRESS, error("rate_limit_exceeded", 429)]) == []
    assert isinstance(relay.outcome, Refused)
    assert (relay.outcome.error.status, relay.outcome.terminal) == (429, ())


def test_a_failed_response_before_output_brings_its_own_words_along() -> None:
    relay = Relay()
    failed = ended("failed", error={"code": "context_length_exceeded", "message": "Too long."})
    assert relay.feed([created(), failed]) == []
    assert isinstance(relay.outcome, Refused)
    assert relay.outcome.error.code == "context_length_exceeded"
    assert relay.outcome.terminal == (created().data, failed.data)


def test_a_failed_response_after_output_is_the_end() -> None:
    relay = Relay()
    failed = ended("failed", error={"code": "server_error", "message": "Gone."}, output=[MESSAGE])
    payloads = relay.feed([created(), DELTA, done(MESSAGE), failed])
    assert types(payloads)[-1] == "response.failed"
    assert isinstance(relay.outcome, Finished)
    assert relay.outcome.status == "failed"
    assert relay.outcome.error is not None


def test_an_error_after_output_breaks_the_attempt() -> None:
    relay = Relay()
    assert relay.feed([created(), DELTA, error("x", 500)]) == [created().data, DELTA.data]
    assert isinstance(relay.outcome, Broken)


def test_an_empty_error_waits_for_the_failure_it_announces() -> None:
    relay = Relay()
    assert relay.feed([created(), event("error", error={})]) == []
    assert relay.outcome is None
    relay.feed([ended("failed", error={"code": "server_error", "message": "Gone."})])
    assert isinstance(relay.outcome, Refused)


def test_a_flat_error_under_its_event_name_is_an_error() -> None:
    relay = Relay()
    relay.feed([ServerSentEvent(b"error", b'{"code":"slow_down","message":"Slow."}')])
    assert isinstance(relay.outcome, Refused)
    assert relay.outcome.error.code == "slow_down"


@pytest.mark.parametrize("relayed", [False, True])
def test_a_stream_that_just_ends_is_a_failure(relayed: bool) -> None:
    relay = Relay()
    relay.feed([created(), DELTA] if relayed else [created()])
    relay.end_of_stream()
    assert isinstance(relay.outcome, Broken if relayed else Refused)
    assert relay.outcome.error.status == 502


@pytest.mark.parametrize(
    "broken",
    [
        ServerSentEvent(b"response.created", b"{"),
        ServerSentEvent(b"response.output_item.done", b'{"item":}'),
        ServerSentEvent(b"response.completed", b'{"type":"response.completed"}'),
        ServerSentEvent(b"response.completed", b'{"response":{"output":{}}}'),
    ],
    ids=lambda event: event.data.decode(),
)
def test_an_event_that_must_be_read_and_cannot_be_is_a_failure(broken: ServerSentEvent) -> None:
    relay = Relay()
    relay.feed([broken])
    assert isinstance(relay.outcome, Refused)
    assert relay.outcome.error.status == 502


def test_interruptions_have_their_reason() -> None:
    for kind, reason in (("response.cancelled", "interrupted"), ("response.incomplete", "steered")):
        relay = Relay()
        response = {"id": "resp_1", "incomplete_details": {"reason": "steered"}}
        (ending,) = relay.feed([event(kind, response=response)])
        assert relay.outcome == Finished("incomplete", reason, None)
        assert json.loads(ending)["type"] == "response.incomplete"


# --- nothing after the end -----------------------------------------------------------


@pytest.mark.parametrize("after", [DELTA, created("resp_2"), ended("completed"), error("x", 500)])
def test_nothing_is_read_after_the_end(after: ServerSentEvent) -> None:
    relay = Relay()
    relay.feed([created(), DELTA, ended("completed")])
    assert relay.feed([after]) == []
    assert relay.outcome == Finished("completed", None, None)


def test_nothing_of_the_batch_follows_the_terminal() -> None:
    payloads = Relay().feed([created(), DELTA, ended("completed"), RATE_LIMITS, DELTA])
    assert types(payloads)[-1] == "response.completed"


def test_an_attempt_ends_once() -> None:
    relay = Relay()
    relay.feed([created(), DELTA, ended("completed")])
    relay.fail(ApiError.bad_gateway("Too late."))
    relay.end_of_stream()
    assert relay.outcome == Finished("completed", None, None)


# --- the echo of the previous response -----------------------------------------------


def test_the_echo_of_the_previous_response_continues_it() -> None:
    relay = Relay(chained_to="resp_0")
    relay.feed([created(previous="resp_0"), DELTA])
    assert (relay.outcome, relay.phase) == (None, Phase.OUTPUT)


@pytest.mark.parametrize("echo", [None, "resp_x"])
def test_without_the_echo_the_conversation_is_not_continued(echo: str | None) -> None:
    relay = Relay(chained_to="resp_0")
    assert relay.feed([RATE_LIMITS, created(previous=echo), DELTA]) == []
    assert relay.outcome == NotContinued(echo)


@pytest.mark.parametrize("first", [DELTA, done(MESSAGE), ended("completed")])
def test_an_answer_that_never_said_what_it_continues_is_not_trusted(first: ServerSentEvent) -> None:
    relay = Relay(chained_to="resp_0")
    assert relay.feed([first]) == []
    assert isinstance(relay.outcome, NotContinued)


def test_a_refusal_of_a_chained_turn_is_a_refusal() -> None:
    relay = Relay(chained_to="resp_0")
    relay.feed([error("previous_response_not_found", 400)])
    assert isinstance(relay.outcome, Refused)


# --- what else streams hold ----------------------------------------------------------


def test_events_without_a_name_are_told_by_their_type() -> None:
    relay = Relay()
    nameless = [ServerSentEvent(b"", one.data) for one in (created(), DELTA, ended("completed"))]
    assert relay.feed(nameless)[1] == DELTA.data
    assert relay.outcome == Finished("completed", None, None)


def test_the_done_of_other_apis_is_no_event() -> None:
    relay = Relay()
    relay.feed([created(), DELTA])
    assert relay.feed([ServerSentEvent(b"", b"[DONE]")]) == []
    assert relay.outcome is None


def test_what_nobody_could_tell_is_left_out() -> None:
    relay = Relay()
    relay.feed([created(), DELTA])
    assert relay.feed([ServerSentEvent(b"", b"{}"), ServerSentEvent(b"ping", b"ping")]) == []


def test_events_nobody_knows_pass() -> None:
    relay = Relay()
    new, foreign = event("response.hologram.delta"), event("x.news")
    assert relay.feed([created(), foreign]) == []
    assert relay.feed([new, foreign]) == [created().data, foreign.data, new.data, foreign.data]


def test_the_rate_limits_of_one_account_among_many_are_left_out() -> None:
    assert Relay(pass_rate_limits=False).feed([RATE_LIMITS, DELTA]) == [DELTA.data]
    assert Relay(pass_rate_limits=True).feed([RATE_LIMITS, DELTA]) == [RATE_LIMITS.data, DELTA.data]


def test_the_first_turn_state_is_kept() -> None:
    relay = Relay()
    for state in ("first", "second"):
        relay.feed([event("response.metadata", headers={"X-Codex-Turn-State": state})])
    assert relay.turn_state == "first"


def test_the_last_number_is_that_of_the_last_event_given_out() -> None:
    relay = Relay()
    assert relay.last_number() == -1
    relay.feed([event("response.created", sequence_number=0, response={"id": "resp_1"})])
    assert relay.last_number() == -1, "what is held was not given out"
    relay.release()
    assert relay.last_number() == 0
    relay.feed([event("response.output_text.delta", sequence_number=7)])
    assert relay.last_number() == 7


def test_a_replayed_turn_shows_the_previous_response_that_its_client_named() -> None:
    relay = Relay(named="resp_0")
    sent = relay.feed([created("resp_1", None), IN_PROGRESS, DELTA, ended("completed")])
    shown = [json.loads(payload).get("response") for payload in sent]
    assert [each["previous_response_id"] for each in shown if each] == ["resp_0"] * 3
    assert sent[2] is DELTA.data


def test_a_chained_turn_passes_verbatim() -> None:
    relay = Relay("resp_0", named="resp_0")
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
    relay = Relay()
    assert relay.feed([created()] * begun + [ending]) == []
    assert isinstance(relay.outcome, Refused)
    assert relay.outcome.error.status == 400
    assert "too long" in relay.outcome.error.message
    assert relay.outcome.terminal == ()


def test_an_error_beside_the_response_that_failed_is_read() -> None:
    relay = Relay()
    failed = ended("failed", error=None)
    data = json.dumps({**json.loads(failed.data), "error": {"code": 429, "message": "slow"}})
    relay.feed([created(), ServerSentEvent(b"response.failed", data.encode())])
    assert isinstance(relay.outcome, Refused)
    assert (relay.outcome.error.status, relay.outcome.error.message) == (429, "slow")


def test_what_has_no_type_and_is_no_error_is_dropped() -> None:
    relay = Relay()
    assert relay.feed([created(), ServerSentEvent(b"", b'{"message":"hello"}'), DELTA]) == [
        created().data,
        DELTA.data,
    ]
