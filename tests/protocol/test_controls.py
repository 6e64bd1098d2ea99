"""Messages about a running response: what a service gets of them, and what its answers say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.protocol.controls import (
    Control,
    ControlAnswer,
    ControlMessage,
    is_answer,
    read_answer,
    with_response_id,
)
from gateway.protocol.request import read_members


def message(control: Control, text: str) -> ControlMessage:
    payload = text.encode()
    return ControlMessage(control, read_members(payload), payload)


def test_a_message_goes_on_as_it_came() -> None:
    text = '{ "type":"response.steer",\n"previous_response_id":"resp_1", "input" : "a\\u0062" }'
    steer = message(Control.STEER, text)
    assert steer.encoded("resp_1") == text.encode()
    assert (steer.response_id, steer.input) == ("resp_1", b'"a\\u0062"')


@pytest.mark.parametrize(
    ("control", "given", "expected"),
    [
        (
            Control.STEER,
            {"previous_response_id": "resp_ours", "input": [{"role": "user"}], "x": 1.50},
            {"previous_response_id": "resp_theirs", "input": [{"role": "user"}], "x": 1.50},
        ),
        (
            Control.INTERRUPT,
            {"response_id": "resp_theirs", "mode": "m", "stream_id": "lane"},
            {"response_id": "resp_theirs", "mode": "m"},
        ),
        (Control.INJECT, {"response_id": "resp_ours"}, {"response_id": "resp_theirs"}),
        (Control.CANCEL, {"stream_id": "lane"}, {}),
        (Control.CANCEL, {}, {}),
    ],
)
def test_the_service_gets_its_own_id_and_no_lane(
    control: Control, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    sent = message(control, json.dumps(given)).encoded("resp_theirs")
    assert json.loads(sent) == expected


@pytest.mark.parametrize(
    ("name", "event", "expected"),
    [
        (
            "response.interrupt.accepted",
            {"response_id": "resp_1"},
            ControlAnswer(Control.INTERRUPT, "accepted", "resp_1"),
        ),
        (
            "response.inject.created",
            {"response_id": "resp_1"},
            ControlAnswer(Control.INJECT, "created", "resp_1"),
        ),
        (
            "response.steer.pending",
            {"steer": {"id": "steer_1", "previous_response_id": "resp_1"}},
            ControlAnswer(Control.STEER, "pending", "resp_1", "steer_1"),
        ),
        ("response.steer.failed", {"steer": 5}, ControlAnswer(Control.STEER, "failed", None)),
        ("response.steer.failed", {}, ControlAnswer(Control.STEER, "failed", None)),
        ("response.steer.a.b", {"steer": {"id": 5}}, ControlAnswer(Control.STEER, "a.b", None)),
        ("response.inject.failed", 5, ControlAnswer(Control.INJECT, "failed", None)),
    ],
)
def test_an_answer_names_its_response(name: str, event: Any, expected: ControlAnswer) -> None:
    assert is_answer(name.encode())
    assert read_answer(name.encode(), json.dumps(event).encode()) == expected


def test_other_events_are_no_answers() -> None:
    for name in (b"response.created", b"response.steer", b"response.output_item.interrupted"):
        assert not is_answer(name)


def test_the_client_is_shown_its_own_id() -> None:
    steer = b'{"type":"x","steer":{"id":"s","previous_response_id":"resp_t","input":"a"},"n":7}'
    shown = with_response_id(b"response.steer.failed", steer, "resp_o")
    assert json.loads(shown) == {
        "type": "x",
        "steer": {"id": "s", "previous_response_id": "resp_o", "input": "a"},
        "n": 7,
    }
    failed = b'{"response_id":"resp_t","type":"x"}'
    shown = with_response_id(b"response.inject.failed", failed, "resp_o")
    assert json.loads(shown) == {"response_id": "resp_o", "type": "x"}
    for odd in (b"[]", b"{", b'{"steer":5}'):
        assert with_response_id(b"response.steer.failed", odd, "resp_o") == odd
