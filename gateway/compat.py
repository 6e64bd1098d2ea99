"""The private parts of Twisted and Autobahn that the gateway relies on, under names of its own.

No other module touches a private name of these libraries or of treq.  Each part stands here with
the reason why the public interface is not enough.  All were seen in Twisted 26.10.0 and Autobahn
26.10.2; ``tests/test_compat.py`` says which one another release moved, and which modules need it.
The upper bounds in ``setup.cfg`` are raised only when that test passes with the new release.
"""

from __future__ import annotations

from typing import Any

from autobahn.twisted.websocket import WebSocketClientProtocol, WebSocketServerProtocol
from autobahn.websocket import xormasker
from twisted.internet import tcp, unix
from twisted.internet.main import CONNECTION_DONE
from twisted.internet.tcp import _FileDescriptorReservation
from twisted.python.failure import Failure
from twisted.web._newclient import HEADER, STATUS
from twisted.web.client import HTTPConnectionPool, _HTTP11ClientFactory
from twisted.web.http import HTTPChannel

# --- Twisted's log -------------------------------------------------------------------------

#: Namespace of the messages about each connection of an HTTP client.  ``noisy`` would silence
#: them, but the connection pool makes the factory itself.
HTTP_CLIENT_LOG = f"{_HTTP11ClientFactory.__module__}.{_HTTP11ClientFactory.__qualname__}"

#: Namespace of the messages, with a traceback, about an accept that found no file descriptor.
FILE_RESERVE_LOG = (
    f"{_FileDescriptorReservation.__module__}.{_FileDescriptorReservation.__qualname__}"
)

# --- listening sockets that several processes have ------------------------------------------


class AdoptedUnixPort(unix.Port):
    """Listens on a UNIX socket that another process has bound.

    Twisted's own would set the mode of its file and the length of its queue anew, and remove the
    file at the end, although the other process listens on it.
    """

    def startListening(self) -> None:
        """Begin to accept."""
        here: Any = self
        adopted, here._preexistingSocket = here._preexistingSocket, None
        here._shouldShutdown = False
        here.factory.doStart()
        here.connected = True
        here.socket, here.fileno = adopted, adopted.fileno
        here.numberAccepts = 100
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket, and leave its file."""
        tcp.Port.connectionLost(self, reason)


def adopt_unix_port(reactor: Any, descriptor: int, factory: Any) -> AdoptedUnixPort:
    """Listen on a UNIX socket that another process has bound.

    :param descriptor: it may be closed afterwards.
    """
    port: AdoptedUnixPort = AdoptedUnixPort._fromListeningDescriptor(reactor, descriptor, factory)
    port.startListening()
    return port


def leave_port(port: Any) -> None:
    """Close the socket of a port in this process only, at once.

    Twisted would shut it down, for the processes that go on with it, too, and remove the file of a
    UNIX socket.
    """
    port._shouldShutdown = False
    port.stopReading()
    tcp.Port.connectionLost(port, Failure(CONNECTION_DONE))


# --- writing -------------------------------------------------------------------------------


def write_at_once(transport: Any, data: bytes) -> None:
    """Write, without a turn of the reactor's loop before the socket gets it.

    ``write`` keeps the data and asks the kernel when the socket is writable, which it nearly always
    is: that costs more than the write.  What the socket does not take is written as usual, and so
    is everything where earlier data waits, where TLS stands between, or in tests.
    """
    if (
        isinstance(transport, tcp.Connection)
        and transport.connected
        and not (transport.TLS or transport.disconnecting)
        and not (transport.dataBuffer or transport._tempDataBuffer)
    ):
        sent = transport.writeSomeData(data)
        if isinstance(sent, int):  # else the reactor meets the same error and reports it
            if sent == len(data):
                return
            data = data[sent:]
    transport.write(data)


# --- twisted.web's client ------------------------------------------------------------------

_HEAD_STATES = (STATUS, HEADER)


def is_reading_head(http: Any) -> bool:
    """Whether an HTTP client protocol waits for more of a response's head.

    Twisted does not bound the head, and only its parser knows where one ends when the framing
    of the response before it was not understood.
    """
    parser = http._parser
    return parser is not None and parser.state in _HEAD_STATES


def kept_connections(pool: HTTPConnectionPool) -> int:
    """How many idle connections a pool keeps; it has no public count."""
    return sum(map(len, pool._connections.values()))


# --- twisted.web's server ------------------------------------------------------------------


class ExtensibleHTTPChannel(HTTPChannel):
    """twisted.web's server channel with additional hooks.

    It has no public way to answer a malformed request otherwise than with a bare 400, to decide
    on a request before its body is read, to bound what is read ahead, or to hand its transport
    to another protocol.
    """

    _networkProducer: Any

    @property
    def request_line(self) -> tuple[bytes, bytes, bytes]:
        """Method, target and version of the last request head."""
        return self._command, self._path, self._version

    @property
    def head_exceeds_bounds(self) -> bool:
        """Whether the head has more bytes or lines than the channel allows."""
        too_many: bool = self._receivedHeaderCount > self.maxHeaders
        return too_many or self._receivedHeaderSize > self.totalHeadersSize

    @property
    def has_read_enough_ahead(self) -> bool:
        """Whether the bytes of later requests that are kept exceed twisted.web's own bound."""
        return sum(map(len, self._dataBuffer)) > self._optimisticEagerReadSize

    @property
    def unfinished_head_bytes(self) -> int:
        """The received bytes of an incomplete head."""
        return int(self._receivedHeaderSize) + len(self._buffer)

    @property
    def is_parsing(self) -> bool:
        """Whether the channel is still parsing bytes that have arrived."""
        return bool(self._busyReceiving)

    def stop_reading(self) -> None:
        """Pause the socket, whatever the producers of answers do."""
        self._networkProducer.pauseProducing()

    def release_transport(self) -> None:
        """Stop being its transport's producer, so that another protocol can take it over."""
        self._networkProducer.unregisterProducer()

    def send_continue(self) -> None:
        """Write ``100 Continue``."""
        self._send100Continue()

    def refuse_malformed(self) -> None:
        """Answer a request that is no HTTP, and close; subclasses say more than a bare 400."""
        super()._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse_malformed()


# --- Autobahn ------------------------------------------------------------------------------

#: A WebSocket protocol's ``dataReceived`` without the debug line before it, which costs a
#: microsecond for each read even when nothing is logged.
websocket_data_received: Any = WebSocketServerProtocol._dataReceived

#: Up to so many bytes are masked as one number in less time than a masker is made.
_SHORT_BYTES = 1024


def masked(payload: bytes, mask: bytes) -> bytes:
    """A frame's payload with its mask put on, or taken off (RFC 6455 §5.3).

    Autobahn's masker is compiled where it can be; its module exports no name.
    """
    length = len(payload)
    if length > _SHORT_BYTES:
        create: Any = xormasker.create_xor_masker  # type: ignore[attr-defined]
        by_autobahn: bytes = create(mask, length).process(payload)
        return by_autobahn
    keys = int.from_bytes((mask * (length // 4 + 1))[:length], "big")
    return (int.from_bytes(payload, "big") ^ keys).to_bytes(length, "big")


def is_between_frames(socket: Any) -> bool:
    """Whether a WebSocket protocol has read nothing of a frame or message that is not whole."""
    return socket.current_frame is None and not socket.inside_message and not socket.data


class ExtensibleWebSocketClient(WebSocketClientProtocol):
    """Autobahn's client with a hook for violations of the protocol, which has no public one."""

    def violated(self, code: int, reason: str) -> None:
        """The peer violated the protocol; the connection is of no use any more."""
        super()._fail_connection(code, reason)

    def _fail_connection(self, code: int = 1001, reason: str = "going away") -> None:
        self.violated(code, reason)
