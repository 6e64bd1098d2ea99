"""The accounts: state and reason, quotas, load, and what the operator may do with each."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gateway.admin.running import Running
from gateway.config.settings import without_credentials
from gateway.routing.account import Account
from gateway.routing.health import AccountState
from gateway.routing.router import AccountPool

#: Conversations that are counted by account; more would stop the streams for too long.
_COUNTED = 20_000

#: What can be done with an account in each state; the rest can always be done.
_ACTIONS = {
    AccountState.DISABLED: ("resume",),
    AccountState.DRAINING: ("pause", "resume"),
}
_SERVING = ("pause", "drain")

#: States in which accounts are tried again and again; each try forgets since when.
_RESTS = frozenset(("cooling", "exhausted", "unauthorized", "unproven"))
_ALWAYS = ("clear", "probe")


def accounts(running: Running) -> dict[str, Any]:
    """All accounts, in the operator's order."""
    pool = running.services.pool
    pinned = conversations_by_account(pool)
    return {
        "accounts": [
            {**account(running, each), "pinned": pinned[each.name]} for each in pool.accounts
        ]
    }


def conversations_by_account(pool: AccountPool) -> Counter[str]:
    """How many of the conversations that were used last are at home at each account."""
    return Counter(binding.account for _, binding in pool.bindings.items(_COUNTED))


def account(running: Running, account: Account) -> dict[str, Any]:
    """One account, without what takes a look at all conversations."""
    settings = account.settings
    health = {**account.health.snapshot(), **_besides_its_health(account)}
    if health["state"] in _RESTS:
        told = (health["since"], running.figures.unwell_since(account.name))
        health["since"] = min((at for at in told if at is not None), default=None)
    return {
        "name": account.name,
        **health,
        "in_flight": account.in_flight,
        "max_in_flight": settings.max_in_flight,
        "turns": account.turns,
        "failures": account.failures,
        **running.figures.account(account.name),
        "continuity": {"setting": settings.continuity, "learned": account.learned.continuity()},
        "learned": account.learned.shown(),
        "base_url": without_credentials(settings.base_url),
        "serves": list(settings.models),
        "weight": settings.weight,
        "priority": settings.priority,
        "actions": [*_ACTIONS.get(account.health.state, _SERVING), *_ALWAYS],
    }


def state(account: Account) -> AccountState:
    """The state that is shown: a broken proxy makes every account behind it rest, too."""
    found = account.health.state
    if found is AccountState.READY and (barred := account.unready()) is not None:
        return barred.state
    return found


def _besides_its_health(account: Account) -> dict[str, Any]:
    """What keeps turns away from a healthy account for a while: its proxy, its rate.

    Whether it is full changes all the time, and is to be seen beside.
    """
    if account.health.state is not AccountState.READY:
        return {}
    barred = account.unready()
    if barred is not None:
        shown = {"state": barred.state.value, "why": barred.why, "until": barred.until}
        return {**shown, "since": None}
    full = account.unavailable(None)
    if full is None or full.until is None or full.state is not AccountState.READY:
        return {}
    return {"why": full.why, "until": full.until}
