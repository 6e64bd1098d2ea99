"""An answer that is cut anywhere ends once for the client, and never with text that was not said.

The bytes of one answer are cut at every event: at its edges, within its lines and within a
character of several bytes. The connection then ends in each of three ways, through each door.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conformance.conftest import Stage
from tests.support.checks import assert_one_terminal, note
from tests.support.events import Json, call_item, reasoning_item, text_item
from tests.support.gateway import Gateway, account
from tests.support.httpclient import HttpClient
from tests.support.upstream import Exchange
from tests.support.wsclient import WsClient

pytestmark = pytest.mark.conformance

TEXT = "grüne Äpfel, süße Birnen"
ARGUMENTS = '{"fruit":"Äpfel"}'
ENDINGS = ("end", "close", "reset")
DOORS = ("websocket", "events", "object")


def written(event: Json) -> bytes:
    """An event whose characters stay as they are, so that a cut can part one."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def places(stream: bytes) -> Iterator[int]:
    """Where the stream is cut, in bytes from its beginning."""
    start = 0
    while start < len(stream):
        end = stream.index(b"\n\n", start) + 2
        event, size = stream[start:end], end - start
        data = event.index(b"\n") + 1
        within = {0, 3, data - 1, data, data + 3, size // 2, size - 3, size - 2, size - 1}
        if (umlaut := event.find("ü".encode())) > 0:
            within.add(umlaut + 1)
        yield from (start + each for each in sorted(within))
        start = end
    yield start


@dataclass
class Cutter:
    """An upstream's script: the first bytes of an answer, and the end of its connection."""

    ending: str
    kept: int | None = None  # None: all
    stream: bytes = b""
    asked: int = 0

    def __call__(self, exchange: Exchange) -> None:
        self.asked += 1
        items = [reasoning_item(), text_item(TEXT), call_item(arguments=ARGUMENTS)]
        self.stream = b"".join(map(written, exchange.turn(items)))
        exchange.start()
        if kept := self.stream[: self.kept]:
            exchange.chunks(kept)
        if self.ending == "close":
            exchange.close()
        if self.ending == "reset":
            exchange.reset()
        exchange.end()


def ask(gateway: Gateway, door: str, client: WsClient) -> list[Json]:
    """One turn through a door, as events: those of its stream, or one that has the object."""
    if door == "websocket":
        return client.turn()
    answer = HttpClient(gateway.port).create(stream=door == "events")
    if answer.status != 200:
        return [{"type": "error", "status": answer.status, **answer.json}]
    if door == "events":
        return answer.events
    return [{"type": f"response.{answer.json['status']}", "response": answer.json}]


def check(events: list[Json], whole: bool, where: str) -> None:
    """One terminal event, and what came before it is the beginning of what was said."""
    assert_one_terminal(events)
    completed = events[-1]["type"] == "response.completed"
    assert completed == whole, f"{where}: {events[-1]}"
    said = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    arguments = "".join(
        e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta"
    )
    assert TEXT.startswith(said), f"{where}: {said!r}"
    assert ARGUMENTS.startswith(arguments), f"{where}: {arguments!r}"
    if completed and len(events) > 1:
        done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
        assert (said, arguments) == (TEXT, ARGUMENTS), where
        assert events[-1]["response"]["output"] == done, where
    if completed:
        check_whole(events[-1]["response"], where)


def check_whole(response: Json, where: str) -> None:
    assert response["status"] == "completed", where
    _, message, call = response["output"]
    assert message["content"][0]["text"] == TEXT, where
    assert call["arguments"] == ARGUMENTS, where


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("door", DOORS)
def test_a_stream_cut_anywhere_ends_once(stage: Stage, door: str, ending: str) -> None:
    cutter = Cutter("end")
    gateway = stage.gateway(account("solo", stage.upstream(cutter)))
    client = gateway.connect()
    check(ask(gateway, door, client), True, "not cut")
    stream, cutter.ending = cutter.stream, ending
    count = 0
    for place in places(stream):
        cutter.kept, asked = place, cutter.asked
        whole = place == len(stream) or (ending == "end" and place >= len(stream) - 2)
        where = f"{ending} after {stream[:place][-40:]!r}"
        events = ask(gateway, door, client)
        assert cutter.asked > asked, f"{where}: the upstream was not asked"
        check(events, whole, where)
        count += 1
    client.assert_silent(0.2)
    note(f"{count} answers cut, {door}, {ending}")
