"""The whole way from an ``HttpUpstream`` to bytes on a connection, in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.credentials.interface import Credentials
from gateway.credentials.static import KeyCredentials
from gateway.protocol.errors import ApiError
from gateway.protocol.request import read_members, read_post
from gateway.protocol.upstream_request import Dialect, UpstreamTurn
from gateway.upstream.http import HttpTimeouts, HttpUpstream, TurnExchange
from tests.support.sse import ServerSentEvent

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(name: bytes, data: bytes = b"{}") -> bytes:
    return b"event: " + name + b"\ndata: " + data + b"\n\n"


def refusal(status: int, body: bytes, *headers: bytes) -> bytes:
    length = b"content-length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 %d Said" % status, *headers, length, b"", body])


@implementer(IReactorPluggableNameResolver)
class Reactor(MemoryReactorClock):
    """Every name is this machine."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver: Any = self

    def installNameResolver(self, resolver: object) -> None:
        raise AssertionError("nobody installs resolvers")

    def resolveHostName(self, receiver: Any, name: str, port: int = 0, *_: Any, **__: Any) -> Any:
        receiver.resolutionBegan(self)
        receiver.addressResolved(IPv4Address("TCP", "127.0.0.1", port))
        receiver.resolutionComplete()
        return self


class Connection:
    """The upstream's end of one TCP connection."""

    def __init__(self, factory: Any) -> None:
        self.transport = StringTransport()
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)

    @property
    def request(self) -> bytes:
        return self.transport.value()

    def sends(self, *data: bytes) -> None:
        for piece in data:
            self.protocol.dataReceived(piece)

    def closes(self, reason: Exception | None = None) -> None:
        self.protocol.connectionLost(Failure(reason or ConnectionDone()))

    @property
    def dropped(self) -> bool:
        return self.transport.disconnecting or self.transport.disconnected

    @property
    def paused(self) -> bool:
        return self.transport.producerState == "paused"


class Heard:
    """A receiver that writes down."""

    def __init__(self) -> None:
        self.connected = 0
        self.headers: Mapping[str, str] | None = None
        self.events: list[ServerSentEvent] = []
        self.endings: list[ApiError | None] = []

    def upstream_connected(self) -> None:
        assert not self.endings, "connected after the end"
        self.connected += 1

    def upstream_answered(self, headers: Mapping[str, str]) -> None:
        assert not self.endings, f"an answer after the end: {headers}"
        assert self.headers is None, "answered twice"
        self.headers = headers

    def upstream_events(self, events: list[ServerSentEvent]) -> None:
        assert self.headers is not None, "events before the answer began"
        assert not self.endings, f"events after the end: {events}"
        self.events += events

    def upstream_ended(self, error: ApiError | None) -> None:
        self.endings.append(error)

    @property
    def error(self) -> ApiError:
        (error,) = self.endings
        assert error is not None, "expected an error, the stream ended in order"
        return error


class Wire:
    """One account's upstream over a reactor in memory."""

    def __init__(
        self, credentials: Credentials | None = None, base: str = "http://upstream.test/v1"
    ) -> None:
        self.reactor = Reactor()
        timeouts = HttpTimeouts(connect=10, first_byte=120, idle=300)
        used = credentials or KeyCredentials("sk-secret")
        self.upstream = HttpUpstream(self.reactor, "main", lambda: base, used, timeouts)

    def exchange(self, heard: Heard, accept: str = "text/event-stream") -> TurnExchange:
        body = json.dumps({"input": "hi"}).encode()
        turn = UpstreamTurn(
            read_post(read_members(body), len(body)),
            dialect=Dialect(streams=accept == "text/event-stream"),
            account_headers=[("authorization", "of the request")],
        )
        return self.upstream.exchange(turn, heard)

    def accept(self) -> Connection:
        """Take up the latest connection attempt."""
        return Connection(self.reactor.tcpClients[-1][2])

    @property
    def attempts(self) -> int:
        return len(self.reactor.tcpClients)

    def started(self) -> tuple[TurnExchange, Heard, Connection]:
        """An exchange whose request was sent."""
        heard = Heard()
        exchange = self.exchange(heard)
        exchange.start()
        return exchange, heard, self.accept()

    def streaming(self) -> tuple[TurnExchange, Heard, Connection]:
        """An exchange that got its headers and one event."""
        exchange, heard, connection = self.started()
        connection.sends(HEAD, chunk(event(b"response.created")))
        assert [name for name, _ in heard.events] == [b"response.created"]
        return exchange, heard, connection

    def check_rest(self) -> None:
        self.upstream.close()
        calls = self.reactor.getDelayedCalls()
        assert not calls, f"timers outlived their exchange: {calls}"
