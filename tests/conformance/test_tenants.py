"""Tenants are separate: a client key sees only the response ids that it made (law 14)."""

from __future__ import annotations

import pytest

from tests.conformance.conftest import Rig
from tests.support.checks import assert_error, completed
from tests.support.events import Json, call_output, text_item, user

pytestmark = pytest.mark.conformance

CALL: Json = {
    "id": "fc_private",
    "type": "function_call",
    "status": "completed",
    "name": "shell",
    "arguments": "{}",
    "call_id": "call_private",
}


def test_two_tenants_never_see_each_others_ids(any_rig: Rig) -> None:
    mine, other = any_rig.connect(), any_rig.connect(key="key-desk")
    parent = completed(mine.turn(input=[user("secret")], store=True))["id"]
    events = other.turn(previous_response_id=parent, store=True)
    assert_error(events[-1], 400, "previous_response_not_found", "previous_response_id")
    assert len(any_rig.upstream.requests) == 1
    completed(mine.turn(previous_response_id=parent, store=True))


def test_two_tenants_do_not_share_calls(any_rig: Rig) -> None:
    """Law 7 looks for the call in this connection alone."""
    any_rig.upstream.queue(lambda e: e.answer([text_item("x"), {**CALL}]))
    completed(any_rig.connect().turn(store=True))
    client = any_rig.connect(key="key-desk")
    client.turn(input=[call_output("call_private")], store=True)
    for request in any_rig.upstream.requests[1:]:
        assert request.previous_response_id is None
        assert request.input == [call_output("call_private")]
