"""How long Python's garbage collector stopped everything, and how often."""

from __future__ import annotations

import gc
import time
from typing import Any

from gateway.metrics.histogram import Histogram


class GarbagePauses:
    """Listens to the collector.

    :ivar pauses: in milliseconds, by generation.
    """

    def __init__(self) -> None:
        self.pauses = [Histogram() for _ in range(3)]
        self._began = 0.0

    def start(self) -> None:
        """Begin to listen."""
        if self._heard not in gc.callbacks:
            gc.callbacks.append(self._heard)

    def stop(self) -> None:
        """Listen no more."""
        if self._heard in gc.callbacks:
            gc.callbacks.remove(self._heard)

    def _heard(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.pauses[info["generation"]].add((time.perf_counter() - self._began) * 1000)
