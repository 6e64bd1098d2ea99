"""Turns whose WebSocket was lost, or cannot carry them: sent again, and nobody is charged."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.conversations.store import Transcript, foreign_response
from gateway.protocol.errors import SOCKET_LOST, SOCKET_UNSUITED, ApiError
from gateway.protocol.upstream_request import UpstreamTurn
from gateway.turn.turn import Turn
from tests.support.events import Json, item_events, opening, text_item, turn_events, user
from tests.turn.fakes import FakeExchange, FakeUpstream, World

LOST = ApiError.bad_gateway("The upstream's WebSocket closed.", SOCKET_LOST)
UNSUITED = ApiError.bad_gateway("A WebSocket cannot carry it.", SOCKET_UNSUITED)


class SocketUpstream(FakeUpstream):
    """Keeps the turns that it was given, too."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.turns: list[UpstreamTurn] = []

    def exchange(self, turn: UpstreamTurn, receiver: Any) -> FakeExchange:
        self.turns.append(turn)
        return super().exchange(turn, receiver)


class Sockets(World):
    """Accounts that are reached over WebSocket; the test says which responses sockets hold."""

    def __init__(self, accounts: int = 1) -> None:
        super().__init__(accounts, keepalive_seconds=0)
        for name, account in self.accounts.items():
            self.upstreams[name] = account.upstream = SocketUpstream(name)  # type: ignore[assignment]

    def begun(self, items: list[Json], parent: Transcript | None = None, **members: Any) -> Turn:
        turn = self.turn(items, parent, store=members.pop("store", False), **members)
        turn.start()
        return turn

    def held(self, name: str = "a", **members: Any) -> Transcript:
        """A response that only a socket of ``name`` can continue."""
        turn = self.begun([user("hi")], **members)
        assert turn.record.account == name
        return self.ends_well(turn, "resp_1", "s/1")

    def ends_well(self, turn: Turn, response_id: str, holder: str | None) -> Transcript:
        assert turn.record.account is not None
        exchange = self.exchanges(turn.record.account)[-1]
        exchange.holder = holder
        self.upstreams[turn.record.account].held = set() if holder is None else {holder}
        named = exchange.body.get("previous_response_id")
        exchange.sends(*turn_events([text_item()], response_id, previous_response_id=named))
        assert turn.recorded is not None, self.sink.types
        return turn.recorded

    def sent(self, name: str = "a") -> UpstreamTurn:
        """The latest turn that ``name`` was given."""
        upstream = self.upstreams[name]
        assert isinstance(upstream, SocketUpstream)
        return upstream.turns[-1]

    def loses(self, name: str = "a", error: ApiError = LOST) -> None:
        """The socket of the latest exchange is lost, with all that it held."""
        self.upstreams[name].held = set()
        self.exchanges(name)[-1].ends(error)

    def check_nobody_is_charged(self) -> None:
        for account in self.accounts.values():
            assert account.failures == 0
            assert account.health.unready() is None
        self.check_rest()


def test_a_lost_turn_is_sent_again_in_full_and_then_over_http() -> None:
    world = Sockets()
    first = world.held()
    turn = world.begun([user("go on")], first)
    assert world.sent().holder == "s/1"
    assert world.exchanges()[-1].body["input"] == [user("go on")]
    world.loses()
    again = world.sent()
    assert (again.holder, again.previous_response_id) == (None, None)
    assert not again.avoids_websocket
    assert world.exchanges()[-1].body["input"][0] == user("hi")
    world.loses()
    assert world.sent().avoids_websocket
    assert world.sent().holder is None
    assert world.sink.raw == []
    world.ends_well(turn, "resp_2", None)
    assert [each.account for each in turn.record.attempts] == ["a"] * 3
    world.check_nobody_is_charged()


def test_a_turn_that_no_socket_can_carry_goes_over_http_at_once() -> None:
    world = Sockets()
    first = world.held()
    turn = world.begun([user("go on")], first)
    world.loses(error=UNSUITED)
    assert world.sent().avoids_websocket
    assert world.exchanges()[-1].body["input"][0] == user("hi")
    world.ends_well(turn, "resp_2", None)
    assert len(turn.record.attempts) == 2
    world.check_nobody_is_charged()


@pytest.mark.parametrize("error", [LOST, UNSUITED])
def test_a_stored_response_is_continued_by_its_id_all_the_same(error: ApiError) -> None:
    world = Sockets()
    first = world.begun([user("hi")], store=True)
    stored = world.ends_well(first, "resp_1", None)
    turn = world.begun([user("go on")], stored, store=True)
    world.loses(error=error)
    assert world.sent().previous_response_id == "resp_1"
    assert world.exchanges()[-1].body["input"] == [user("go on")]
    assert world.sent().avoids_websocket == (error is UNSUITED)
    world.ends_well(turn, "resp_2", None)
    world.check_nobody_is_charged()


def test_a_turn_whose_account_has_no_http_moves_to_another() -> None:
    world = Sockets(2)
    first = world.held()
    turn = world.begun([user("go on")], first)
    for _ in range(3):
        assert turn.record.account == "a"
        world.loses()
    assert turn.record.account == "b"
    assert world.exchanges("b")[-1].body["input"][0] == user("hi")
    assert not world.sent("b").avoids_websocket, "its sockets have lost nothing"
    assert world.sink.raw == []
    world.ends_well(turn, "resp_2", None)
    world.check_nobody_is_charged()


def test_the_turn_fails_once_every_account_has_lost_it() -> None:
    world = Sockets(2)
    turn = world.begun([user("hi")])
    for name in "ab":
        for _ in range(3):
            assert world.sink.raw == []
            world.loses(name)
    assert len(turn.record.attempts) == 6
    (error,) = world.sink.events
    assert (error["status"], error["error"]["code"]) == (502, SOCKET_LOST)
    world.check_nobody_is_charged()


def test_a_loss_after_output_is_told_and_charged_to_nobody() -> None:
    world = Sockets()
    turn = world.begun([user("hi")])
    exchange = world.exchanges()[-1]
    exchange.sends(*opening("resp_1"), *item_events(text_item(), 0))
    world.loses()
    assert world.sink.last["type"] == "response.failed"
    assert world.sink.last["response"]["error"]["code"] == "server_error"
    assert len(turn.record.attempts) == 1, "what the client saw is final"
    world.check_nobody_is_charged()


def test_a_loss_after_created_is_not_seen() -> None:
    world = Sockets()
    turn = world.begun([user("hi")])
    world.exchanges()[-1].sends(*opening("resp_1"))
    world.loses()
    assert world.sink.raw == []
    world.ends_well(turn, "resp_2", "s/2")
    assert world.sink.events[0]["response"]["id"] == "resp_2"
    world.check_nobody_is_charged()


def test_each_turn_counts_its_own_losses() -> None:
    world = Sockets()
    for _ in range(4):
        turn = world.begun([user("hi")])
        world.loses()
        assert not world.sent().avoids_websocket
        world.ends_well(turn, f"resp_{id(turn)}", None)
    world.check_nobody_is_charged()


def test_what_only_a_lost_socket_knew_is_asked_of_the_client() -> None:
    """Its history began at a response that the gateway never saw, so it cannot be replayed."""
    world = Sockets()
    parent = foreign_response("laptop", "resp_elsewhere", None)
    first = world.begun([user("hi")], parent)
    held = world.ends_well(first, "resp_1", "s/1")
    turn = world.begun([user("go on")], held)
    assert world.sent().holder == "s/1"
    world.loses()
    assert len(turn.record.attempts) == 1
    (error,) = world.sink.events
    assert error["error"]["code"] == "previous_response_not_found"
    world.check_nobody_is_charged()


def test_a_turn_is_replayed_at_once_where_the_socket_is_gone_already() -> None:
    world = Sockets()
    first = world.held()
    world.upstreams["a"].held = set()
    turn = world.begun([user("go on")], first)
    assert world.exchanges()[-1].body["input"][0] == user("hi")
    assert turn.record.reason == "the WebSocket of the previous response is gone"
    world.ends_well(turn, "resp_2", "s/2")
    world.check_nobody_is_charged()
