"""What the operator is told of accounts that do not serve: which, why, until when, what helps."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.protocol.error_classification import Fault, FaultKind
from gateway.upstream.proxy import UnavailableProxy
from tests.admin.stage import Admin, Way
from tests.admin.test_openapi import check
from tests.turn.fakes import World

DAY = 86_400.0
LIMITED = "429 rate_limit_exceeded"


@pytest.fixture
def admin() -> Admin:
    return Admin(accounts=3)


def refuse(admin: Admin, name: str, kind: FaultKind, why: str, seconds: float | None) -> None:
    """An account refuses a turn."""
    until = None if seconds is None else admin.clock.seconds() + seconds
    admin.world.accounts[name].health.refused("gpt-5.5", Fault(kind, why, until))


def bar(admin: Admin, *names: str) -> None:
    """The proxy of these accounts is broken."""
    way: Any = Way(UnavailableProxy("the proxy refused the connection", admin.clock.seconds() + 30))
    for name in names:
        admin.world.accounts[name]._egress = way


def told(admin: Admin) -> list[tuple[str, str]]:
    """Levels and texts of all alarms, which are as they are described."""
    alarms = admin.json("/status")["alarms"]
    for each in alarms:
        check("Alarm", each)
    return [(each["level"], each["what"]) for each in alarms]


def shown(admin: Admin, name: str) -> Any:
    accounts = admin.json("/status/accounts")["accounts"]
    return next(each for each in accounts if each["name"] == name)


def test_a_rest_of_requests_without_a_model_blocks_no_account(admin: Admin) -> None:
    for name, account in admin.world.accounts.items():
        limited = Fault(FaultKind.RATE_LIMITED, LIMITED, admin.clock.seconds() + 30)
        account.health.refused(None, limited)
        assert shown(admin, name)["state"] == "ready"
    assert admin.ask("/readyz").status == 200
    assert [what for level, what in told(admin) if level == "red"] == []


def test_a_full_account_behind_a_broken_proxy_is_not_ready(admin: Admin) -> None:
    first = next(iter(admin.world.accounts))
    admin.world.accounts[first]._max_in_flight = 0
    bar(admin, first)
    assert shown(admin, first)["state"] == "cooling"
    assert any(first in what for _, what in told(admin))


# --- a broken proxy ------------------------------------------------------------------------------


def test_an_account_behind_a_broken_proxy_is_not_ready(admin: Admin) -> None:
    bar(admin, "b")
    found = shown(admin, "b")
    assert (found["state"], found["why"]) == ("cooling", "the proxy refused the connection")
    assert found["until"] == admin.clock.seconds() + 30
    assert found["since"] is None, "nobody knows since when"
    check("Account", found)
    assert shown(admin, "a")["state"] == "ready"


def test_the_accounts_behind_one_proxy_are_one_alarm(admin: Admin) -> None:
    bar(admin, "a", "c")
    assert told(admin) == [("amber", "a, c cannot be reached: the proxy refused the connection")]
    assert admin.ask("/readyz").status == 200, "one account is left"


def test_a_gateway_whose_accounts_are_all_behind_a_broken_proxy_is_not_ready(admin: Admin) -> None:
    bar(admin, "a", "b", "c")
    answer = admin.ask("/readyz")
    assert (answer.status, answer.json) == (503, {"status": "no account is usable"})
    level, what = told(admin)[0]
    assert level == "red"
    assert what == "no account is usable: the proxy refused the connection"


def test_what_the_operator_wants_comes_before_the_proxy(admin: Admin) -> None:
    bar(admin, "a")
    admin.world.accounts["a"].health.disable()
    assert (shown(admin, "a")["state"], shown(admin, "a")["why"]) == ("disabled", "the operator")
    assert told(admin) == []


def test_an_account_that_is_full_for_the_moment_is_ready(admin: Admin) -> None:
    admin.world.accounts["a"]._max_in_flight = 0
    found = shown(admin, "a")
    assert (found["state"], found["why"], found["until"]) == ("ready", None, None)


# --- accounts that are lost ----------------------------------------------------------------------


def test_a_used_up_account_says_when_its_limit_resets_and_when_it_is_tried(admin: Admin) -> None:
    refuse(admin, "a", FaultKind.EXHAUSTED, "used up", 4 * DAY)
    now = admin.clock.seconds()
    found = shown(admin, "a")
    assert found["until"] <= now + 600
    assert found["resets_at"] == now + 4 * DAY
    (alarm,) = admin.json("/status")["alarms"]
    assert (alarm["level"], alarm["what"]) == ("amber", "a is exhausted: used up")
    assert alarm["until"] == now + 4 * DAY


def test_an_account_without_a_valid_key_says_what_helps(admin: Admin) -> None:
    refuse(admin, "a", FaultKind.UNAUTHORIZED, "401 invalid_api_key", None)
    (alarm,) = admin.json("/status")["alarms"]
    assert alarm["what"] == "a is unauthorized: 401 invalid_api_key"
    assert "key" in alarm["advice"]


def test_many_lost_accounts_are_one_line_and_red_comes_first() -> None:
    admin = Admin(accounts=8)
    for name in "abcd":
        refuse(admin, name, FaultKind.EXHAUSTED, "used up", DAY)
    for name in "efgh":
        refuse(admin, name, FaultKind.UNAUTHORIZED, "401", None)
    assert told(admin)[1:] == [
        ("red", "4 accounts are unauthorized: e, f, g, h"),
        ("amber", "4 accounts are exhausted: a, b, c, d"),
    ]
    assert told(admin)[0][1].startswith("no account is usable")


def test_what_to_act_on_comes_before_what_to_look_at(admin: Admin) -> None:
    for name in "ab":
        refuse(admin, name, FaultKind.RATE_LIMITED, LIMITED, 20)
    refuse(admin, "c", FaultKind.UNAUTHORIZED, "401", None)
    assert [level for level, _ in told(admin)] == ["red", "amber"]


# --- models that nobody takes --------------------------------------------------------------------


def test_a_model_that_rests_on_every_account_is_an_alarm(admin: Admin) -> None:
    for name in "ab":
        refuse(admin, name, FaultKind.RATE_LIMITED, LIMITED, 20)
    assert told(admin) == [], "the third account still takes it"
    refuse(admin, "c", FaultKind.RATE_LIMITED, LIMITED, 20)
    assert told(admin) == [("amber", f"no account takes gpt-5.5: {LIMITED}")]
    assert admin.json("/status")["state"] == "degraded"
    assert admin.ask("/readyz").status == 200, "it may well take other models"


def test_a_model_that_nobody_takes_for_long_is_red(admin: Admin) -> None:
    for name in "abc":
        refuse(admin, name, FaultKind.RATE_LIMITED, LIMITED, 300)
    (alarm,) = admin.json("/status")["alarms"]
    assert alarm["level"] == "red"
    assert alarm["until"] >= admin.clock.seconds() + 300


def test_a_name_that_a_client_made_up_is_no_alarm(admin: Admin) -> None:
    for name in "abc":
        refuse(admin, name, FaultKind.MODEL_REFUSED, "404 model_not_found", None)
    assert told(admin) == []


def test_a_model_that_its_only_account_is_too_busy_for_is_no_alarm() -> None:
    admin = Admin(world=World(2))
    refuse(admin, "a", FaultKind.RATE_LIMITED, LIMITED, 20)
    admin.world.accounts["b"]._max_in_flight = 0
    assert told(admin) == []
