"""``POST /v1/responses`` in memory: the turn, and the doors it goes through."""

from __future__ import annotations

import gzip
import json
from typing import Any

import msgspec
import pytest
import zstandard

from gateway.protocol.errors import ApiError
from tests.server.listener import House
from tests.support.events import Json, call_output, text_item, turn_events, user


def answered(house: House, response_id: str = "resp_1", **members: Any) -> None:
    house.sent().sends(*turn_events([text_item()], response_id, **members))


# --- what goes upstream --------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/responses", "/backend-api/codex/responses"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_upstream_always_streams(house: House, path: str, stream: bool) -> None:
    client = house.client()
    body = {"model": "gpt-5.5", "input": "hi", "stream": stream, "unknown": {"kept": 1}}
    client.gives(client.request("POST", path, json.dumps(body).encode()))
    sent = house.sent().body
    assert (sent["stream"], sent["input"], sent["unknown"]) == (True, "hi", {"kept": 1})
    answered(house)


def test_10_81_codexs_members_and_headers_are_passed_on(house: House) -> None:
    client = house.client()
    tools = {"type": "additional_tools", "tools": [{"type": "function", "name": "f"}]}
    headers = {
        "originator": "codex_exec",
        "session-id": "s-1",
        "thread-id": "t-1",
        "x-openai-internal-codex-responses-lite": "true",
        "x-codex-turn-metadata": "{}",
    }
    metadata = {"thread_id": "t-1", "turn_id": "1"}
    client.creates(headers, input=[tools, user("hi")], client_metadata=metadata, store=False)
    sent = house.sent()
    assert sent.body["input"] == [tools, user("hi")]
    assert sent.body["client_metadata"] == metadata
    assert {name: sent.headers.get(name) for name in headers} == headers
    answered(house)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_10_84_compressed_bodies_are_read(house: House, encoding: str) -> None:
    body = json.dumps({"model": "gpt-5.5", "input": "packed"}).encode()
    packed = gzip.compress(body) if encoding == "gzip" else zstandard.compress(body)
    client = house.client()
    client.gives(client.request(body=packed, headers={"Content-Encoding": encoding}))
    assert house.sent().body["input"] == "packed"
    answered(house)


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"generate": False}, "generate"),
        ({"generate": True}, "generate"),
        ({"stream_id": "a"}, "stream_id"),
        ({"stream": "yes"}, "stream"),
        ({"background": "yes"}, "background"),
        ({"background": True, "store": False}, "store"),
        ({"model": 1}, "model"),
        ({"input": 5}, "input"),
    ],
)
def test_what_is_wrong_is_refused_by_name(house: House, members: Json, param: str) -> None:
    client = house.client()
    client.creates(**members)
    answer = client.answer()
    assert (answer.status, answer.error["param"]) == (400, param)
    assert house.world.exchanges() == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"model":'])
def test_what_is_no_object_is_refused(house: House, body: bytes) -> None:
    answer = house.client().asks(body=body)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


def test_members_of_null_are_absent(house: House) -> None:
    client = house.client()
    client.creates(generate=None, stream_id=None, background=None, stream=None, store=None)
    answered(house)
    assert client.answer().json["id"] == "resp_1"


# --- stream: true --------------------------------------------------------------------------


def test_events_are_streamed_as_they_are(house: House) -> None:
    client = house.client()
    client.creates(stream=True)
    events = turn_events([text_item()], "resp_1")
    house.sent().sends(*events[:5])
    assert client.stream() == events[:5]
    head = client.bytes_out.partition(b"\r\n\r\n")[0].lower()
    for header in (
        b"http/1.1 200",
        b"content-type: text/event-stream",
        b"cache-control: no-cache",
        b"x-accel-buffering: no",
        b"x-gateway-account: a",
    ):
        assert header in head
    house.sent().sends(*events[5:])
    answer = client.answer()
    assert answer.events == events
    assert b"[DONE]" not in answer.body
    assert not client.is_closed, "the answer ends, the connection stays"


def test_an_event_over_several_lines_is_one_event(house: House) -> None:
    client = house.client()
    client.creates(stream=True)
    created, *rest = turn_events([text_item()], "resp_1")
    pretty = json.dumps(created, indent=1).encode()
    house.sent().receiver.upstream_events([(b"response.created", pretty)])
    house.sent().sends(*rest)
    body = client.answer().body
    blocks = body.split(b"\n\n")
    lines = blocks[0].split(b"\n")
    assert lines[0] == b"event: response.created"
    data = b"\n".join(line.removeprefix(b"data: ") for line in lines[1:])
    assert data == pretty, "a reader of event streams gets back what the upstream sent"


@pytest.mark.parametrize("status", ["completed", "failed", "incomplete"])
def test_10_67_the_answer_ends_with_the_terminal_event(house: House, status: str) -> None:
    about: Json = {"status": status}
    if status == "failed":
        about["error"] = {"code": "context_length_exceeded", "message": "Too long."}
    if status == "incomplete":
        about["incomplete_details"] = {"reason": "max_output_tokens"}
    client = house.client()
    client.creates(stream=True)
    answered(house, **about)
    answer = client.answer()  # fails when it is not whole
    assert answer.events[-1]["type"] == f"response.{status}"


def test_a_refusal_before_anything_is_a_status(house: House) -> None:
    for stream in (True, False):
        client = house.client()
        client.creates(stream=stream)
        error = ApiError.invalid_request("No.", "input", "context_length_exceeded")
        house.sent().ends(error)
        answer = client.answer()
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        assert answer.headers["content-type"] == "application/json"


def test_a_refusal_after_a_sign_of_life_is_a_response_that_failed(house: House) -> None:
    client = house.client()
    client.creates(stream=True)
    house.world.clock.advance(20.1)
    assert client.bytes_out.endswith(b": keepalive\n\n\r\n"), "a comment, for typed clients"
    house.sent().ends(ApiError(400, "invalid_request_error", "Not that.", None))
    created, failed = client.answer().events
    assert (created["type"], created["sequence_number"]) == ("response.created", 0)
    assert (failed["type"], failed["sequence_number"]) == ("response.failed", 1)
    assert failed["response"]["id"] == created["response"]["id"]
    assert failed["response"]["error"] == {"code": "invalid_prompt", "message": "Not that."}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ApiError(429, "rate_limit_error", "Slow."), "rate_limit_exceeded"),
        (ApiError(502, "server_error", "Broken."), "server_error"),
        (ApiError(400, "x", "Long.", "context_length_exceeded"), "context_length_exceeded"),
    ],
)
def test_a_late_refusal_has_a_code_that_clients_know(
    house: House, error: ApiError, code: str
) -> None:
    client = house.client()
    client.creates(stream=True)
    house.world.clock.advance(20.1)
    house.sent().ends(error)
    assert client.answer().events[-1]["response"]["error"]["code"] == code


def test_an_upstream_that_breaks_in_the_output_ends_in_a_failure(house: House) -> None:
    client = house.client()
    client.creates(stream=True)
    house.sent().sends(*turn_events([text_item()], "resp_1")[:5])
    house.sent().ends()
    last = client.answer().events[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "server_error"


def test_signs_of_life_are_events_once_the_answer_has_begun(house: House) -> None:
    client = house.client()
    client.creates(stream=True)
    house.sent().sends(*turn_events([text_item()], "resp_1")[:5])
    house.world.clock.advance(20.1)
    assert client.stream()[-1] == {"type": "keepalive"}
    house.sent().ends()


# --- stream: false -------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["completed", "failed", "incomplete"])
def test_the_object_is_that_of_the_terminal_event(house: House, status: str) -> None:
    about: Json = {"status": status}
    if status == "failed":
        about["error"] = {"code": "invalid_prompt", "message": "Not that."}
    client = house.client()
    client.creates()
    events = turn_events([text_item()], "resp_1", **about)
    house.sent().sends(*events)
    answer = client.answer()
    assert (answer.status, answer.json) == (200, events[-1]["response"])
    assert answer.headers["x-gateway-account"] == "a"
    assert answer.headers["x-gateway-route"]


@pytest.mark.parametrize("how", ["broken", "abandoned"])
def test_an_object_that_broke_off_is_an_error_to_try_again_after(house: House, how: str) -> None:
    client = house.client()
    client.creates()
    house.sent().sends(*turn_events([text_item()], "resp_1")[:-1])
    if how == "broken":
        house.sent().ends()
    else:
        house.limiter.abandon()
    answer = client.answer()
    assert answer.error["type"] == "server_error"
    told = (answer.status, answer.error["code"], answer.headers.get("retry-after"))
    if how == "broken":
        assert told == (502, "upstream_error", None)
    else:
        assert told == (503, "gateway_restart", "5")


@pytest.mark.parametrize("status", [400, 429, 500])
def test_an_error_within_an_object_has_its_status(house: House, status: int) -> None:
    client = house.client()
    client.creates()
    error = {"type": "error", "status": status, "error": {"message": "Not that."}}
    house.sent().sends(*turn_events([text_item()], "resp_1")[:-1], error)
    answer = client.answer()
    assert (answer.status, answer.error["message"]) == (status, "Not that.")


def test_an_empty_output_is_filled(house: House) -> None:
    client = house.client()
    client.creates()
    house.sent().sends(*turn_events([text_item("there")], "resp_1", empty_output=True))
    assert client.answer().json["output"][0]["content"][0]["text"] == "there"


# --- the thread ----------------------------------------------------------------------------


def test_a_stored_response_can_be_continued(house: House) -> None:
    client = house.client()
    client.creates()
    answered(house)
    client.answer()
    client.creates(previous_response_id="resp_1", input="more")
    assert house.sent().body["previous_response_id"] == "resp_1"
    answered(house, "resp_2", previous_response_id="resp_1")
    assert client.answer().json["id"] == "resp_2"


def test_what_was_not_to_be_stored_cannot_be_continued(house: House) -> None:
    client = house.client()
    client.creates(store=False)
    answered(house, store=False)
    client.answer()
    client.creates(previous_response_id="resp_1")
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (400, "previous_response_not_found")
    assert answer.error["param"] == "previous_response_id"


def test_seals_outlive_what_was_not_to_be_stored(house: House) -> None:
    """Codex sends its whole history, sealed reasoning and all, with every request."""
    client = house.client()
    sealed = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "sealed"}
    client.creates(store=False)
    house.sent().sends(*turn_events([sealed, text_item()], "resp_1", store=False))
    client.answer()
    raw = json.dumps(sealed).encode()
    assert house.world.services.issuers.issuer_of(raw) == "a"


def test_another_tenant_cannot_continue_it(house: House) -> None:
    client = house.client()
    client.creates()
    answered(house)
    other = house.client("sk-desk")
    other.creates(previous_response_id="resp_1")
    assert other.answer().error["code"] == "previous_response_not_found"


def test_outputs_alone_are_no_session(house: House) -> None:
    """Requests have no connection in common: what is not named is not guessed."""
    client = house.client()
    client.creates(input=[call_output("call_1")])
    assert "previous_response_id" not in house.sent().body
    answered(house)


def test_each_request_is_a_connection_in_the_journal(house: House) -> None:
    client = house.client()
    for number in range(2):
        client.creates()
        answered(house, f"resp_{number}")
    first, second = house.world.turn_log.latest()
    assert first.connection.startswith("http-")
    assert first.connection != second.connection
    assert (first.key, first.status) == ("laptop", "completed")


# --- clients that are slow, or leave -------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_upstream(house: House, stream: bool) -> None:
    client = house.client()
    client.creates(stream=stream)
    house.sent().sends(*turn_events([text_item()], "resp_1")[:5])
    client.is_lost()
    assert house.sent().state == "cancelled"
    assert house.world.turn_log.latest()[-1].status == "cancelled"


def test_a_slow_client_pauses_its_own_upstream(house: House) -> None:
    slow, fast = house.client(), house.client()
    for client in (slow, fast):
        client.creates(stream=True)
    slow.transport.producer.pauseProducing()
    assert [exchange.paused for exchange in house.world.exchanges()] == [True, False]
    slow.transport.producer.resumeProducing()
    assert [exchange.paused for exchange in house.world.exchanges()] == [False, False]
    for exchange in house.world.exchanges():
        exchange.sends(*turn_events([text_item()], f"resp_{id(exchange)}"))


def test_pipelined_turns_run_one_after_the_other(house: House) -> None:
    client = house.client()
    client.creates(input="one")
    client.creates(input="two")
    assert len(house.world.exchanges()) == 1
    answered(house, "resp_1")
    assert house.sent().body["input"] == "two"
    answered(house, "resp_2")
    assert [client.answer().json["id"] for _ in range(2)] == ["resp_1", "resp_2"]


# --- background ----------------------------------------------------------------------------


@pytest.fixture
def patient(house: House) -> House:
    """A house whose account makes responses in the background."""
    account = house.world.accounts["a"]
    account.settings = msgspec.structs.replace(account.settings, background=True)
    return house


def test_background_is_answered_with_the_first_event_and_runs_on(patient: House) -> None:
    client = patient.client()
    client.creates(background=True)
    created, *rest = turn_events([text_item("late")], "resp_1", background=True)
    created["response"]["status"] = "queued"
    patient.sent().sends(created)
    patient.world.clock.advance(0)
    answer = client.answer()
    assert (answer.status, answer.json["id"], answer.json["status"]) == (200, "resp_1", "queued")
    client.is_lost()
    assert patient.sent().state == "running", "the turn needs its client no more"
    patient.sent().sends(*rest)
    record = patient.world.conversations.get("laptop", "resp_1")
    assert record is not None
    assert len(record.record.output) == 1, "its output can be continued"


def test_background_waits_for_an_event_with_a_response(patient: House) -> None:
    client = patient.client()
    client.creates(background=True)
    limits = {"type": "codex.rate_limits", "rate_limits": {}}
    patient.sent().sends(limits, *turn_events([text_item()], "resp_1"))
    assert client.answer().json["id"] == "resp_1"


def test_a_large_first_answer_does_not_stop_what_goes_on_behind_it(patient: House) -> None:
    """It fills the connection's buffers, and nobody tells the turn when they are empty."""
    client = patient.client()
    client.creates(background=True)
    send = client.transport.write

    def fills_up(data: bytes) -> None:
        send(data)
        client.transport.producer.pauseProducing()

    client.transport.write = fills_up
    created, *rest = turn_events([text_item("late")], "resp_1", background=True)
    patient.sent().sends(created)
    assert not patient.sent().paused, "the turn needs its client no more"
    client.transport.write = send
    client.transport.producer.resumeProducing()
    patient.sent().sends(*rest)
    assert patient.world.conversations.get("laptop", "resp_1") is not None


def test_a_background_refusal_is_a_status(patient: House) -> None:
    client = patient.client()
    client.creates(background=True)
    patient.sent().ends(ApiError.invalid_request("No.", "background"))
    assert client.answer().status == 400


def test_nobody_can_ever_ask_for_what_was_given_no_id(patient: House) -> None:
    client = patient.client()
    client.creates(background=True)
    client.is_lost()
    assert patient.sent().state == "cancelled"


def test_a_background_stream_does_not_need_its_client(patient: House) -> None:
    client = patient.client()
    client.creates(background=True, stream=True)
    events = turn_events([text_item()], "resp_1")
    patient.sent().sends(*events[:5])
    assert client.stream() == events[:5]
    client.transport.producer.pauseProducing()
    assert patient.sent().paused
    client.is_lost()
    assert (patient.sent().state, patient.sent().paused) == ("running", False)
    patient.sent().sends(*events[5:])
    assert patient.world.conversations.get("laptop", "resp_1") is not None


def test_the_stop_waits_for_what_runs_in_the_background(patient: House) -> None:
    client = patient.client()
    client.creates(background=True, stream=True)
    events = turn_events([text_item()], "resp_1")
    patient.sent().sends(*events[:5])
    client.is_lost()
    emptied: list[bool] = []
    patient.limiter.drain()
    patient.limiter.call_when_empty(lambda: emptied.append(True))
    assert emptied == []
    patient.limiter.abandon()
    assert emptied == [True]
    assert patient.sent().state == "cancelled"


# --- the stop ------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_when_time_is_up_turns_are_told(house: House, stream: bool) -> None:
    client = house.client()
    client.creates(stream=stream)
    house.sent().sends(*turn_events([text_item()], "resp_1")[:5])
    house.limiter.drain()
    house.limiter.abandon()
    answer = client.answer()
    if stream:
        assert answer.events[-1]["response"]["error"]["code"] == "server_error"
    else:
        assert (answer.status, answer.error["code"]) == (503, "gateway_restart")
    assert client.is_closed


# --- responses that the ledger does not hold ---------------------------------------------------


def test_what_the_ledger_forgot_is_continued_where_it_is_kept_with_two_keys_too(
    house: House,
) -> None:
    client = house.client()
    client.creates(input="one")
    answered(house)
    house.world.clock.advance(7 * 86_400)
    client.creates(input="two", previous_response_id="resp_1")
    sent = house.sent().body
    assert (sent["previous_response_id"], sent["input"]) == ("resp_1", "two")
    answered(house, "resp_2", previous_response_id="resp_1")
    assert client.answer().json["status"] == "completed"
    other = house.client("sk-desk")
    other.creates(input="three", previous_response_id="resp_1")
    assert other.answer().json["error"]["code"] == "previous_response_not_found"
