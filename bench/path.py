"""The path of a small turn: what it calls before its request is written to the upstream.

    python bench/path.py [--list] [--turns N]

One process holds the gateway, its simulator and a client.  The first turn warms everything up; the
last one continues it.  From the moment the client's message is read until the first byte of the
request is written to the upstream's connection, every call of a function of ``gateway/`` counts.
Modules and calls do not depend on the machine's load, so two versions can be compared exactly.
"""

from __future__ import annotations

import argparse
import gc
import json
import socket
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.task import react

from gateway.config import Settings, SimulatorSettings
from gateway.service import GatewayService

PACKAGE = str(Path(sys.modules["gateway.service"].__file__ or "").parent) + "/"
TURN_SECONDS = 10
TEXT = "Please tell me about the river and the herons that live beside it. " * 4


class Trace:
    """Counts the calls of the gateway's functions between a message and its request.

    :ivar calls: how often each function was called, as ``module:function``.
    :ivar order: the calls in their order.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.order: list[str] = []

    def start(self) -> None:
        """Count from the next call on; the collector's callbacks would count at random."""
        gc.disable()
        sys.setprofile(self._profile)

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            module = code.co_filename[len(PACKAGE) :]
            self.order.append(f"{module}:{getattr(code, 'co_qualname', code.co_name)}")
            self.calls[self.order[-1]] += 1
            caller = frame.f_back
            is_upstream = caller is not None and caller.f_code.co_name == "send_message"
            if is_upstream and code.co_name == "write_at_once":
                sys.setprofile(None)  # the request goes out over a WebSocket
        elif code.co_name in ("write", "writeSequence") and "twisted/internet" in code.co_filename:
            data = frame.f_locals.get("data", frame.f_locals.get("iovec", b""))
            first = data if isinstance(data, bytes) else next(iter(data), b"")
            if first.startswith(b"POST "):
                sys.setprofile(None)


class PathClient(WebSocketClientProtocol):
    """A client that sends one turn after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: Deferred[None] = Deferred()
        self.ended: Deferred[dict[str, Any]] = Deferred()

    def turn(self, text: str, parent: str | None, clock: Any) -> Deferred[dict[str, Any]]:
        """Send a turn; fires with the finished response object."""
        self.ended = Deferred()
        self.ended.addTimeout(TURN_SECONDS, clock)
        create = {"type": "response.create", "model": "simulated-model", "input": text}
        if parent is not None:
            create["previous_response_id"] = parent
        self.sendMessage(json.dumps(create).encode())
        return self.ended

    def onOpen(self) -> None:
        self.opened.callback(None)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        event = json.loads(payload)
        if event["type"] == "response.completed":
            self.ended.callback(event["response"])
        elif event["type"] in ("error", "response.failed"):
            self.ended.errback(RuntimeError(payload.decode()))


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def traced(reactor: Any, turns: int) -> Trace:
    """The trace of the last of ``turns`` turns of one conversation."""
    port = free_port()
    settings = Settings(
        listen=f"tcp:{port}:interface=127.0.0.1", simulator=SimulatorSettings(accounts=2)
    )
    gateway = GatewayService(settings, reactor)
    gateway.startService()
    factory = WebSocketClientFactory(f"ws://127.0.0.1:{port}/v1/responses", reactor=reactor)
    factory.protocol = PathClient
    client: Any = await HostnameEndpoint(reactor, "127.0.0.1", port).connect(factory)
    await client.opened
    trace, parent = Trace(), None
    for number in range(turns):
        ended = client.turn(TEXT, parent, reactor)
        if number == turns - 1:
            trace.start()
        parent = (await ended)["id"]
    client.sendClose(1000)
    await gateway.stopService()
    return trace


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the calls in their order")
    parser.add_argument("--turns", type=int, default=4, help="turns of the conversation (4)")
    arguments = parser.parse_args()

    def run(reactor: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(measure(reactor))

    async def measure(reactor: Any) -> None:
        trace = await traced(reactor, arguments.turns)
        if arguments.list:
            print("\n".join(trace.order))
        modules = {name.partition(":")[0] for name in trace.calls}
        print(
            f"{len(modules)} modules, {len(trace.calls)} functions, {trace.calls.total()} calls:"
            f" {', '.join(sorted(modules))}"
        )

    react(run)


if __name__ == "__main__":
    main()
