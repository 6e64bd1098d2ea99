"""make run: the gateway on its simulator, and one five-turn tool conversation through it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.task import react

from gateway.config import AdminSettings, Settings, SimulatorSettings, StateSettings
from gateway.listening import CannotListen
from gateway.service import GatewayService
from gateway.turn.turn_log import TurnRecord

_TURN_SECONDS = 30

_WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class ConversationFailed(Exception):
    """The gateway did not do what it promises."""


class DemoClient(WebSocketClientProtocol):
    """A client of the Responses API that does one turn after the other; it stores nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: Deferred[dict[str, Any]] | None = None
        self.opened: Deferred[DemoClient] = Deferred()

    def turn(self, **fields: Any) -> Deferred[dict[str, Any]]:
        """Send a ``response.create``; fires with the finished response object."""
        self._waiting = Deferred()
        self._waiting.addTimeout(_TURN_SECONDS, self.factory.reactor)
        create = {
            "type": "response.create",
            "model": "simulated-model",
            "store": False,
            **fields,
        }
        self.sendMessage(json.dumps(create).encode())
        return self._waiting

    def onOpen(self) -> None:
        """Connected."""
        self.opened.callback(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """An event; only the last of a turn matters here."""
        event = json.loads(payload)
        if event["type"] == "response.completed":
            self._ends(lambda waiting: waiting.callback(event["response"]))
        elif event["type"] in ("error", "response.failed", "response.incomplete"):
            self._ends(lambda waiting: waiting.errback(ConversationFailed(payload.decode())))

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        """Disconnected."""
        self._ends(lambda waiting: waiting.errback(ConversationFailed(f"closed: {reason}")))

    def _ends(self, fire: Callable[[Deferred[dict[str, Any]]], None]) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            fire(waiting)


async def converse(client: DemoClient, show: Callable[[str, dict[str, Any]], None]) -> None:
    """Five turns: a question, three rounds of a tool, and a question about the first turn.

    :param show: called after each turn with what was said and the response.
    :raises ConversationFailed: when a tool call or the thread is lost.
    """
    question = "My code word is heron. Please call get_weather 3 times, then sum up."
    response = await client.turn(input=question, tools=[_WEATHER])
    show(question, response)
    for degrees in (11, 14, 17):
        calls = [item for item in response["output"] if item["type"] == "function_call"]
        if not calls:
            raise ConversationFailed("the model called no tool")
        outputs = [
            {
                "type": "function_call_output",
                "call_id": call["call_id"],
                "output": f"{degrees} degrees",
            }
            for call in calls
        ]
        response = await client.turn(
            input=outputs, tools=[_WEATHER], previous_response_id=response["id"]
        )
        show(f"{degrees} degrees", response)
    question = "Which code word did I tell you first?"
    response = await client.turn(input=question, previous_response_id=response["id"])
    show(question, response)
    if "heron" not in said(response):
        raise ConversationFailed(f"the thread was lost: {said(response)}")


def said(response: dict[str, Any]) -> str:
    """What a response says or calls, in one line."""
    parts: list[str] = []
    for item in response["output"]:
        if item["type"] == "function_call":
            parts.append(f"calls {item['name']}({item['arguments']})")
        elif item["type"] == "message":
            parts += [part["text"] for part in item["content"]]
    return " ".join(" ".join(parts).split())


def shown_end(records: Sequence[TurnRecord], sockets: int) -> str:
    """What the turns of the conversation cost, as the demo prints it.

    :param sockets: how many WebSockets to accounts were opened.
    """
    used = {record.transport for record in records}
    way = "one WebSocket" if sockets == 1 else f"{sockets} WebSockets"
    if used != {"websocket"}:
        way = " and ".join(sorted(map(str, used)))
    sizes = ", ".join(str(record.upstream_bytes) for record in records)
    return f"{len(records)} turns over {way} to the account, {sizes} bytes: each what it adds\n"


def shown_turn(number: int, record: TurnRecord, question: str, answer: str) -> str:
    """A turn as the demo prints it."""
    chained = f"chained to {record.chained_to}" if record.chained_to else f"{record.route}"
    return (
        f"turn {number}  account {record.account}\n"
        f"  response  {record.response_id}\n"
        f"  context   {chained}\n"
        f"  sent      {record.upstream_bytes} bytes over {record.transport}\n"
        f"  client    {question}\n"
        f"  model     {answer}\n"
    )


async def demonstrate(reactor: Any, settings: Settings, port: int, once: bool) -> None:
    """Start the gateway, hold the conversation, and serve on unless ``once``."""
    gateway = GatewayService(settings, reactor)
    try:
        gateway.startService()
    except CannotListen as error:
        raise SystemExit(f"responses-gateway: {error}\nTry: make run ARGS='--port 9080'") from None
    reactor.addSystemEventTrigger("before", "shutdown", gateway.stopService)
    factory = WebSocketClientFactory(f"ws://127.0.0.1:{port}/v1/responses", reactor=reactor)
    factory.protocol = DemoClient
    endpoint = HostnameEndpoint(reactor, "127.0.0.1", port)
    client: Any = await endpoint.connect(factory)
    await client.opened
    turns = 0

    def show(question: str, response: dict[str, Any]) -> None:
        nonlocal turns
        turns += 1
        record = gateway.turn_services.turn_log.latest()[-1]
        print(shown_turn(turns, record, question, said(response)), flush=True)

    accounts = gateway.turn_services.pool.accounts
    try:
        await converse(client, show)
    except ConversationFailed as error:
        raise SystemExit(f"responses-gateway: the conversation failed: {error}") from None
    figures = [found for each in accounts if (found := each.upstream.sockets()) is not None]
    records = list(gateway.turn_services.turn_log.latest())[-turns:]
    print(shown_end(records, sum(found.opened for found in figures)), flush=True)
    client.sendClose(1000)
    if not once:
        print(
            f"Serving ws://127.0.0.1:{port}/v1/responses (any key);"
            f" status on http://127.0.0.1:{port + 1}/status. Ctrl-C stops.",
            flush=True,
        )
        await Deferred()


def _port(text: str) -> int:
    """A port number; the next one must be valid, too."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) < 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a port from 1 to 65534")
    return int(text)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m gateway.demo", description=__doc__)
    parser.add_argument("--port", type=_port, default=8080, help="admin gets the next one (8080)")
    parser.add_argument("--once", action="store_true", help="end after the conversation")
    arguments = parser.parse_args()
    settings = Settings(
        listen=f"tcp:{arguments.port}:interface=127.0.0.1",
        admin=AdminSettings(listen=f"tcp:{arguments.port + 1}:interface=127.0.0.1"),
        simulator=SimulatorSettings(),
        state=StateSettings(store="memory"),
    )

    def run(reactor: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(
            demonstrate(reactor, settings, arguments.port, arguments.once)
        )

    react(run)


if __name__ == "__main__":
    main()
