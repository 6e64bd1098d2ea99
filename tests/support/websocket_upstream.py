"""A scripted upstream that takes turns over WebSocket: frames by hand, every one of them logged.

It is an ``Upstream`` whose connections may also be upgraded. The same scripts answer a turn of
either transport; ``Recorded.transport`` tells which one it came by. What a script does only with
frames it does with ``over(exchange)``, a test between two turns with ``upstream.sockets[-1]``.

Every socket has a thread that reads it all its life, answers pings, and notes what the peer must
not do, above all a second turn while one runs: that fails the test when the upstream stops.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import queue
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.events import Json, error_body
from tests.support.upstream import Closed, Exchange, Recorded, Script, Upstream
from tests.support.wsclient import CLOSE, CONTINUATION, PING, PONG, TERMINAL, TEXT

UpgradeScript = Callable[["Handshake"], object]
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CLOSE_SECONDS = 3.0


@dataclass
class ReceivedFrame:
    """The head of one frame of the peer."""

    opcode: int
    fin: bool
    length: int
    at: float


class Refusal(Exception):
    """The upgrade was answered by something else than 101; the connection may go on."""


def over(exchange: Exchange) -> SocketExchange:
    """The exchange as one of a WebSocket; fails for a turn that came over HTTP."""
    assert isinstance(exchange, SocketExchange), "this turn was expected over WebSocket"
    return exchange


def refused(status: int, body: Any = b"", headers: dict[str, str] | None = None) -> UpgradeScript:
    """An upgrade that is answered with this status; a body that is not bytes is sent as JSON."""
    return lambda handshake: handshake.refuse(status, body, headers)


def remembering(exchange: Exchange) -> None:
    """A sensible turn: it continues what its transport can continue, else it is not found.

    On a socket that is the latest response of this socket, and anything stored; over HTTP only the
    latter. A prewarm has no output.
    """
    upstream = exchange.upstream
    assert isinstance(upstream, WebSocketUpstream)
    named = exchange.request.previous_response_id
    if named is not None and not upstream.knows(named, exchange):
        message = f"Previous response with id '{named}' not found."
        body = error_body("previous_response_not_found", message, param="previous_response_id")
        exchange.json(400, body)
        return
    exchange.answer([] if exchange.request.body.get("generate") is False else None)


class Handshake:
    """One upgrade being answered."""

    def __init__(self, upstream: WebSocketUpstream, sock: socket.socket, request: Recorded) -> None:
        self.upstream = upstream
        self.request = request
        self.accepted = False
        self._sock = sock

    def accept(
        self,
        headers: dict[str, str] | None = None,
        *,
        protocol: str | None = None,
        key: str | None = None,
        then: bytes = b"",
        step: int | None = None,
    ) -> None:
        """Answer 101.

        :param protocol: the subprotocol; the first one that is offered by default, "" for none.
        :param key: a wrong value of Sec-WebSocket-Accept.
        :param then: bytes in the same write, behind the head.
        :param step: write so many bytes at a time.
        """
        offered = self.request.header("sec-websocket-protocol") or ""
        chosen = offered.split(",")[0].strip() if protocol is None else protocol
        digest = hashlib.sha1((self.request.header("sec-websocket-key") or "").encode() + GUID)
        fields = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Accept": key or base64.b64encode(digest.digest()).decode(),
            **({"Sec-WebSocket-Protocol": chosen} if chosen else {}),
            **(headers or {}),
        }
        data = _head(101, fields) + then
        self.accepted = True
        for at in range(0, len(data), step or len(data)):
            self.raw(data[at : at + (step or len(data))])

    def refuse(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        """Answer with this status; the connection stays open, as HTTP allows."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {} if isinstance(body, bytes) else {"Content-Type": "application/json"}
        fields = {"Content-Length": str(len(raw)), **kind, **(headers or {})}
        self.raw(_head(status, fields) + raw)
        raise Refusal

    def raw(self, data: bytes) -> None:
        self._sock.sendall(data)

    def close(self) -> None:
        raise Closed

    def reset(self) -> None:
        _linger_not(self._sock)
        raise Closed

    def hold(self, seconds: float = 60.0) -> None:
        """Say nothing until the peer is gone, the upstream stops, or so many seconds passed."""
        poller = select.poll()
        poller.register(self._sock.fileno(), select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.upstream.stopping.is_set():
            if poller.poll(20):
                self.request.gone_at = time.monotonic()
                self.request.gone.set()
                raise Closed


class SocketExchange(Exchange):
    """One turn being answered on a socket; what ``Exchange`` offers, in text frames."""

    def __init__(
        self, upstream: WebSocketUpstream, peer: UpstreamSocket, request: Recorded
    ) -> None:
        super().__init__(upstream, peer.sock, request)
        self.socket = peer

    def json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """A refusal as an error frame with its status."""
        more = {"headers": headers} if headers else {}
        self.sse({"type": "error", "status": status, **body, **more})
        self.complete = True

    def reply(self, status: int, body: bytes, *headers: dict[str, str] | None) -> None:
        raise AssertionError("a socket has no plain answers")

    def start(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """A socket's answer has no head."""

    def sse(self, *events: Json, event_lines: bool = True) -> None:
        """Events as one text message each."""
        for event in events:
            self.text(event)

    def chunks(self, *pieces: bytes) -> None:
        raise AssertionError("a socket has no chunks")

    def text(self, message: Json | str | bytes) -> None:
        """One text message in one frame; bytes and texts as they are."""
        data = _encoded(message)
        if isinstance(message, dict) and message.get("type") in TERMINAL:
            self.socket.busy = None  # the peer may send its next turn as soon as it has this
        self.socket.frame(TEXT, data)
        self.request.bytes_sent += len(data)

    def raw(self, data: bytes) -> None:
        self.socket.raw(data)
        self.request.bytes_sent += len(data)

    def end(self) -> None:
        self.complete = True

    def close(self, code: int | None = None, reason: str | bytes = b"") -> None:
        """A Close frame with this code, its answer, then the end; without a code only the end."""
        if code is not None:
            self.socket.close(code, reason)
        raise Closed

    def reset(self) -> None:
        _linger_not(self._sock)
        raise Closed

    def freeze(self) -> None:
        """Half-open: read nothing, answer nothing, until the upstream stops or the peer is gone."""
        self.socket.reading.clear()
        self.socket.upstream.notify()
        self.hold()


class UpstreamSocket:
    """One accepted WebSocket as the upstream sees it.

    :ivar frames: the head of each frame that came, in order.
    :ivar turns: its turns, in order; they are in the log of the upstream, too.
    :ivar messages: other text messages, decoded.
    :ivar answers_pings: may be switched off.
    :ivar reading: cleared while nothing is to be read.
    :ivar busy: the turn that has no terminal event yet.
    :ivar gone: set when the connection is over, whoever ended it.
    """

    def __init__(self, upstream: WebSocketUpstream, sock: socket.socket, request: Recorded) -> None:
        self.upstream = upstream
        self.sock = sock
        self.handshake = request
        self.frames: list[ReceivedFrame] = []
        self.turns: list[Recorded] = []
        self.messages: list[Any] = []
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []
        self.close_code: int | None = None
        self.close_reason = b""
        self.answers_pings = True
        self.reading = threading.Event()
        self.reading.set()
        self.busy: Recorded | None = None
        self.gone = threading.Event()
        self.bytes_received = 0
        self._closing = False
        self._sending = threading.RLock()
        self._reading = threading.Lock()
        self._buffered = bytearray()
        self._message: bytearray | None = None
        self._work: queue.Queue[tuple[Recorded, Script] | None] = queue.Queue()

    # ---- sending

    def raw(self, data: bytes) -> None:
        with self._sending:
            self.sock.sendall(data)

    def frame(
        self,
        opcode: int,
        payload: bytes = b"",
        *,
        fin: bool = True,
        rsv: int = 0,
        masked: bool = False,
    ) -> None:
        """One frame, whatever it holds."""
        self.raw(frame(opcode, payload, fin=fin, rsv=rsv, masked=masked))

    def text(self, message: Json | str | bytes) -> None:
        """One text message in one frame."""
        self.frame(TEXT, _encoded(message))

    def fragments(self, *pieces: bytes, opcode: int = TEXT, between: bytes = b"") -> None:
        """One message in several frames.

        :param between: frames to write between two of them, such as a ping.
        """
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            self.frame(opcode if number == 0 else CONTINUATION, piece, fin=last)
            if between and not last:
                self.raw(between)

    def dribble(self, data: bytes, step: int = 1) -> None:
        """Bytes in writes of their own."""
        with self._sending:
            for at in range(0, len(data), step):
                self.raw(data[at : at + step])

    def ping(self, payload: bytes = b"") -> None:
        self.frame(PING, payload)

    def close(self, code: int | None = 1000, reason: str | bytes = b"") -> None:
        """A Close frame, then a while for the peer's; None for a frame without a code."""
        text = reason.encode() if isinstance(reason, str) else reason
        self._closing = True
        with contextlib.suppress(OSError):
            self.frame(CLOSE, b"" if code is None else struct.pack("!H", code) + text)
        self.gone.wait(CLOSE_SECONDS)

    def drop(self) -> None:
        """The end of the connection without a Close frame."""
        self._closing = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """RST in place of an orderly end."""
        _linger_not(self.sock)
        self._closing = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RD)  # the reader ends, and the connection is closed

    # ---- for tests

    def wait_gone(self, timeout: float = 15.0) -> bool:
        """Wait until the peer ended this connection."""
        return self.gone.wait(timeout)

    def wait_pongs(self, count: int, timeout: float = 15.0) -> list[bytes]:
        self.upstream.wait(lambda: len(self.pongs) >= count, f"{count} pongs", timeout)
        return list(self.pongs)

    def wait_pings(self, count: int, timeout: float = 15.0) -> list[bytes]:
        self.upstream.wait(lambda: len(self.pings) >= count, f"{count} pings", timeout)
        return list(self.pings)

    def wait_idle(self, timeout: float = 15.0) -> None:
        """Wait until the script of the last turn has ended."""
        self.upstream.wait(lambda: self.busy is None, "an idle socket", timeout)

    # ---- threads

    def serve(self) -> None:
        """Answer the turns of this socket until it ends; its other thread reads."""
        reader = threading.Thread(target=self._read, name="upstream-reader", daemon=True)
        reader.start()
        try:
            while (work := self._work.get()) is not None:
                self._answer(*work)
        except (Closed, OSError):
            pass
        finally:
            self._closing = True
            self.reading.set()
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RD)
            reader.join(5)

    def _answer(self, request: Recorded, script: Script) -> None:
        try:
            script(SocketExchange(self.upstream, self, request))
        except (Closed, OSError):
            raise
        except BaseException as error:
            self.upstream.errors.append(error)
            raise Closed from error
        finally:
            request.finished.set()
            self.busy = None
            self.upstream.notify()

    def _read(self) -> None:
        try:
            while True:
                self._frame()
        except (OSError, EOFError, ValueError):
            pass
        except AssertionError as error:
            self.upstream.errors.append(error)
        finally:
            for request in self.turns:
                if not request.finished.is_set():
                    request.gone_at = time.monotonic()
                    request.gone.set()
            self.gone.set()
            self.upstream.notify()
            self._work.put(None)

    def _frame(self) -> None:
        self._until_reading()
        first, second = self._exactly(2)
        opcode, fin, size = first & 0x0F, bool(first & 0x80), second & 0x7F
        assert second & 0x80, "a client masks its frames"
        assert not first & 0x70, "no extension was agreed on"
        if size > 125:
            assert opcode < CLOSE, "a control frame has at most 125 bytes"
            size = int.from_bytes(self._exactly(2 if size == 126 else 8), "big")
        payload = unmasked(self._exactly(4), self._exactly(size))
        self.frames.append(ReceivedFrame(opcode, fin, size, time.monotonic()))
        if opcode >= CLOSE:
            assert fin, "a control frame is never fragmented"
            self._control(opcode, payload)
        else:
            assert (opcode == CONTINUATION) == (self._message is not None), (
                "a message begins with its opcode and goes on with continuations"
            )
            self._message = (self._message or bytearray()) + payload
            if fin:
                whole, self._message = bytes(self._message), None
                self._receive_message(whole)
        if self.upstream.on_frame is not None:
            self.upstream.on_frame(self, self.frames[-1])
        self.upstream.notify()

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.pings.append(payload)
            if self.answers_pings:
                self.frame(PONG, payload)
        elif opcode == PONG:
            self.pongs.append(payload)
        elif opcode == CLOSE:
            self.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
            self.close_reason = payload[2:]
            if not self._closing:
                self._closing = True
                self.frame(CLOSE, payload[:2])
            raise EOFError
        else:
            raise AssertionError(f"there is no opcode {opcode}")

    def _receive_message(self, raw: bytes) -> None:
        body = json.loads(raw.decode("utf-8"))
        if body.get("type") != "response.create":
            self.messages.append(body)
            return
        if self._closing:
            return  # on its way when the socket closed: certainly not read by the service
        assert self.busy is None or self.upstream.lanes, (
            "a second turn came before the first one had ended"
        )
        head = self.handshake
        number, now = head.connection, time.monotonic()
        request = Recorded(
            "SEND", head.target, head.headers, raw, body, number, now, transport="websocket"
        )
        self.busy = request
        self.turns.append(request)
        self._work.put((request, self.upstream.arrive(request)))

    def _exactly(self, size: int) -> bytes:
        while len(self._buffered) < size:
            data = self._receive()
            self._until_reading()
            if not data:
                raise EOFError
            self.bytes_received += len(data)
            self._buffered += data
        data = bytes(self._buffered[:size])
        del self._buffered[:size]
        return data

    def _until_reading(self) -> None:
        while not self.reading.wait(0.05):
            if self.upstream.stopping.is_set() or self._peer_is_gone():
                raise EOFError

    def _receive(self) -> bytes:
        if not isinstance(self.sock, ssl.SSLSocket):
            return self.sock.recv(1 << 16)
        while not self.sock.pending() and not select.select([self.sock], [], [], 0.05)[0]:
            if self._closing or self.upstream.stopping.is_set():
                return b""
        with self._sending:  # one thread at a time may use a TLS connection
            return self.sock.recv(1 << 16)

    def _peer_is_gone(self) -> bool:
        poller = select.poll()
        poller.register(self.sock.fileno(), select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        return bool(poller.poll(0))


class WebSocketUpstream(Upstream):
    """The server: WebSockets and plain requests on one port.

    :ivar upgrade: what answers an upgrade that the queue of one-time answers does not.
    :ivar upgrades: every request for an upgrade, in order.
    :ivar sockets: every upgrade that was accepted, in order.
    :ivar lanes: whether a socket may have several turns at once.
    :ivar on_frame: called by the reader of a socket after each frame.
    """

    def __init__(self, script: Script | None = None, **options: Any) -> None:
        super().__init__(script or remembering, **options)
        self.lanes = False
        self.upgrade: UpgradeScript = Handshake.accept
        self.upgrades: list[Recorded] = []
        self.sockets: list[UpstreamSocket] = []
        self.on_frame: Callable[[UpstreamSocket, ReceivedFrame], object] | None = None
        self._upgrade_queue: deque[UpgradeScript] = deque()

    # ---- for tests

    def queue_upgrades(self, *scripts: UpgradeScript) -> None:
        """Answer the next upgrades by these, one each."""
        self._upgrade_queue.extend(scripts)

    def transports(self) -> list[str]:
        """By which transport each request came."""
        return [request.transport for request in self.requests]

    def knows(self, response_id: str, exchange: Exchange) -> bool:
        """Whether a request can continue this response."""
        done = [each for each in self.requests if each.response_id == response_id]
        if any(each.body.get("store", True) is not False for each in done):
            return True
        if not isinstance(exchange, SocketExchange):
            return False
        turns = [each for each in exchange.socket.turns if each is not exchange.request]
        made = [each.response_id for each in turns if each.response_id is not None]
        return response_id in (made if self.lanes else made[-1:])

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 15.0) -> None:
        """Wait until something is true that frames, turns or ends of sockets make true."""
        with self._arrived:
            assert self._arrived.wait_for(condition, timeout), f"the upstream expected {what}"

    def wait_sockets(self, count: int, timeout: float = 15.0) -> list[UpstreamSocket]:
        """Wait until so many upgrades were accepted; returns all sockets."""
        self.wait(lambda: len(self.sockets) >= count, f"{count} sockets", timeout)
        return list(self.sockets)

    def wait_upgrades(self, count: int, timeout: float = 15.0) -> list[Recorded]:
        """Wait until so many upgrades were asked for; returns all."""
        self.wait(lambda: len(self.upgrades) >= count, f"{count} upgrades", timeout)
        return list(self.upgrades)

    def notify(self) -> None:
        """Something happened that a test may wait for."""
        with self._arrived:
            self._arrived.notify_all()

    def reset(self) -> None:
        """A clean start for the next test; open sockets end, so that none is used again."""
        super().reset()
        for each in self.sockets:
            each.drop()
        self.upgrade = Handshake.accept
        self.upgrades, self.sockets = [], []
        self._upgrade_queue.clear()
        self.on_frame = None

    def stop(self) -> None:
        for each in self.sockets:
            each.drop()
        super().stop()

    # ---- threads

    def _exchange(self, sock: socket.socket, request: Recorded) -> bool:
        if (request.header("upgrade") or "").lower() != "websocket":
            return super()._exchange(sock, request)
        request.transport = "websocket"
        handshake = Handshake(self, sock, request)
        with self._arrived:
            self.upgrades.append(request)
            script = self._upgrade_queue.popleft() if self._upgrade_queue else self.upgrade
            self._arrived.notify_all()
        peer = UpstreamSocket(self, sock, request)
        try:
            script(handshake)
        except Refusal:
            return True
        except (Closed, OSError):
            return False
        except BaseException as error:
            self.errors.append(error)
            return False
        if handshake.accepted:
            with self._arrived:
                self.sockets.append(peer)
                self._arrived.notify_all()
            peer.serve()
        return False


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = False
) -> bytes:
    """The bytes of one frame; a server's is not masked."""
    return frame_head(opcode, len(payload), fin=fin, rsv=rsv, masked=masked) + payload


def frame_head(
    opcode: int, size: int, *, fin: bool = True, rsv: int = 0, masked: bool = False
) -> bytes:
    """The head of a frame of this size, whatever follows; a mask has only zeros."""
    first, mask = (0x80 if fin else 0) | (rsv << 4) | opcode, 0x80 if masked else 0
    if size < 126:
        head = bytes([first, mask | size])
    elif size < 65536:
        head = bytes([first, mask | 126]) + struct.pack("!H", size)
    else:
        head = bytes([first, mask | 127]) + struct.pack("!Q", size)
    return head + (b"\0\0\0\0" if masked else b"")


def unmasked(mask: bytes, payload: bytes) -> bytes:
    """The payload of a client's frame."""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def _encoded(message: Json | str | bytes) -> bytes:
    if isinstance(message, bytes):
        return message
    if isinstance(message, str):
        return message.encode()
    return json.dumps(message, separators=(",", ":")).encode()


def _head(status: int, fields: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _linger_not(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
