"""What somebody should look at: of the accounts and the configuration, and of what is measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from heapq import nlargest
from itertools import islice
from typing import Any

from gateway.admin.running import Running
from gateway.circuit_breaker import BreakerState
from gateway.metrics.alarms import alarm
from gateway.protocol.error_classification import FaultKind
from gateway.routing.account import Account
from gateway.routing.health import AccountState, Unavailable

Alarm = dict[str, Any]
Shown = Mapping[str, Any]

#: Alarms that are shown one by one.
_MAX_ALARMS = 50

#: Accounts that are told one by one, and that are named where there are more of the same.
_ONE_BY_ONE = 3
_NAMED = 8

#: Models that are looked at: clients make such names up.
_MAX_MODELS = 5

#: A model that no account takes for longer than this waits for somebody, in seconds.
_LONG = 60.0

#: What an account waits for somebody because of, how bad that is, and what helps.
_LOST = {
    AccountState.UNAUTHORIZED: ("red", "replace its key or sign it in again, then clear; or pause"),
    AccountState.EXHAUSTED: ("amber", None),
}


def alarms(running: Running, accounts: Sequence[Shown]) -> list[Alarm]:
    """All of them, the red ones first.

    :param accounts: as they are shown.
    """
    found = [
        *running.figures.alarms(),
        *_nobody(running, accounts),
        *_lost(accounts),
        *_behind_proxies(running.services.pool.accounts),
        *_rejected(running),
    ]
    found.sort(key=lambda each: each["level"] != "red")
    return [dict(each) for each in found[:_MAX_ALARMS]]


def _nobody(running: Running, shown: Sequence[Shown]) -> Iterator[Alarm]:
    """Nobody serves at all, or nobody serves a model that they have."""
    accounts = running.services.pool.accounts
    reasons = [each.unready() for each in accounts]
    if all(reasons):
        since = max(filter(None, (each["since"] for each in shown)), default=None)
        what = "no account is usable" + _first_of(reasons)
        yield alarm("red", what, since, _soonest(reasons), "turns wait for a moment, then fail")
        return
    for model, rests in _resting(shown).items():
        others = (
            account
            for account, reason in zip(accounts, reasons, strict=True)
            if reason is None and account.name not in rests
        )
        if any(each.serves(model) for each in others):
            continue
        lacking = _reasons(accounts, model)
        if any(each.kind is FaultKind.RATE_LIMITED for each in lacking):
            until = _soonest(lacking)
            name = "requests without a model" if model is None else model[:100]
            level = "red" if until is None or until - running.now() > _LONG else "amber"
            what = f"no account takes {name}{_first_of(lacking)}"
            yield alarm(level, what, max(rests.values()), until)


def _resting(accounts: Sequence[Shown]) -> dict[str | None, dict[str, float]]:
    """Models that rest, on which accounts, and since when; those that rest on most accounts."""
    rests: dict[str | None, dict[str, float]] = defaultdict(dict)
    for account in accounts:
        for each in account["models"]:
            if each["breaker"] != BreakerState.HALF_OPEN.value:
                rests[each["model"]][account["name"]] = each["since"]
    most = nlargest(_MAX_MODELS, rests, key=lambda model: len(rests[model]))
    return {model: rests[model] for model in most}


def _reasons(accounts: Sequence[Account], model: str | None) -> list[Unavailable]:
    """Why each account that offers ``model`` does not take it; nothing when one does."""
    reasons = []
    for account in accounts:
        if account.serves(model):
            found = account.unavailable(model)
            if found is None or found.state is AccountState.READY:
                return []
            reasons.append(found)
    return reasons


def _soonest(reasons: Sequence[Unavailable | None]) -> float | None:
    untils = (each.resets_at or each.until for each in reasons if each is not None)
    return min((at for at in untils if at is not None), default=None)


def _first_of(reasons: Sequence[Unavailable | None]) -> str:
    """Why, by the account that comes back first; not by one that the operator took out."""
    known = [each for each in reasons if each is not None and (each.kind or each.until)]
    soonest = min(known, key=lambda each: each.resets_at or each.until or 0.0, default=None)
    return "" if soonest is None or not soonest.why else f": {soonest.why}"


def _lost(accounts: Sequence[Shown]) -> Iterator[Alarm]:
    """Accounts that nobody but the operator, or a long time, brings back.

    That one is tried meanwhile changes nothing: it may be tried again and again.
    """
    for state, (level, advice) in _LOST.items():
        lost = [each for each in accounts if state.value in _because_of(each)]
        if len(lost) > _ONE_BY_ONE:
            what = f"{len(lost)} accounts are {state.value}: {_some(lost)}"
            yield alarm(level, what, max(each["since"] for each in lost), None, advice)
            continue
        for each in lost:
            until = each["resets_at"] if state is AccountState.EXHAUSTED else None
            why = f": {each['why']}" if each["why"] else ""
            yield alarm(
                level, f"{each['name']} is {state.value}{why}", each["since"], until, advice
            )


def _because_of(account: Shown) -> Iterator[str]:
    """Its state; where it is unproven, the one that it came from."""
    if account["state"] == AccountState.UNPROVEN.value:
        yield from islice((rest["state"] for rest in account["resting"].values()), 1)
    else:
        yield account["state"]


def _behind_proxies(accounts: Sequence[Account]) -> Iterator[Alarm]:
    """Accounts that cannot be reached, by the reason that those behind one proxy share."""
    behind: dict[str, list[Shown]] = defaultdict(list)
    for account in accounts:
        if account.health.state is AccountState.READY and (barred := account.unready()):
            behind[barred.why].append({"name": account.name})
    for why, those in behind.items():
        what = f"{_some(those)} cannot be reached: {why}"
        yield alarm("amber", what, None, None, "look after the proxy, then clear")


def _some(accounts: Sequence[Shown]) -> str:
    named = ", ".join(each["name"] for each in islice(accounts, _NAMED))
    return named if len(accounts) <= _NAMED else f"{named} and {len(accounts) - _NAMED} more"


def _rejected(running: Running) -> Iterator[Alarm]:
    rejected = running.configuration.last_rejected()
    if rejected is not None:
        what = f"a configuration was rejected: {rejected.error}"
        advice = "the one before stays in force; mend the file and reload"
        yield alarm("amber", what, rejected.at, None, advice)
