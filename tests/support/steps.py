"""What code costs, counted in steps of the interpreter: the same on every machine, however busy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def steps_of(work: Callable[[], object], times: int) -> float:
    """Steps the interpreter takes for ``work``, on average; what C code loops over is free."""
    steps = 0

    def follow(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        for _ in range(times):
            work()
    finally:
        sys.settrace(before)
    return steps / times
