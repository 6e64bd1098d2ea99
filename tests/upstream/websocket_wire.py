"""The other end of a WebSocket to an account, in memory, with a frame codec of its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class Frame(NamedTuple):
    """One frame as it was read; ``mask`` is None for an unmasked one."""

    fin: bool
    opcode: int
    payload: bytes
    mask: bytes | None = None


def frame(
    payload: bytes,
    opcode: int = TEXT,
    fin: bool = True,
    mask: bytes | None = None,
    width: int = 0,
    rsv: int = 0,
) -> bytes:
    """Write one frame.

    :param width: of the length's field, in bytes: 0 (the shortest), 1, 2 or 8.
    """
    length = len(payload)
    if not width:
        width = 1 if length < 126 else 2 if length < 65_536 else 8
    head = bytes([fin << 7 | rsv << 4 | opcode])
    masked = 0x80 if mask is not None else 0
    if width == 1:
        head += bytes([masked | length])
    else:
        head += bytes([masked | (126 if width == 2 else 127)]) + length.to_bytes(width, "big")
    if mask is not None:
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        head += mask
    return head + payload


def closing(code: int | None = None, reason: bytes = b"") -> bytes:
    """A Close frame."""
    return frame(b"" if code is None else code.to_bytes(2, "big") + reason, CLOSE)


def read_frames(data: bytes) -> Iterator[Frame]:
    """Read whole frames; fails where the bytes are none."""
    while data:
        assert not data[0] & 0x70, "no extension was negotiated"
        fin, opcode = bool(data[0] & 0x80), data[0] & 0x0F
        length, at = data[1] & 0x7F, 2
        if length == 126:
            length, at = int.from_bytes(data[2:4], "big"), 4
            assert length >= 126, "the shortest form must be used"
        elif length == 127:
            length, at = int.from_bytes(data[2:10], "big"), 10
            assert length >= 65_536, "the shortest form must be used"
        mask = None
        if data[1] & 0x80:
            mask, at = data[at : at + 4], at + 4
        payload, data = data[at : at + length], data[at + length :]
        assert len(payload) == length, "the last frame is not whole"
        if mask is not None:
            whole = int.from_bytes(payload, "big")
            key = int.from_bytes((mask * (length // 4 + 1))[:length], "big")
            payload = (whole ^ key).to_bytes(length, "big")
        yield Frame(fin, opcode, payload, mask)


def messages(frames: list[Frame]) -> list[bytes]:
    """The text messages in frames from a client, whose control frames are left out."""
    found: list[bytes] = []
    inside = False
    for each in frames:
        assert each.mask is not None, "a client's frames are masked"
        if each.opcode >= CLOSE:
            assert each.fin, "a control frame is not fragmented"
            continue
        assert each.opcode == (CONTINUATION if inside else TEXT)
        if inside:
            found[-1] += each.payload
        else:
            found.append(each.payload)
        inside = not each.fin
    return found


class Peer:
    """The upstream's end of one connection, from the upgrade request on."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.transport = StringTransport()
        protocol.makeConnection(self.transport)
        self.request = self.transport.value()
        self.transport.clear()

    @property
    def headers(self) -> dict[str, str]:
        """Those of the upgrade request."""
        head = self.request.partition(b"\r\n\r\n")[0].decode("latin-1")
        lines = [line.partition(": ") for line in head.split("\r\n")[1:]]
        names = [name for name, _, _ in lines]
        assert len(set(names)) == len(names), f"a header comes twice: {names}"
        return {name: value for name, _, value in lines}

    def accepts(self, *headers: bytes, then: bytes = b"") -> None:
        """Answer the upgrade with 101, and send ``then`` in the same read."""
        key = self.headers["sec-websocket-key"].encode()
        accept = base64.b64encode(hashlib.sha1(key + _MAGIC).digest())
        lines = [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + accept,
            *headers,
        ]
        self.sends(b"\r\n".join([*lines, b"", b""]) + then)

    def sends(self, *data: bytes) -> None:
        """One read for each piece; none once the connection is given up."""
        for piece in data:
            if self.transport.disconnected:
                return
            self.protocol.dataReceived(piece)

    def says(self, *texts: bytes) -> None:
        """Text messages, in one read."""
        self.sends(b"".join(map(frame, texts)))

    def frames(self) -> list[Frame]:
        """What came since the last look."""
        data = self.transport.value()
        self.transport.clear()
        return list(read_frames(data))

    def drain(self) -> None:
        """Read on, until no fragment is left."""
        while self.transport.producer is not None:
            self.transport.producer.resumeProducing()

    def loses(self, reason: Exception | None = None) -> None:
        """The connection is gone; a transport stops its producer before it says so."""
        producer, self.transport.producer = self.transport.producer, None
        if producer is not None:
            producer.stopProducing()
        self.transport.disconnected = self.transport.disconnecting = True
        self.protocol.connectionLost(Failure(reason or ConnectionDone()))

    @property
    def closed(self) -> bool:
        """Whether the connection is given up, or will be once all is written."""
        return self.transport.disconnecting

    @property
    def aborted(self) -> bool:
        return self.transport.disconnected

    @property
    def paused(self) -> bool:
        return self.transport.producerState == "paused"


@implementer(IStreamClientEndpoint)
class MemoryEndpoint:
    """Connects when the test says so."""

    def __init__(self) -> None:
        self.connecting: list[tuple[Any, Deferred[Any]]] = []
        self.cancelled = 0

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        def cancel(_: Any) -> None:
            self.cancelled += 1

        connected: Deferred[Any] = Deferred(cancel)
        self.connecting.append((protocolFactory, connected))
        return connected

    def connects(self) -> Peer:
        """Take up the oldest connection attempt."""
        factory, connected = self.connecting.pop(0)
        peer = Peer(factory.buildProtocol(None))
        connected.callback(peer.protocol)
        return peer

    def fails(self, error: Exception) -> None:
        """The oldest connection attempt fails."""
        self.connecting.pop(0)[1].errback(Failure(error))
