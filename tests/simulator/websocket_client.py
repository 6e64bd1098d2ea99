"""A client of the simulator's WebSockets: wsproto on a connection of the tests' reactor."""

from __future__ import annotations

import base64
import json
import os
import struct
from collections import deque
from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from tests.simulator.running import RunningSimulator, until
from tests.support.events import Json
from tests.support.wsclient import TERMINAL, FrameTap

BETA = ("OpenAI-Beta", "responses_websockets=2026-02-06")


class SocketClient(Protocol):
    """One connection; what it received is there to be looked at."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.frames: deque[Json] = deque()  # messages that were not read yet
        self.texts: list[str] = []
        self.pongs: list[bytes] = []
        self.pings = 0
        self.close_code: int | None = None
        self.lost = False
        self.error: Exception | None = None
        self.answers_pings = True
        self.tap = FrameTap()
        self._pieces: list[str] = []
        self._head = b""
        self._wire = Connection(ConnectionType.CLIENT)

    def dataReceived(self, data: bytes) -> None:
        if not self.status:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            first, *lines = head.decode("latin-1").split("\r\n")
            self.status = int(first.split(" ")[1])
            pairs = (line.partition(":") for line in lines)
            self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        if self.status != 101:
            self.body += data
        elif data and self.error is None:
            self._read(data)

    def _read(self, data: bytes) -> None:
        self.tap.feed(data)
        try:
            self._wire.receive_data(data)
            for event in self._wire.events():
                self._event(event)
        except Exception as error:
            self.error = error

    def _event(self, event: Any) -> None:
        if isinstance(event, TextMessage):
            self._pieces.append(event.data)
            if event.message_finished:
                text = "".join(self._pieces)
                self._pieces.clear()
                self.texts.append(text)
                self.frames.append(json.loads(text))
        elif isinstance(event, Pong):
            self.pongs.append(bytes(event.payload))
        elif isinstance(event, Ping):
            self.pings += 1
            if self.answers_pings:
                self._write(event.response())
        elif isinstance(event, CloseConnection):
            self.close_code = int(event.code)
            self._write(event.response())

    def _write(self, event: Any) -> None:
        assert self.transport is not None
        self.transport.write(self._wire.send(event))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True

    # ---- sending

    def says(self, **message: Any) -> None:
        self.says_text(json.dumps(message))

    def says_text(self, text: str) -> None:
        self._write(TextMessage(data=text))

    def says_bytes(self, data: bytes) -> None:
        self._write(BytesMessage(data=data))

    def create(self, given: Any = "hello", **members: Any) -> None:
        self.says(type="response.create", model="m", input=given, **members)

    def ping(self, payload: bytes = b"?") -> None:
        self._write(Ping(payload=payload))

    def close(self, code: int = 1000) -> None:
        self._write(CloseConnection(code=code))

    def drop(self) -> None:
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]

    # ---- receiving

    async def event(self) -> Json:
        await until(lambda: self.frames or self.lost)
        assert self.frames, f"the socket ended with {self.close_code}"
        return self.frames.popleft()

    async def events(self, *types: str, lane: str | None = None) -> list[Json]:
        """The events of a lane up to one of these types; of every lane with lane='*'."""
        found: list[Json] = []
        while True:
            event = await self.event()
            if lane == "*" or event.get("stream_id") == lane:
                found.append(event)
                if event.get("type") in (types or TERMINAL):
                    return found

    async def turn(self, given: Any = "hello", **members: Any) -> list[Json]:
        self.create(given, **members)
        return await self.events(lane=members.get("stream_id"))

    async def done(self, given: Any = "hello", **members: Any) -> Json:
        """The response of a turn that has to complete."""
        last = (await self.turn(given, **members))[-1]
        assert last["type"] == "response.completed", last
        response = last["response"]
        assert isinstance(response, dict)
        return response

    async def refused(self, given: Any = "hello", **members: Any) -> Json:
        """The error of a request that has to be refused."""
        events = await self.turn(given, **members)
        assert [event["type"] for event in events] == ["error"], events
        assert events[0]["status"] >= 400
        error = events[0]["error"]
        assert isinstance(error, dict)
        return error

    async def closed(self) -> int | None:
        """The code of the Close frame, None without one."""
        await until(lambda: self.lost or self.close_code is not None)
        return self.close_code


async def dialled(
    running: RunningSimulator,
    account: str = "stateful",
    *headers: tuple[str, str],
    path: str | None = None,
    key: str | None = None,
) -> SocketClient:
    """A connection whose upgrade was sent."""
    known = running.simulator.account(account)
    prefix = running.simulator.prefix_of(known)
    lines = [
        f"GET {path or prefix + '/responses'} HTTP/1.1",
        f"Host: 127.0.0.1:{running.service.port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        f"Authorization: Bearer {known.key if key is None else key}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    endpoint = HostnameEndpoint(reactor, "127.0.0.1", running.service.port)
    client = await connectProtocol(endpoint, SocketClient())
    client.transport.write("\r\n".join([*lines, "", ""]).encode())
    return client


async def opened(
    running: RunningSimulator, account: str = "stateful", *headers: tuple[str, str], **more: Any
) -> SocketClient:
    """An open WebSocket."""
    client = await dialled(running, account, *headers, **more)
    await until(lambda: client.status or client.lost)
    assert client.status == 101, (client.status, client.body)
    return client


async def refused_upgrade(
    running: RunningSimulator, account: str = "stateful", *headers: tuple[str, str], **more: Any
) -> SocketClient:
    """A connection whose upgrade was refused, with the whole answer."""
    client = await dialled(running, account, *headers, **more)
    await until(lambda: client.status or client.lost)
    assert client.status not in (0, 101), "the upgrade was not refused"
    await until(lambda: len(client.body) >= int(client.headers.get("content-length", "0")))
    client.drop()
    return client


def close_frame(code: int) -> bytes:
    """A server's Close frame."""
    return b"\x88\x02" + struct.pack("!H", code)
