"""Alarms for the operator: red ones need action now, amber ones soon.

Alarms about load come from measurements and remember since when they hold.  Alarms about
accounts and the configuration come from the state that ``/status`` shows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import nlargest
from itertools import islice
from typing import Any, NamedTuple

from gateway.circuit_breaker import BreakerState
from gateway.protocol.error_classification import FaultKind
from gateway.reload import RejectedReload
from gateway.routing.account import Account
from gateway.routing.health import AccountState, Unavailable
from gateway.state.keeper import StateFigures

Alarm = dict[str, Any]
Shown = Mapping[str, Any]

#: The 99th percentile of the event loop's lag over a minute, in milliseconds, and for how many
#: seconds it is tolerated, because one delay affects the percentile for nearly a minute.
LAG_MS = 250.0
LAG_TOLERATED = 60.0

#: Shares of the memory's budget, and of the files that may be open.
MEMORY_AMBER, MEMORY_RED = 0.8, 0.9
FILES_AMBER, FILES_RED = 0.8, 0.95

#: Conversations that were used so recently should not be evicted, in seconds.
EVICTED_SECONDS = 600.0

#: Fewer turns in a minute prove nothing; the share of them that should not fail.
FEW_TURNS = 10
FAILED_SHARE = 0.1

#: Alarms that are shown one by one.
_MAX_ALARMS = 50

#: Accounts with an alarm of their own, and accounts that one alarm names.
_ONE_BY_ONE = 3
_NAMED = 8

#: Bound on the models that are checked, because clients choose the names.
_MAX_MODELS = 5

#: When no account takes a model for longer than this, the alarm is red, in seconds.
_LONG = 60.0

#: States that only the operator or a long time ends, with the level and the advice.
_LOST = {
    AccountState.UNAUTHORIZED: ("red", "replace its key or sign it in again, then clear; or pause"),
    AccountState.EXHAUSTED: ("amber", None),
}


def alarm(
    level: str,
    what: str,
    since: float | None,
    until: float | None = None,
    advice: str | None = None,
) -> Alarm:
    """One alarm, for JSON.

    :param since: unix seconds, as is ``until``, when it ends by itself.
    :param advice: what the operator can do.
    """
    return {"level": level, "what": what, "since": since, "until": until, "advice": advice}


def all_alarms(
    measured: Iterable[Alarm],
    accounts: Sequence[Account],
    shown: Sequence[Shown],
    rejected: RejectedReload | None,
    now: float,
) -> list[Alarm]:
    """All alarms, the red ones first.

    :param measured: those of :class:`MeasuredAlarms`.
    :param shown: the accounts as ``/status`` shows them.
    :param rejected: the last configuration, when it was not taken.
    :param now: unix seconds.
    """
    found = [
        *measured,
        *_unserved(accounts, shown, now),
        *_lost(shown),
        *_behind_proxies(accounts),
        *of_rejected(rejected),
    ]
    found.sort(key=lambda each: each["level"] != "red")
    return [dict(each) for each in found[:_MAX_ALARMS]]


# --- of measurements -----------------------------------------------------------------------


class Measurements(NamedTuple):
    """The measurements that alarms depend on.

    :ivar lag_ms: 99th percentile of the event loop's lag over the last minute.
    :ivar evicted: conversations that were evicted from memory in the last minute.
    :ivar evicted_age: seconds since the last use of the conversation that is next.
    :ivar turns: turns that ended in the last minute, without those that reached a limit of their
        key, which need no action.
    :ivar failed: those of them that failed.
    :ivar error: the error that most of them failed by.
    :ivar turned_away: whether clients are turned away because too many files are open.
    :ivar unrecorded: why request logs cannot be written, or None.
    :ivar kept: how the state is kept, or None.
    """

    lag_ms: float | None
    memory: int | None
    memory_budget: int | None
    files: int | None
    files_limit: int | None
    evicted: int
    evicted_age: float | None
    turns: int
    failed: int
    error: str | None = None
    turned_away: bool = False
    unrecorded: str | None = None
    kept: StateFigures | None = None


class Condition(NamedTuple):
    """A condition that holds.

    :ivar name: the identity of the alarm from one measurement to the next.
    :ivar advice: what helps.
    :ivar tolerated: for so many seconds it is no alarm.
    """

    name: str
    level: str
    what: str
    advice: str | None = None
    tolerated: float = 0.0


class MeasuredAlarms:
    """Remembers since when each condition holds."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._alarms: list[Alarm] = []

    def update(self, found: Iterable[Condition], now: float) -> None:
        """Take the conditions that hold now.

        :param now: unix seconds.
        """
        found = list(found)
        self._since = {each.name: min(self._since.get(each.name, now), now) for each in found}
        self._alarms = [
            alarm(each.level, each.what, self._since[each.name], advice=each.advice)
            for each in sorted(found, key=lambda each: each.level != "red")
            if now - self._since[each.name] >= each.tolerated
        ]

    def shown(self) -> list[Alarm]:
        """All of them, red ones first."""
        return self._alarms


def conditions(measured: Measurements) -> Iterator[Condition]:
    """The conditions that hold by these measurements."""
    if measured.lag_ms is not None and measured.lag_ms > LAG_MS:
        what = f"the event loop is {measured.lag_ms:.0f} ms late (p99)"
        advice = "every stream stutters: this process has more to do than one processor can"
        yield Condition("lag", "red", what, advice, LAG_TOLERATED)
    memory = _share(measured.memory, measured.memory_budget)
    if memory > MEMORY_AMBER:
        level = "red" if memory > MEMORY_RED else "amber"
        what = f"{memory:.0%} of the memory's budget is used"
        yield Condition(f"memory {level}", level, what, "the memory register says by what")
    files = _share(measured.files, measured.files_limit)
    if measured.turned_away:
        what = "clients are turned away: nearly all of the files that may be open are"
        yield Condition("files red", "red", what, "raise LimitNOFILE (ulimit -n)")
    elif files > FILES_AMBER:
        level = "red" if files > FILES_RED else "amber"
        what = f"{files:.0%} of the files that may be open are"
        yield Condition(f"files {level}", level, what, "raise LimitNOFILE (ulimit -n)")
    age = measured.evicted_age
    if measured.evicted and age is not None and age < EVICTED_SECONDS:
        what = f"conversations that were used {age / 60:.0f} minutes ago are evicted"
        yield Condition("ledger", "amber", what, "ledger.max_bytes is small")
    if measured.unrecorded is not None:
        what = f"no request log is written: {measured.unrecorded}"
        advice = "turns go on; mend it, then reload or record anew"
        yield Condition("request log", "amber", what, advice)
    if measured.kept is not None:
        yield from _unkept(measured.kept)
    yield from _failures(measured)


def _unkept(kept: StateFigures) -> Iterator[Condition]:
    if kept.writes.why is not None:
        what = f"the state cannot be kept in {kept.where}: {kept.writes.why}"
        advice = "turns go on from memory; a restart now would end conversations"
        yield Condition("state", "red", what, advice)
    if kept.unreadable:
        what = f"{kept.unreadable} values of the state were encrypted with another key"
        advice = "they are not used; set state.encryption_key to the one that was used before"
        yield Condition("state key", "amber", what, advice)


def _failures(measured: Measurements) -> Iterator[Condition]:
    if measured.turns < FEW_TURNS or measured.failed <= FAILED_SHARE * measured.turns:
        return
    most = "" if measured.error is None else f", most by {measured.error}"
    if measured.failed >= measured.turns:
        yield Condition("failures", "red", f"every turn of the last minute failed{most}")
    else:
        failed = f"{measured.failed / measured.turns:.0%} of the turns of the last minute failed"
        yield Condition("some failures", "amber", f"{failed}{most}")


def _share(part: int | None, whole: int | None) -> float:
    return part / whole if part and whole else 0.0


def of_state(kept: StateFigures | None) -> list[Alarm]:
    """The alarms about a state that this process keeps for its workers."""
    found = () if kept is None else _unkept(kept)
    since = None if kept is None else kept.writes.since
    return [alarm(each.level, each.what, since, None, each.advice) for each in found]


# --- of accounts and the configuration -----------------------------------------------------


def _unserved(accounts: Sequence[Account], shown: Sequence[Shown], now: float) -> Iterator[Alarm]:
    """No account is usable, or no account takes a model that some offer."""
    reasons = [each.unready() for each in accounts]
    if all(reasons):
        since = max(filter(None, (each["since"] for each in shown)), default=None)
        what = "no account is usable" + _first_reason(reasons)
        yield alarm("red", what, since, _soonest(reasons), "turns wait for a moment, then fail")
        return
    for model, limited in _limited_models(shown).items():
        others = (
            account
            for account, reason in zip(accounts, reasons, strict=True)
            if reason is None and account.name not in limited
        )
        if any(each.serves(model) for each in others):
            continue
        lacking = _reasons(accounts, model)
        if any(each.kind is FaultKind.RATE_LIMITED for each in lacking):
            until = _soonest(lacking)
            name = "requests without a model" if model is None else model[:100]
            level = "red" if until is None or until - now > _LONG else "amber"
            what = f"no account takes {name}{_first_reason(lacking)}"
            yield alarm(level, what, max(limited.values()), until)


def _limited_models(accounts: Sequence[Shown]) -> dict[str | None, dict[str, float]]:
    """The models that most accounts refuse for a while: the accounts, and since when."""
    limited: dict[str | None, dict[str, float]] = defaultdict(dict)
    for account in accounts:
        for each in account["models"]:
            if each["breaker"] != BreakerState.HALF_OPEN.value:
                limited[each["model"]][account["name"]] = each["since"]
    most = nlargest(_MAX_MODELS, limited, key=lambda model: len(limited[model]))
    return {model: limited[model] for model in most}


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


def _first_reason(reasons: Sequence[Unavailable | None]) -> str:
    """The reason of the account that comes back first; not of one that the operator took out."""
    known = [each for each in reasons if each is not None and (each.kind or each.until)]
    soonest = min(known, key=lambda each: each.resets_at or each.until or 0.0, default=None)
    return "" if soonest is None or not soonest.why else f": {soonest.why}"


def _lost(accounts: Sequence[Shown]) -> Iterator[Alarm]:
    """Accounts that only the operator or a long time makes available.

    An account that is being probed still counts, because probes may fail again and again.
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
    """Its state; if it is unproven, the state before that."""
    if account["state"] == AccountState.UNPROVEN.value:
        yield from islice((cooldown["state"] for cooldown in account["resting"].values()), 1)
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


def of_rejected(rejected: RejectedReload | None) -> Iterator[Alarm]:
    """The alarm about a configuration that was not taken."""
    if rejected is not None:
        what = f"a configuration was rejected: {rejected.error}"
        advice = "the one before stays in force; mend the file and reload"
        yield alarm("amber", what, rejected.at, None, advice)
