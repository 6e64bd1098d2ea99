"""What somebody should look at: red where somebody should act now, amber where soon.

What can be seen of an account or of the configuration without measuring is not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

#: The 99th percentile of the event loop's lag over a minute, in milliseconds, and for how many
#: seconds it is forgiven: a window of a minute remembers one bad moment for nearly as long.
LAG_MS = 250.0
LAG_FORGIVEN = 60.0

#: Shares of the memory's budget, and of the files that may be open.
MEMORY_AMBER, MEMORY_RED = 0.8, 0.9
FILES_AMBER, FILES_RED = 0.8, 0.95

#: Conversations that were used so short ago should not have to make room, in seconds.
EVICTED_SECONDS = 600.0

#: Fewer turns in a minute tell nothing; the share of them that should not fail.
FEW_TURNS = 10
FAILED_SHARE = 0.1


class Signs(NamedTuple):
    """What alarms go by.

    :ivar lag_ms: 99th percentile of the event loop's lag over the last minute.
    :ivar evicted: conversations that the ledger forgot for want of room in the last minute.
    :ivar evicted_age: seconds since the last use of the one that is next.
    :ivar turns: that ended in the last minute, without those that met a limit of their key:
        a client that asks on and on is nothing to act on.
    :ivar failed: those of them that failed.
    :ivar error: the one that most of them failed by.
    :ivar turned_away: whether clients are, for want of files.
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


class Finding(NamedTuple):
    """A condition that holds.

    :ivar name: it is the same alarm while the name is the same.
    :ivar advice: what helps.
    :ivar forgiven: for so many seconds it is none.
    """

    name: str
    level: str
    what: str
    advice: str | None = None
    forgiven: float = 0.0


def alarm(
    level: str,
    what: str,
    since: float | None,
    until: float | None = None,
    advice: str | None = None,
) -> dict[str, Any]:
    """One alarm, for JSON.

    :param since: unix seconds, as is ``until``, when it ends by itself.
    :param advice: what somebody can do.
    """
    return {"level": level, "what": what, "since": since, "until": until, "advice": advice}


def findings(signs: Signs) -> Iterator[Finding]:
    """What is wrong."""
    if signs.lag_ms is not None and signs.lag_ms > LAG_MS:
        what = f"the event loop is {signs.lag_ms:.0f} ms late (p99)"
        advice = "every stream stutters: this process has more to do than one processor can"
        yield Finding("lag", "red", what, advice, LAG_FORGIVEN)
    memory = _share(signs.memory, signs.memory_budget)
    if memory > MEMORY_AMBER:
        level = "red" if memory > MEMORY_RED else "amber"
        what = f"{memory:.0%} of the memory's budget is used"
        yield Finding(f"memory {level}", level, what, "the memory register says by what")
    files = _share(signs.files, signs.files_limit)
    if signs.turned_away:
        what = "clients are turned away: nearly all of the files that may be open are"
        yield Finding("files red", "red", what, "raise LimitNOFILE (ulimit -n)")
    elif files > FILES_AMBER:
        level = "red" if files > FILES_RED else "amber"
        what = f"{files:.0%} of the files that may be open are"
        yield Finding(f"files {level}", level, what, "raise LimitNOFILE (ulimit -n)")
    age = signs.evicted_age
    if signs.evicted and age is not None and age < EVICTED_SECONDS:
        what = f"the ledger forgets conversations that were used {age / 60:.0f} minutes ago"
        yield Finding("ledger", "amber", what, "ledger.max_bytes is small")
    yield from _failures(signs)


def _failures(signs: Signs) -> Iterator[Finding]:
    if signs.turns < FEW_TURNS or signs.failed <= FAILED_SHARE * signs.turns:
        return
    most = "" if signs.error is None else f", most by {signs.error}"
    if signs.failed >= signs.turns:
        yield Finding("failures", "red", f"every turn of the last minute failed{most}")
    else:
        failed = f"{signs.failed / signs.turns:.0%} of the turns of the last minute failed"
        yield Finding("some failures", "amber", f"{failed}{most}")


class Alarms:
    """Remembers since when each condition holds."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._alarms: list[dict[str, Any]] = []

    def update(self, found: Iterable[Finding], now: float) -> None:
        """These hold now.

        :param now: unix seconds.
        """
        found = list(found)
        self._since = {each.name: min(self._since.get(each.name, now), now) for each in found}
        self._alarms = [
            alarm(each.level, each.what, self._since[each.name], advice=each.advice)
            for each in sorted(found, key=lambda each: each.level != "red")
            if now - self._since[each.name] >= each.forgiven
        ]

    def shown(self) -> list[dict[str, Any]]:
        """All of them, red ones first, for JSON."""
        return self._alarms


def _share(part: int | None, whole: int | None) -> float:
    return part / whole if part and whole else 0.0
