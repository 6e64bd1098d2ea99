"""What clients are sending is bounded over all connections, and shared fairly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
import txaio
from hypothesis import given
from hypothesis import strategies as st
from wsproto.events import TextMessage

from gateway.config import KeySettings, LimitSettings
from gateway.protocol.errors import ApiError
from gateway.server.connections import IngressBuffer
from tests.server.listener import Client, House
from tests.server.websocket_client import Door

KEYS = (KeySettings(name="laptop", key="sk-client"), KeySettings(name="desk", key="sk-desk"))
SMALL = LimitSettings(max_incoming_bytes=4096)


class FakeSender:
    """A connection that sends."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.told: ApiError | None = None

    def give_up(self, error: ApiError) -> None:
        assert self.told is None, "told twice"
        self.told = error


# --- who is given up -----------------------------------------------------------------------


def test_the_largest_of_who_sends_most_is_given_up() -> None:
    incoming = IngressBuffer(100)
    many, large, other = FakeSender("a"), FakeSender("a"), FakeSender("b")
    incoming.keep(many, 20)
    incoming.keep(large, 30)
    incoming.keep(other, 45)
    incoming.keep(other, 5)
    assert large.told is None
    incoming.keep(many, 1)
    assert large.told is not None
    assert (large.told.status, large.told.code) == (503, "unavailable")
    assert large.told.headers == {"retry-after": "5"}
    assert many.told is other.told is None
    assert incoming.bytes == 71


def test_what_is_whole_makes_room() -> None:
    incoming = IngressBuffer(100)
    first, second = FakeSender("a"), FakeSender("b")
    incoming.keep(first, 100)
    incoming.leave(first)
    incoming.leave(first)
    incoming.keep(second, 100)
    assert second.told is None
    assert incoming.bytes == 100


def test_one_that_is_too_large_by_itself_harms_nobody_else() -> None:
    incoming = IngressBuffer(100)
    small, large = FakeSender("a"), FakeSender("b")
    incoming.keep(small, 10)
    incoming.keep(large, 95)
    assert large.told is not None
    assert small.told is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60), st.booleans()), max_size=60))
def test_it_never_keeps_more_than_it_may(steps: list[tuple[int, int, bool]]) -> None:
    incoming = IngressBuffer(100)
    senders = [FakeSender("ab"[number % 2]) for number in range(6)]
    for number, size, leaves in steps:
        sender = senders[number]
        if leaves:
            incoming.leave(sender)
        else:
            incoming.keep(sender, size)
            if sender.told is not None:
                senders[number] = FakeSender(sender.tenant)
        for at, each in enumerate(senders):
            if each.told is not None:
                senders[at] = FakeSender(each.tenant)
        assert incoming.bytes <= 100
    for sender in senders:
        incoming.leave(sender)
    assert incoming.bytes == 0


# --- by HTTP -------------------------------------------------------------------------------


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., House]]:
    monkeypatch.setattr(txaio.config, "loop", txaio.config.loop)
    houses: list[House] = []

    def built() -> House:
        houses.append(House(limits=SMALL, keys=KEYS))
        return houses[-1]

    yield built
    for house in houses:
        house.check_rest()
        assert house.limiter.incoming.bytes == 0


@pytest.fixture
def house(build: Callable[..., House]) -> House:
    return build()


def sends(client: Client, size: int, length: int = 4000) -> Client:
    """Begin a body of ``length`` bytes and send ``size`` of them."""
    client.gives(client.head(headers={"Content-Length": str(length)}) + b" " * size)
    return client


def test_a_body_that_does_not_fit_is_answered_and_its_connection_ends(house: House) -> None:
    slow = sends(house.client(), 3000)
    quick = sends(house.client("sk-desk"), 1000)
    assert not slow.bytes_out
    quick.gives(b" " * 1000)
    answer = slow.answer()
    assert (answer.status, answer.error["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "5"
    assert answer.headers["connection"] == "close"
    assert not quick.bytes_out
    assert house.limiter.incoming.bytes == 2000
    slow.gives(b" " * 1000)
    assert slow.is_closed
    assert not slow.bytes_out, "one answer is enough"


@pytest.mark.parametrize("how", ["whole", "lost", "too slow", "broken"])
def test_a_body_takes_no_room_after_its_end(house: House, how: str) -> None:
    client = house.client()
    if how == "broken":
        client.gives(client.head(headers={"Transfer-Encoding": "chunked"}))
        client.gives(b"3e8\r\n" + b" " * 1000)
    else:
        sends(client, 1000, 1500)
    assert house.limiter.incoming.bytes == 1000
    if how == "whole":
        client.gives(b" " * 500)
        assert client.answer().status == 400
    elif how == "lost":
        client.is_lost()
    elif how == "broken":
        client.gives(b"nonsense\r\n")
        assert client.answer().status == 400
    else:
        house.reactor.advance(61)
        assert client.answer().status == 408
    assert house.limiter.incoming.bytes == 0


def test_heads_of_strangers_make_room_for_who_has_a_key(house: House) -> None:
    known = sends(house.client(), 1500)
    first, second = house.client(None), house.client(None)
    first.gives(b"GET / HTTP/1.1\r\nx: " + b"x" * 1800)
    second.gives(b"GET / HTTP/1.1\r\nx: " + b"x" * 1000)
    answer = first.answer()
    assert (answer.status, answer.error["code"]) == (503, "unavailable")
    assert first.is_closed
    first.gives(b"x" * 5000)
    assert not first.bytes_out, "one answer is enough"
    assert not known.bytes_out
    second.gives(b"\r\n\r\n")
    assert second.answer().status == 404
    assert house.limiter.incoming.bytes == 1500


# --- by WebSocket --------------------------------------------------------------------------


def part(text: str, final: bool = False) -> TextMessage:
    return TextMessage(data=text, message_finished=final)


def test_a_message_that_does_not_fit_is_answered_when_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(txaio.config, "loop", txaio.config.loop)
    door = Door(limits=SMALL)
    slow, quick = door.client(), door.client()
    slow.sends(part("x" * 3000))
    quick.sends(part("x" * 1500))
    assert door.limiter.incoming.bytes == 1500, "the larger one is kept no more"
    slow.sends(part("x" * 5000))
    slow.sends(part("x", final=True))
    (event,) = slow.frames
    assert (event["status"], event["error"]["code"]) == (503, "unavailable")
    assert event["headers"] == {"retry-after": "5"}
    slow.create(store=False)
    assert len(door.world.exchanges()) == 1, "the connection goes on"
    quick.is_lost()
    assert door.limiter.incoming.bytes == 0
    slow.is_lost()
    door.check_rest()


def test_whole_messages_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(txaio.config, "loop", txaio.config.loop)
    door = Door(limits=SMALL)
    client = door.client()
    for _ in range(5):
        client.sends(TextMessage(data=json.dumps({"type": "x" * 3000})))
    assert [event["status"] for event in client.frames] == [400] * 5
    assert door.limiter.incoming.bytes == 0
    client.is_lost()
    door.check_rest()
