"""One event, one frame, the same bytes: protocol.md §10.37, design law 1."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.conformance.conftest import Rig
from tests.support.checks import completed
from tests.support.events import Json, call_item, text_item
from tests.support.upstream import Exchange

pytestmark = pytest.mark.conformance


def odd_turn(exchange: Exchange) -> list[str]:
    """The events of a turn as JSON texts that no encoder would write this way."""
    events = exchange.turn([text_item("h\u00e9llo"), call_item()], unknown_member=[1])
    novel: Json = {"type": "response.novel.event", "x": 1}
    events.insert(4, {**novel, "sequence_number": -1})
    for number, event in enumerate(events):
        event["sequence_number"] = number
    texts = []
    for event in events:
        text = json.dumps(event, ensure_ascii=False, separators=(" ,", ": "))
        texts.append(text.replace('"h\u00e9', '"h\\u00E9').replace("{", "{ ", 1))
    return texts


def framings() -> list[Any]:
    def lines(end: str, event_line: bool, space: str = " ") -> Any:
        def frame(text: str, kind: str) -> str:
            head = f"event:{space}{kind}{end}" if event_line else ""
            return f"{head}data:{space}{text}{end}{end}"

        return frame

    def commented(text: str, kind: str) -> str:
        return f": comment\nid: 7\nretry: 10\nevent: {kind}\ndata: {text}\n\n"

    return [
        pytest.param(lines("\n", True), id="event lines"),
        pytest.param(lines("\n", False), id="data only"),
        pytest.param(lines("\r\n", True), id="crlf"),
        pytest.param(lines("\n", True, ""), id="no space"),
        pytest.param(commented, id="comments, ids, retry"),
    ]


@pytest.mark.parametrize("frame", framings())
@pytest.mark.parametrize("size", [1, 7, 100000], ids=lambda size: f"chunks of {size}")
def test_10_37_each_event_is_one_frame_with_the_same_bytes(rig: Rig, frame: Any, size: int) -> None:
    sent: list[str] = []

    def script(exchange: Exchange) -> None:
        sent.extend(odd_turn(exchange))
        kinds = [json.loads(text)["type"] for text in sent]
        data = "".join(frame(text, kind) for text, kind in zip(sent, kinds, strict=True)).encode()
        data += b"data: [DONE]\n\n"
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        exchange.start()
        exchange.raw(b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces))
        exchange.end()

    rig.upstream.queue(script)
    client = rig.connect()
    client.create()
    client.until_terminal()
    client.assert_silent(0.1)
    assert client.texts == sent, "every event reaches the client as the same bytes"


def test_10_37_multi_line_data_is_one_event(rig: Rig) -> None:
    def script(exchange: Exchange) -> None:
        events = exchange.turn()
        text = json.dumps(events[-1], indent=1)
        exchange.sse(*events[:-1])
        exchange.chunks("".join(f"data: {line}\n" for line in text.splitlines()).encode() + b"\n")
        exchange.end()

    rig.upstream.queue(script)
    client = rig.connect()
    events = client.turn()
    assert completed(events)["output"][0]["content"][0]["text"] == "hello"


def test_10_37_events_arrive_as_they_are_made(rig: Rig) -> None:
    step = threading.Semaphore(0)

    def script(exchange: Exchange) -> None:
        events = exchange.turn([text_item("abcdef")], pieces=6)
        exchange.sse(*events[:4])
        for event in events[4:10]:
            exchange.sse(event)
            step.acquire(timeout=20)
        exchange.sse(*events[10:])
        exchange.end()

    rig.upstream.queue(script)
    client = rig.connect()
    client.create()
    for letter in "abcdef":
        delta = client.until("response.output_text.delta")[-1]
        assert delta["delta"] == letter, "each delta comes before the upstream makes the next"
        step.release()
    completed(client.until_terminal())
