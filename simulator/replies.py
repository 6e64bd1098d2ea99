"""What an endpoint answers with: a JSON value or steps of a stream, as they will be written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from simulator.events import DONE, Event, sse
from simulator.faults import Ending, Fault, Steps
from simulator.stream import Written

_PIECE = 64 * 1024


@dataclass(frozen=True)
class Reply:
    """An accepted request's answer. `written` may stop in any place: faults are part of it."""

    written: Iterable[Written]
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def json_reply(value: Any, fault: Fault, headers: Mapping[str, str] | None = None) -> Reply:
    """One JSON value, as the fault leaves it; a list, so that an undisturbed one shows."""
    body: Iterator[bytes] = iter([msgspec.json.encode(value)])
    written = [_cut(step) for step in fault.rewrite(body) if not isinstance(step, dict)]
    return Reply(written, headers=headers or {})


def stream_reply(written: Iterator[Written]) -> Reply:
    return Reply(written, "text/event-stream; charset=utf-8", {"cache-control": "no-cache"})


def as_sse(steps: Steps) -> Iterator[Written]:
    """Events as server-sent events, and the end mark of a stream that came to its end."""
    for step in steps:
        yield sse(step) if isinstance(step, dict) else step
    yield DONE


def as_json(steps: Steps) -> Iterator[Written]:
    """The final response object of the steps; what interrupts them interrupts this, too."""
    last: Event = {}
    for step in steps:
        if isinstance(step, dict):
            last = step
        elif not isinstance(step, bytes):
            yield _cut(step)
    body = msgspec.json.encode(last.get("response"))
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


def _cut(step: Written) -> Written:
    """A JSON answer that ended well would be a whole one: one that has no end is dropped."""
    return Ending.DROP if step is Ending.END else step
