"""Writes steps to a WebSocket: events as text messages, and ends that only a socket can have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from simulator.events import Event
from simulator.faults import CloseFrame, Ending, Inserted, WireBytes, WireManner
from simulator.request_log import Outcome
from simulator.stream import StepStream


class SocketWire(Protocol):
    """What is sent to one client over its WebSocket."""

    def send(self, payload: bytes) -> None:
        """Send one text message."""

    def send_raw(self, data: bytes) -> None:
        """Send bytes in no frame."""

    def set_manner(self, manner: WireManner) -> None:
        """Read and write like this from now on."""

    def close(self, code: int | None, reason: str = "") -> None:
        """Send a Close frame."""

    def lose(self) -> None:
        """Close without a Close frame once everything is sent."""

    def reset(self) -> None:
        """Reset the connection."""

    def go_deaf(self) -> None:
        """Neither read nor write any more."""


def send_event(wire: SocketWire, event: Event) -> None:
    """Send an event as it is."""
    wire.send(msgspec.json.encode(event))


class SocketStream(StepStream):
    """Goes through steps and writes them to a socket, which others may use meanwhile.

    :param write: writes an event, by default as it is.
    :param inserted: called with each event that a fault inserted, before it is sent.
    """

    def __init__(
        self,
        wire: SocketWire,
        steps: Iterator[Any],
        clock: IReactorTime,
        delay: float,
        ended: Callable[[Outcome | None], None],
        *,
        write: Callable[[Event], None] | None = None,
        inserted: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        super().__init__(steps, clock, delay, ended)
        self._wire = wire
        self._write_event = write
        self._inserted = inserted
        self._is_breaking = False

    def _write(self, step: Any) -> None:
        if isinstance(step, dict):
            if self._write_event is None:
                send_event(self._wire, step)
            else:
                self._write_event(step)
        elif isinstance(step, Inserted):
            self._inserted(step.event)
            send_event(self._wire, step.event)
        elif isinstance(step, bytes):
            self._wire.send(step)
        elif isinstance(step, WireBytes):
            self._wire.send_raw(step.data)
        elif isinstance(step, WireManner):
            self._wire.set_manner(step)

    def _break(self, ending: Ending | CloseFrame) -> None:
        self._is_breaking = True
        if isinstance(ending, CloseFrame):
            self._wire.close(ending.code, ending.reason)
        elif ending is Ending.CLOSE:
            self._wire.lose()
        elif ending is Ending.DROP:
            self._wire.reset()
        else:
            self._wire.go_deaf()
        self._client_gone(None)

    def _client_gone(self, _reason: Failure | None) -> None:
        if not self._over:
            self._stop("dropped" if self._is_breaking else "cancelled")
