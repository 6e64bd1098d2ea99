"""The accounts: state and reason, quotas, load, and what the operator may do with each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from gateway.admin.running_gateway import RunningGateway
from gateway.config.settings import without_credentials
from gateway.metrics.collector import UNAVAILABLE
from gateway.routing.account import Account
from gateway.routing.health import AccountState
from gateway.routing.router import AccountPool

#: Conversations that are counted by account; more would stop the streams for too long.
_COUNTED = 20_000

#: Bound on a reason from an upstream, in characters.
_MAX_WHY = 300

#: Actions that an account in each state allows, besides those that are always allowed.
_ACTIONS = {
    AccountState.DISABLED: ("resume",),
    AccountState.DRAINING: ("pause", "resume"),
}
_ACTIONS_IN_SERVICE = ("pause", "drain")
_ACTIONS_ALWAYS = ("clear", "probe")


def accounts(running: RunningGateway) -> list[dict[str, Any]]:
    """All accounts, in the operator's order."""
    pool = running.services.pool
    pinned = _conversations_by_account(pool)
    return [{**account(running, each), "pinned": pinned[each.name]} for each in pool.accounts]


def _conversations_by_account(pool: AccountPool) -> Counter[str]:
    """How many of the most recently used conversations are bound to each account."""
    return Counter(binding.account for _, binding in pool.bindings.items(_COUNTED))


def account(running: RunningGateway, account: Account) -> dict[str, Any]:
    """One account, without the count of its conversations."""
    settings = account.settings
    health = {**account.health.snapshot(), **_limits_besides_health(account)}
    if AccountState(health["state"]) in UNAVAILABLE:  # each try resets the account's own time
        known = (health["since"], running.metrics.unavailable_since(account.name))
        health["since"] = min((at for at in known if at is not None), default=None)
    return {
        "name": account.name,
        **health,
        "in_flight": account.in_flight,
        "max_in_flight": settings.max_in_flight,
        "turns": account.turns,
        "failures": account.failures,
        "transport": settings.transport,
        "websockets": websockets(account),
        **running.metrics.account(account.name),
        "continuity": {"setting": settings.continuity, "learned": account.learned.continuity()},
        "learned": account.learned.shown(),
        "base_url": without_credentials(settings.base_url),
        "serves": list(settings.models),
        "weight": settings.weight,
        "priority": settings.priority,
        "actions": [
            *_ACTIONS.get(account.health.state, _ACTIONS_IN_SERVICE),
            *_ACTIONS_ALWAYS,
        ],
    }


def websockets(account: Account) -> dict[str, Any] | None:
    """The account's WebSockets; None if it is reached over HTTP only.

    ``{in_use, idle, opening, most, opened, lost: {reason: count}, unavailable: {why, until},
    forgets_until}``.
    """
    found = account.upstream.sockets()
    if found is None:
        return None
    why, until = found.why_unavailable, found.unavailable_until
    return {
        "in_use": found.in_use,
        "idle": found.idle,
        "opening": found.opening,
        "most": found.most,
        "opened": found.opened,
        "lost": dict(found.lost),
        "unavailable": None if why is None else {"why": why[:_MAX_WHY], "until": until},
        "forgets_until": found.forgets_until,
    }


def state(account: Account) -> AccountState:
    """The state that is shown: a failed proxy makes every account behind it unavailable."""
    found = account.health.state
    if found is AccountState.READY and (barred := account.unready()) is not None:
        return barred.state
    return found


def used_share(window: Mapping[str, Any]) -> float | None:
    """The used part of a quota window, from 0 to 1; None when it is not known.

    Some upstreams report the share that is used, others what is left of the limit.
    """
    percent, left, limit = window["used_percent"], window["remaining"], window["limit"]
    if percent is not None:
        return float(percent) / 100
    return None if left is None or not limit else float(limit - left) / float(limit)


def _limits_besides_health(account: Account) -> dict[str, Any]:
    """What keeps turns away from a healthy account for a while: its proxy, its request rate.

    Whether it is full changes all the time and is shown by its turns in flight.
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
