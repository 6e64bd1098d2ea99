"""Looks on between a client and the gateway: a TCP relay that keeps every byte of each connection.

`ProxyTrap` is what the proxy variables of a client point at: nothing may ever connect to it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from types import TracebackType
from typing import Any, TypeVar

from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol, Opcode

L = TypeVar("L", bound="_Listener")


class _Listener:
    """Accepts on a loopback port in a thread until closed; a context manager."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept_all, daemon=True)

    def __enter__(self: L) -> L:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)

    def _accept_all(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError:
                return
            self._accepted(accepted)

    def _accepted(self, accepted: socket.socket) -> None:
        raise NotImplementedError


class ProxyTrap(_Listener):
    """Records who tries to leave the machine through the proxy, and hangs up on it."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _accepted(self, accepted: socket.socket) -> None:
        with accepted:
            accepted.settimeout(2)
            head = b"(nothing sent)"
            with contextlib.suppress(OSError):
                head = accepted.recv(4096)
            self.attempts.append(head.split(b"\r\n")[0].decode("latin-1"))


class Connection:
    """One connection as it was on the wire, both ways."""

    def __init__(self) -> None:
        self.sent = bytearray()  # by the client
        self.received = bytearray()

    @property
    def request_line(self) -> str:
        return self.sent.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def status(self) -> int:
        """Of the first HTTP answer; 0 when there was none."""
        words = self.received.split(b"\r\n", 1)[0].split()
        return int(words[1]) if len(words) > 1 else 0

    @property
    def client_frames(self) -> list[dict[str, Any]]:
        return self._messages(self.sent, client=False)

    @property
    def server_frames(self) -> list[dict[str, Any]]:
        return self._messages(self.received, client=True)

    @property
    def completed_ids(self) -> list[str]:
        """The ids of the responses that were completed, warm-up included."""
        frames = self.server_frames
        return [
            each["response"]["id"] for each in frames if each.get("type") == "response.completed"
        ]

    def _messages(self, stream: bytearray, *, client: bool) -> list[dict[str, Any]]:
        if self.status != 101:
            return []
        extensions: list[Extension] = []
        head = bytes(self.received).partition(b"\r\n\r\n")[0].decode("latin-1")
        for line in head.split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() == "sec-websocket-extensions" and "deflate" in value:
                deflate = PerMessageDeflate()
                deflate.finalize(value.strip())
                extensions.append(deflate)
        protocol = FrameProtocol(client=client, extensions=extensions)
        protocol.receive_bytes(bytes(stream).partition(b"\r\n\r\n")[2])
        messages, text = [], ""
        for frame in protocol.received_frames():
            if frame.opcode is Opcode.TEXT:
                text += str(frame.payload)
                if frame.message_finished:
                    messages.append(json.loads(text))
                    text = ""
        return messages

    def summary(self) -> str:
        """The connection in lines, for the report of a failed test."""
        lines = [f"{self.request_line} -> {self.status}"]
        for frame in self.client_frames:
            types = [item.get("type", "message") for item in _items(frame)]
            previous = frame.get("previous_response_id")
            lines.append(f"  > {frame.get('type')} previous={previous} input={types}")
        lines.append(f"  < completed: {' '.join(self.completed_ids)}")
        for frame in self.server_frames:
            if frame.get("type") in ("error", "response.failed", "response.incomplete"):
                lines.append(f"  < {json.dumps(frame)}")
        return "\n".join(lines)


class Tap(_Listener):
    """The relay. Point the client at `port`; it connects on to `target` on loopback."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target
        self.connections: list[Connection] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def report(self) -> str:
        return "\n".join(connection.summary() for connection in self.connections)

    def _accepted(self, accepted: socket.socket) -> None:
        connection = Connection()
        self.connections.append(connection)
        try:
            onward = socket.create_connection(("127.0.0.1", self.target), timeout=10)
        except OSError:
            accepted.close()
            return
        onward.settimeout(None)
        relay = threading.Thread(target=_relay, args=(accepted, onward, connection), daemon=True)
        relay.start()


def _relay(client: socket.socket, server: socket.socket, connection: Connection) -> None:
    back = threading.Thread(target=_pump, args=(server, client, connection.received), daemon=True)
    back.start()
    _pump(client, server, connection.sent)
    back.join()
    client.close()
    server.close()


def _pump(source: socket.socket, sink: socket.socket, record: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            record += data
            sink.sendall(data)
    # The end of one direction ends both: a client that is gone must be gone for the gateway too.
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _items(frame: dict[str, Any]) -> list[dict[str, Any]]:
    given = frame.get("input")
    return [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
