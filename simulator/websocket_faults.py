"""Faults that only a WebSocket can have, beside those of ``simulator/faults.py``.

A fault for the endpoint ``upgrade`` is applied to the next upgrade, whose one event is the 101;
what it does after that event happens on the open socket. A fault for ``create`` is applied to the
next ``response.create``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from simulator.events import Event
from simulator.faults import (
    CloseFrame,
    Ending,
    Fault,
    Inserted,
    Pause,
    Steps,
    WireBytes,
    WireManner,
    first_steps,
)

#: Where an answer is when something happens: before its first event of all, before
#: ``response.created``, before and after its first output item, before and after its terminal
#: event.
Point = Literal["begin", "created", "output", "item_done", "terminal", "end"]
_TERMINALS = ("response.completed", "response.failed", "response.incomplete", "error")


def steps_until(point: Point, steps: Steps) -> Steps:
    """The steps up to a point of an answer, or up to its end; the others remain in ``steps``.

    A point before an event keeps that event back: it is lost.
    """
    if point == "begin":
        return
    for step in steps:
        kind = step["type"] if isinstance(step, dict) else ""
        if point == "created" and kind == "response.created":
            return
        if point == "output" and kind == "response.output_item.added":
            return
        if point == "terminal" and kind in _TERMINALS:
            return
        yield step
        if point == "item_done" and kind == "response.output_item.done":
            return
        if point == "end" and kind in _TERMINALS:
            return


@dataclass(frozen=True)
class BreakAt(Fault):
    """End the connection at a point of the answer, whatever the number of events before it."""

    point: Point
    ending: Ending | CloseFrame = Ending.DROP

    def rewrite(self, steps: Steps) -> Steps:
        yield from steps_until(self.point, steps)
        yield self.ending


@dataclass(frozen=True)
class CloseWith(Fault):
    """Send a Close frame after N events, with any code or (None) without one."""

    code: int | None
    reason: str = ""
    after: int = 0

    def rewrite(self, steps: Steps) -> Steps:
        yield from first_steps(steps, self.after)
        yield CloseFrame(self.code, self.reason)


@dataclass(frozen=True)
class DeafAfter(Fault):
    """Neither read nor write after N events, as a host that is gone without a word."""

    after: int = 0

    def rewrite(self, steps: Steps) -> Steps:
        yield from first_steps(steps, self.after)
        yield Ending.DEAF


@dataclass(frozen=True)
class WireAfter(Fault):
    """Send bytes outside of any frame after N events, such as a broken frame; then go on."""

    data: bytes = field(repr=False)
    after: int = 0

    def rewrite(self, steps: Steps) -> Steps:
        yield from first_steps(steps, self.after)
        yield WireBytes(self.data)
        yield from steps


@dataclass(frozen=True)
class StrayAtEnd(Fault):
    """Send more events after the end of the answer, at once or after a while."""

    events: Sequence[Event]
    seconds: float = 0.0

    def rewrite(self, steps: Steps) -> Steps:
        yield from steps
        if self.seconds:
            yield Pause(self.seconds)
        for event in self.events:
            yield Inserted(event)


@dataclass(frozen=True)
class SecondAnswer(Fault):
    """Send the whole answer twice."""

    def rewrite(self, steps: Steps) -> Steps:
        events: list[Event] = []
        for step in steps:
            yield step
            if isinstance(step, dict):
                events.append(step)
        yield from events


@dataclass(frozen=True)
class Fragmented(Fault):
    """From now on, send each message of the socket in frames of at most so many bytes."""

    frame_bytes: int = 7

    def rewrite(self, steps: Steps) -> Steps:
        yield WireManner(fragment_bytes=self.frame_bytes)
        yield from steps


@dataclass(frozen=True)
class SlowReading(Fault):
    """From now on, read so many bytes of the socket a second."""

    bytes_per_second: float

    def rewrite(self, steps: Steps) -> Steps:
        for step in steps:
            yield step
            if isinstance(step, dict):
                break
        yield WireManner(read_bytes_per_second=self.bytes_per_second)
        yield from steps
