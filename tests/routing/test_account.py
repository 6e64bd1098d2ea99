"""What stays of an account when a reload describes it otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from gateway.routing.account import Account, Lease
from gateway.routing.selection import Selection
from tests.routing.pools import Basin, wanted


def place(basin: Basin) -> Lease:
    choice = basin.pool.choose(wanted())
    assert isinstance(choice, Selection), f"expected a place, got {choice}"
    return choice.lease


def reloaded(basin: Basin, **settings: Any) -> Account:
    """The one account is made anew, with these settings."""
    [former] = basin.pool.accounts
    account = basin.account("a", **settings)
    account.inherit(former)
    basin.pool.reconfigure([account], basin.pool.routing)
    return account


def test_turns_that_run_on_take_places_after_a_reload() -> None:
    basin = Basin("a", accounts={"a": {"max_in_flight": 2}})
    running = [place(basin), place(basin)]
    reloaded(basin, max_in_flight=2, weight=2)
    assert "max_in_flight" in basin.nobody().reasons[0].why
    reloaded(basin, max_in_flight=3, weight=2)
    running.append(place(basin))
    basin.nobody()
    running.pop(0).release()
    running.append(place(basin))
    basin.nobody()
    for each in running:
        each.release()
    running = [place(basin) for _ in range(3)]
    basin.nobody()


def test_reloads_keep_no_account_without_turns() -> None:
    basin = Basin("a")
    held = place(basin)
    for weight in range(1, 50):
        account = reloaded(basin, weight=weight)
        assert len(account._former) == 1
    held.release()
    assert reloaded(basin)._former == ()


@pytest.mark.parametrize("per_minute", [2, 3])
def test_the_minute_goes_on_over_a_reload(per_minute: int) -> None:
    basin = Basin("a", accounts={"a": {"requests_per_minute": 2}})
    basin.goes()
    basin.goes()
    basin.clock.advance(10)
    reloaded(basin, requests_per_minute=per_minute, weight=2)
    for _ in range(per_minute - 2):
        basin.goes()
    [full] = basin.nobody().reasons
    assert full.until is not None
    assert 50 <= full.until - basin.now <= 50.25
    basin.clock.advance(50.25)
    basin.goes()


def test_another_credential_begins_anew() -> None:
    basin = Basin("a", accounts={"a": {"max_in_flight": 1, "requests_per_minute": 1}})
    held = place(basin)
    [former] = basin.pool.accounts
    about = structs.replace(former.settings, key="sk-another")
    account = Account(about, former.upstream, basin.clock.seconds)
    account.inherit(former)
    basin.pool.reconfigure([account], basin.pool.routing)
    place(basin).release()
    held.release()
