"""Background responses: made on the simulator's clock, read, followed and cancelled meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from simulator.events import Event, numbered
from simulator.faults import Headers, Steps
from simulator.store import Record

_AT_ONCE = ("response.created", "response.queued")


class BackgroundRun:
    """One background response on its way from `queued` to its end.

    Its events are spread evenly over the seconds given; `keep` is called with each new state of
    its record. `streamed`: whether it was asked for as a stream; only then is it streamed again.
    """

    def __init__(
        self,
        record: Record,
        events: Iterable[Any],
        *,
        keep: Callable[[Record], None],
        clock: IReactorTime,
        seconds: float,
        streamed: bool,
    ) -> None:
        self.response: dict[str, Any] = record.response
        self.streamed = streamed
        self.is_over = False
        self._record = record
        self._keep = keep
        self._clock = clock
        self._made: list[Event] = []
        self._coming = deque(step for step in numbered(iter(events)) if isinstance(step, dict))
        self._pause = seconds / max(1, len(self._coming))
        self._started = clock.seconds()
        self._timer: IDelayedCall | None = None
        self._followers: list[Deferred[None]] = []

    def start(self) -> None:
        """Become `queued` at once; the rest comes by itself."""
        while self._coming and self._coming[0]["type"] in _AT_ONCE:
            self._step()
        self._go_on()

    def follow(self, after: int = -1) -> Steps:
        """The events after this sequence number, and a wait for each that was not made yet."""
        position = after + 1
        if position >= len(self._made) and not self.is_over:
            yield Headers.NOW
        while True:
            while position < len(self._made):
                yield self._made[position]
                position += 1
            if self.is_over:
                return
            yield self._change()

    def cancel(self) -> None:
        """End as cancelled, if it has not ended yet. Its streams end without a terminal event."""
        if not self.is_over:
            self._become({**self.response, "status": "cancelled", "output": []})
            self.stop()

    def stop(self) -> None:
        """Make nothing more, and leave what is kept as it is."""
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell_followers()

    def _go_on(self) -> None:
        if self._coming:
            due = self._started + self._pause * len(self._made)
            wait = max(0.0, due - self._clock.seconds())
            self._timer = self._clock.callLater(wait, self._made_one)
        else:
            self.stop()

    def _made_one(self) -> None:
        self._timer = None
        self._step()
        self._go_on()

    def _step(self) -> None:
        event = self._coming.popleft()
        self._made.append(event)
        if "response" in event:
            self._become(event["response"])
        self._tell_followers()

    def _become(self, response: dict[str, Any]) -> None:
        self.response = response
        output = response["output"]
        self._keep(replace(self._record, response=response, output=output, run=self))

    def _change(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred(self._followers.remove)
        self._followers.append(waiting)
        return waiting

    def _tell_followers(self) -> None:
        followers, self._followers = self._followers, []
        for waiting in followers:
            waiting.callback(None)
