"""What a turn needs of an upstream, whatever transport is behind it."""

from __future__ import annotations

from typing import Protocol

from ..protocol.errors import ApiError
from ..protocol.sse import Event
from ..protocol.upstream_request import UpstreamRequest


class Receiver(Protocol):
    """Who gets an exchange's answer.  Nothing is delivered after the end, or after cancel."""

    def upstream_events(self, events: list[Event]) -> None:
        """A batch of events, in order."""

    def upstream_ended(self, error: ApiError | None) -> None:
        """The answer is over: in order (None), or by a refusal or failure."""


class Exchange(Protocol):
    """One request and its answer."""

    def start(self) -> None:
        """Send the request.  The receiver may hear of it before this returns."""

    def cancel(self) -> None:
        """Drop it now: the upstream sees its connection close."""

    def finish(self) -> None:
        """Its terminal event was read: let the rest drain, so the connection can be reused."""

    def pause(self) -> None:
        """Stop reading the answer (back-pressure).  May be called again while paused."""

    def resume(self) -> None:
        """Read on."""


class Upstream(Protocol):
    """The way to one account."""

    def exchange(self, request: UpstreamRequest, receiver: Receiver) -> Exchange:
        """Prepare a request; nothing is sent before its ``start``."""

    def close(self) -> object:
        """Give up idle connections; returns a Deferred or None."""
