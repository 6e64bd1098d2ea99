"""The interface of a transport to an account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from gateway.protocol.errors import ApiError
from gateway.protocol.sse import Event
from gateway.protocol.upstream_request import UpstreamTurn


class ForwardedRequest(NamedTuple):
    """A request that goes to the upstream as it is.

    :ivar path: what follows the account's base URL, with the query.
    :ivar headers: names in lower case; each character of a value stands for one byte.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None = None


class UpstreamAnswer(NamedTuple):
    """The head of an answer.

    :ivar headers: names in lower case.
    :ivar refusal: the body of an answer that is no success, as far as it was read, without secrets.
    """

    status: int
    headers: Mapping[str, str]
    refusal: bytes


class SocketFigures(NamedTuple):
    """The WebSockets to one account.

    :ivar in_use: those on which a response runs.
    :ivar idle: open ones that are free.
    :ivar opening: those that are being opened.
    :ivar most: how many the account may have.
    :ivar most_of_all: how many all accounts together may have.
    :ivar opened: how many were opened so far.
    :ivar lost: how many of them are gone, by reason; the reasons are few.
    :ivar why_unavailable: why turns go over HTTP at present; None if a socket may be opened.
    :ivar unavailable_until: when it is tried again, in unix seconds.
    :ivar forgets_until: until when responses are not continued on their sockets, in unix seconds,
        because several were forgotten there; None if they are continued.
    """

    in_use: int
    idle: int
    opening: int
    most: int
    most_of_all: int
    opened: int
    lost: Mapping[str, int]
    why_unavailable: str | None = None
    unavailable_until: float | None = None
    forgets_until: float | None = None


class UpstreamReceiver(Protocol):
    """Gets an answer.  Nothing is delivered after the end, or after a cancel."""

    def upstream_connected(self) -> None:
        """The request's body goes out on a connection; comes again when it is sent again.

        Requests without a body do not report it.
        """

    def upstream_ended(self, error: ApiError | None) -> None:
        """The answer is complete (None), or it was refused or failed."""


class EventReceiver(UpstreamReceiver, Protocol):
    """Gets the events that answer a turn."""

    def upstream_answered(self, headers: Mapping[str, str]) -> None:
        """The events begin; names of the response headers are in lower case."""

    def upstream_events(self, events: list[Event]) -> None:
        """A batch of events, in order."""


class BodyReceiver(UpstreamReceiver, Protocol):
    """Gets the answer to a forwarded request, byte by byte."""

    def upstream_answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer begins, whatever its status; header names are in lower case."""

    def upstream_data(self, data: bytes) -> None:
        """A piece of its body."""


class SuccessorWatcher(Protocol):
    """Is told what comes between a response and the one that follows by itself."""

    def successor_answered(self, name: bytes, data: bytes) -> None:
        """An answer to what the client said about the response before."""

    def successor_begins(self) -> None:
        """The next response has begun; its exchange can be made."""

    def successor_lost(self, error: ApiError) -> None:
        """No response will follow on this connection."""


class Successor(Protocol):
    """A connection on which a response has ended, and another is to follow by itself."""

    def start(self, watcher: SuccessorWatcher) -> None:
        """Tell the watcher what comes; it may be called before this returns."""

    def exchange(self, turn: UpstreamTurn, receiver: EventReceiver) -> UpstreamExchange:
        """The exchange of the response that has begun."""

    def finish(self) -> None:
        """No response follows: the connection is free."""

    def cancel(self) -> None:
        """Give it up, and with it the connection; ignored once it is over."""

    def pause(self) -> None:
        """Keep what comes (back-pressure)."""

    def resume(self) -> None:
        """Read on."""


class OneWayExchange:
    """What exchanges have in common that send nothing after their request."""

    def tell(self, message: bytes) -> bool:
        """Do nothing: nothing can be said about a response that runs."""
        return False

    def successor(self) -> Successor | None:
        """No response follows by itself."""
        return None


class UpstreamExchange(Protocol):
    """One request and its answer."""

    @property
    def request_bytes(self) -> int:
        """Size of the encoded request."""

    @property
    def transport_name(self) -> str:
        """``http`` or ``websocket``."""

    @property
    def holder(self) -> str | None:
        """The token of the response, if only its connection can continue it; else None."""

    @property
    def request(self) -> ForwardedRequest | None:
        """The encoded request without what authorizes it; None once it cannot be sent again."""

    def answer(self) -> UpstreamAnswer | None:
        """What is known of the answer; None before it begins."""

    def start(self) -> None:
        """Send the request.  The receiver may be called before this returns."""

    def cancel(self) -> None:
        """Drop it now: the upstream sees its connection close."""

    def finish(self) -> None:
        """Read the answer to its end and ignore it, so that the connection can be reused."""

    def tell(self, message: bytes) -> bool:
        """Send a message about the response that runs; False where that cannot be done."""

    def successor(self) -> Successor | None:
        """In place of :meth:`finish`: wait for a response that the service lets follow by itself.

        None where none can follow; then the exchange still is to be finished.
        """

    def pause(self) -> None:
        """Stop reading the answer (back-pressure).  May be called again while paused."""

    def resume(self) -> None:
        """Read on."""


class Upstream(Protocol):
    """The transport to one account."""

    @property
    def warms(self) -> bool:
        """Whether it takes prewarms: they prepare the connection of the turns that follow."""

    def exchange(self, turn: UpstreamTurn, receiver: EventReceiver) -> UpstreamExchange:
        """Encode a turn's request; nothing is sent before its ``start``."""

    def forward(self, request: ForwardedRequest, receiver: BodyReceiver) -> UpstreamExchange:
        """Prepare a request that is sent as it is; nothing is sent before its ``start``."""

    def holds(self, holder: str) -> bool:
        """Whether a response can be continued here by its id.

        :param holder: what the response was recorded with: an account's name, or the token of
            a connection where responses live no longer than that.
        """

    def sockets(self) -> SocketFigures | None:
        """Its WebSockets; None if it is reached over HTTP only."""

    def forget(self) -> None:
        """Forget what was learned of connections: the service may have changed."""

    def continued(self, was: bool) -> None:
        """Whether a connection continued a response that it should have had.

        :param was: false if the whole context was sent again, and answered.
        """

    def without_secrets(self, text: bytes) -> bytes:
        """What the account answered, without its secrets: upstreams quote them in errors."""

    def secrets(self) -> Sequence[str]:
        """What must not be shown, the longest first."""

    def close(self) -> object:
        """Give up idle connections; returns a Deferred or None."""
