"""What attempts teach of an account's quotas, however it is told (protocol.md §4.5, §5.2)."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.protocol.errors import ApiError
from tests.support.events import opening, response_object, text_item, turn_events, user
from tests.turn.fakes import FakeExchange, World

SPENT = {"x-codex-primary-used-percent": "100", "x-codex-primary-reset-after-seconds": "900"}


def spent(status: int = 429) -> ApiError:
    return ApiError(status, "usage_limit_reached", "Used up.", hints=SPENT)


def over_http(exchange: FakeExchange) -> None:
    exchange.ends(spent())


def in_an_error_event(exchange: FakeExchange) -> None:
    told: dict[str, Any] = {"type": "error", **response_error(), "headers": SPENT}
    exchange.sends(told)


def after_output(exchange: FakeExchange) -> None:
    exchange.sends(*turn_events([text_item()], "resp_1")[:-1])
    exchange.ends(spent())


def beside_an_answer(exchange: FakeExchange) -> None:
    exchange.receiver.upstream_answered(SPENT)
    exchange.sends(*turn_events([text_item()], "resp_1"))


def in_an_event(exchange: FakeExchange) -> None:
    window = {"used_percent": 100, "reset_after_seconds": 900}
    limits = {"type": "codex.rate_limits", "rate_limits": {"primary": window}}
    exchange.sends(*opening(response_object("resp_1")), limits)
    exchange.sends(*turn_events([text_item()], "resp_1")[2:])


def response_error() -> dict[str, Any]:
    return {"status": 429, "error": {"type": "usage_limit_reached", "message": "Used up."}}


@pytest.mark.parametrize(
    "tells", [over_http, in_an_error_event, after_output, beside_an_answer, in_an_event]
)
def test_a_used_up_quota_is_known_however_it_was_told(tells: Any) -> None:
    world = World()
    world.turn([user("hi")]).start()
    tells(world.exchanges()[0])
    [window] = world.accounts["a"].health.snapshot()["windows"]
    assert (window["name"], window["used_percent"]) == ("codex primary", 100.0)
    assert window["resets_at"] == world.clock.seconds() + 900
    world.check_rest()
