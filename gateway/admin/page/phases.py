"""Where the time of a turn went."""

from __future__ import annotations

from typing import NamedTuple

from gateway.admin.page.source import Json

#: In the order a turn goes through them, and what the page calls them.
PHASES = ("queue", "choose", "connect", "first byte", "stream")


class TurnSpan(NamedTuple):
    """A part of a turn's time, in milliseconds from when it was accepted."""

    name: str
    begin: float
    end: float


def phases(turn: Json) -> list[TurnSpan]:
    """Those of a turn record that are known; the attempt that answered is the last one.

    Failed attempts before it count as choosing: the turn had no account yet.
    """
    attempts = turn.get("attempts") or [{}]
    last = attempts[-1]
    ends = (
        turn.get("queued_ms"),
        last.get("chosen_ms"),
        last.get("connected_ms"),
        last.get("first_byte_ms"),
        turn.get("duration_ms"),
    )
    found = []
    begin = 0.0
    reached = 0
    for number, (name, end) in enumerate(zip(PHASES, ends, strict=True)):
        if end is None or end < begin:
            continue
        # what a turn ended in is the phase it had not got through, not the last of all
        if number == len(PHASES) - 1 and last.get("first_byte_ms") is None:
            name = PHASES[reached]
        found.append(TurnSpan(name, begin, end))
        begin = end
        reached = number + 1
    return found
