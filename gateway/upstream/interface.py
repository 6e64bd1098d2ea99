"""What a turn needs of an upstream, whatever transport is behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from gateway.protocol.errors import ApiError
from gateway.protocol.sse import Event
from gateway.protocol.upstream_request import UpstreamTurn


class Receiver(Protocol):
    """Who gets an exchange's answer.  Nothing is delivered after the end, or after cancel."""

    def upstream_connected(self) -> None:
        """The request goes out on a connection."""

    def upstream_answered(self, headers: Mapping[str, str]) -> None:
        """The event stream begins; names of its response headers are in lower case."""

    def upstream_events(self, events: list[Event]) -> None:
        """A batch of events, in order."""

    def upstream_ended(self, error: ApiError | None) -> None:
        """The answer is over: in order (None), or by a refusal or failure."""


class UpstreamExchange(Protocol):
    """One request and its answer."""

    @property
    def request_bytes(self) -> int:
        """Size of the encoded request."""

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


class UpstreamCall(NamedTuple):
    """A request that is passed as it is.

    :ivar path: what follows the account's base URL, with the query.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None = None


class CallReceiver(Protocol):
    """Who gets a call's answer.  Nothing is delivered after the end, or after cancel."""

    def call_connected(self) -> None:
        """Its body goes out on a connection; not told of requests without one."""

    def call_answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer begins, whatever its status; header names are in lower case."""

    def call_data(self, data: bytes) -> None:
        """A piece of its body."""

    def call_ended(self, error: ApiError | None) -> None:
        """The answer is over: complete (None), or it failed on the way."""


class UpstreamRequestCall(Protocol):
    """One request that is passed as it is, and its answer."""

    def start(self) -> None:
        """Send the request.  The receiver may hear of it before this returns."""

    def cancel(self) -> None:
        """Drop it now: the upstream sees its connection close."""

    def pause(self) -> None:
        """Stop reading the answer (back-pressure).  May be called again while paused."""

    def resume(self) -> None:
        """Read on."""


class Upstream(Protocol):
    """The way to one account."""

    def exchange(self, turn: UpstreamTurn, receiver: Receiver) -> UpstreamExchange:
        """Encode a turn's request; nothing is sent before its ``start``."""

    def call(self, call: UpstreamCall, receiver: CallReceiver) -> UpstreamRequestCall:
        """Prepare a request that is passed as it is; nothing is sent before its ``start``."""

    def without_secrets(self, said: bytes) -> bytes:
        """What the account said, without its secrets: upstreams quote them in errors."""

    def close(self) -> object:
        """Give up idle connections; returns a Deferred or None."""
