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

#: Turns in a minute, all of which failed.
ALL_FAILED = 10


class Signs(NamedTuple):
    """What alarms go by.

    :ivar lag_ms: 99th percentile of the event loop's lag over the last minute.
    :ivar evicted: conversations that the ledger forgot for want of room in the last minute.
    :ivar evicted_age: seconds since the last use of the one that is next.
    :ivar turns: that ended in the last minute.
    :ivar failed: those of them that failed.
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


class Finding(NamedTuple):
    """A condition that holds.

    :ivar name: it is the same alarm while the name is the same.
    :ivar forgiven: for so many seconds it is none.
    """

    name: str
    level: str
    what: str
    forgiven: float = 0.0


def findings(signs: Signs) -> Iterator[Finding]:
    """What is wrong."""
    if signs.lag_ms is not None and signs.lag_ms > LAG_MS:
        what = f"the event loop is {signs.lag_ms:.0f} ms late (p99)"
        yield Finding("lag", "red", what, LAG_FORGIVEN)
    memory = _share(signs.memory, signs.memory_budget)
    if memory > MEMORY_AMBER:
        level = "red" if memory > MEMORY_RED else "amber"
        yield Finding(f"memory {level}", level, f"{memory:.0%} of the memory's budget is used")
    files = _share(signs.files, signs.files_limit)
    if files > FILES_AMBER:
        level = "red" if files > FILES_RED else "amber"
        yield Finding(f"files {level}", level, f"{files:.0%} of the files that may be open are")
    age = signs.evicted_age
    if signs.evicted and age is not None and age < EVICTED_SECONDS:
        what = f"the ledger forgets conversations that were used {age / 60:.0f} minutes ago"
        yield Finding("ledger", "amber", f"{what}: ledger.max_bytes is small")
    if signs.failed >= ALL_FAILED and signs.failed == signs.turns:
        yield Finding("failures", "red", "every turn of the last minute failed")


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
            {"level": each.level, "what": each.what, "since": self._since[each.name]}
            for each in sorted(found, key=lambda each: each.level != "red")
            if now - self._since[each.name] >= each.forgiven
        ]

    def shown(self) -> list[dict[str, Any]]:
        """All of them, red ones first, for JSON."""
        return self._alarms


def _share(part: int | None, whole: int | None) -> float:
    return part / whole if part and whole else 0.0
