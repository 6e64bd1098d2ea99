"""Responses that only a connection has, ids that name several, and instructions that stay."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.conversations.store import Transcript
from gateway.protocol.errors import ApiError
from tests.support.events import Json, call_item, call_output, text_item, turn_events, user
from tests.turn.fakes import FakeExchange, World


class SocketWorld(World):
    """One account whose responses live on connections."""

    def __init__(self, continuity: str = "auto", **settings: Any) -> None:
        super().__init__(keepalive_seconds=0)
        account, upstream = self.accounts["a"], self.upstreams["a"]
        account.settings = account.settings.__class__(
            name="a",
            base_url="http://upstream",
            key="sk-a",
            continuity=continuity,  # type: ignore[arg-type]
            **settings,
        )
        self.alive: set[str] = set()
        upstream.holds = lambda holder: holder in {"a", *self.alive}  # type: ignore[method-assign]

    def sent(self, parent: Transcript | None, items: list[Json], **members: Any) -> FakeExchange:
        self.latest = self.turn(items, parent, store=False, **members)
        self.latest.start()
        return self.exchanges()[-1]

    def answered(self, exchange: FakeExchange, response_id: str, holder: str | None) -> Transcript:
        exchange.holder = holder
        if holder is not None:
            self.alive = {holder}
        named = exchange.body.get("previous_response_id")
        exchange.sends(*turn_events([text_item()], response_id, previous_response_id=named))
        recorded = self.latest.recorded
        assert recorded is not None, self.sink.last
        return recorded


@pytest.mark.parametrize("continuity", ["auto", "chain", "replay"])
def test_a_socket_continues_what_is_not_stored_whatever_the_rule_for_ids(continuity: str) -> None:
    world = SocketWorld(continuity)
    first = world.answered(world.sent(None, [user("hi")]), "resp_1", "s/1")
    second = world.sent(first, [user("go on")])
    assert second.body["previous_response_id"] == "resp_1"
    assert second.body["input"] == [user("go on")]
    world.answered(second, "resp_2", "s/2")
    third = world.sent(first, [user("fork")])
    assert "previous_response_id" not in third.body, "expected a replay: another one is the latest"
    assert third.body["input"][0] == user("hi")
    assert world.latest.record.reason == "the WebSocket of the previous response is gone"
    third.cancel()


def test_a_lost_socket_is_replayed_there_unseen_then_over_http() -> None:
    world = SocketWorld()
    first = world.answered(world.sent(None, [user("hi")]), "resp_1", "s/1")
    world.sent(first, [user("go on")])
    lost = ApiError.bad_gateway("gone", "upstream_websocket_lost")
    world.alive = set()
    for _ in range(2):
        world.exchanges()[-1].ends(lost)
    assert world.sink.raw == [], "expected nothing to be seen of a lost socket"
    last = world.exchanges()[-1]
    assert last.body["input"][0] == user("hi")
    assert world.accounts["a"].failures == 0, "expected no charge to the account"
    world.answered(last, "resp_2", None)
    assert len(world.latest.record.attempts) == 3
    assert world.accounts["a"].health.unready() is None


def test_an_id_that_names_several_responses_is_continued_on_its_socket_only() -> None:
    world = SocketWorld()
    first = world.answered(world.sent(None, [user("hi")]), "resp_x", "s/1")
    second = world.answered(world.sent(first, [user("again")]), "resp_x", "s/2")
    assert second.record.id != "resp_x", "expected the client to get an id of its own"
    third = world.sent(second, [user("more")])
    assert third.body["previous_response_id"] == "resp_x"
    assert third.body["input"] == [user("more")]
    third.cancel()
    fork = world.sent(first, [user("fork")])
    assert "previous_response_id" not in fork.body, "expected a replay: the id means another one"
    fork.cancel()


@pytest.mark.parametrize(
    ("before", "now", "chains"),
    [("be brief", "be brief", True), ("be brief", "be long", False), (None, "be brief", False)],
)
def test_instructions_that_the_service_keeps(before: str | None, now: str, chains: bool) -> None:
    world = SocketWorld(instructions="inherited")
    said = {} if before is None else {"instructions": before}
    first = world.answered(world.sent(None, [user("hi")], **said), "resp_1", "s/1")
    following = world.sent(first, [user("go on")], instructions=now)
    assert ("previous_response_id" in following.body) is chains
    assert following.body.get("instructions") == (None if chains else now)
    following.cancel()


def test_calls_are_answered_on_the_socket() -> None:
    world = SocketWorld()
    exchange = world.sent(None, [user("list files")])
    exchange.holder = "s/1"
    world.alive = {"s/1"}
    exchange.sends(*turn_events([call_item("call_1")], "resp_1"))
    following = world.sent(world.latest.recorded, [call_output("call_1")])
    assert following.body["input"] == [call_output("call_1")]
    assert following.body["previous_response_id"] == "resp_1"
    following.cancel()
