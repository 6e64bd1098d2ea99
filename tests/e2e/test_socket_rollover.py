"""A long conversation over sockets that end again and again: every turn is answered once."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from tests.e2e.conftest import Scene
from tests.support.events import Json, error_body, text_item, user
from tests.support.strict import Mode, Strict, said
from tests.support.upstream import Exchange
from tests.support.websocket_upstream import over

pytestmark = pytest.mark.e2e

TURNS = 1000
LIMITS = 20
TURNS_OF_A_SOCKET = 48  # the last of 21 sockets has fewer
SECONDS = 60.0


def counting(transcript: list[Json], strict: Strict) -> list[Json]:
    """Says how much it was told: a turn that was lost or doubled shows."""
    told = [said(item) for item in transcript if item.get("role") == "user"]
    return [text_item(f"{len(told)} in order: {told == sorted(set(told))}, last: {told[-1]}")]


def at_its_end(exchange: Exchange) -> bool:
    """The answer of a socket that is an hour old; it then closes."""
    if len(over(exchange).socket.turns) <= TURNS_OF_A_SOCKET:
        return False
    message = "Responses websocket connection limit reached (60 minutes)."
    exchange.json(400, error_body("websocket_connection_limit_reached", message))
    over(exchange).close(1000)
    return True


@pytest.mark.parametrize("transport", ["websocket"])
@pytest.mark.parametrize(
    "store",
    [False, pytest.param(True, marks=pytest.mark.all_clients)],
    ids=["not stored", "stored"],
)
def test_no_turn_is_lost_when_sockets_are_at_their_end(scene: Scene, store: bool) -> None:
    upstream = scene.service(lambda _: Strict("north", Mode.STATEFUL, counting))
    upstream.before_answer = at_its_end
    client = scene.gateway(upstream).connect(timeout=SECONDS)
    ids: list[str] = []
    took: list[float] = []
    for number in range(1, TURNS + 1):
        words = f"turn {number:04}"
        previous = {"previous_response_id": ids[-1]} if ids else {}
        started = time.monotonic()
        events = client.turn(input=[user(words)], store=store, **previous)
        took.append(time.monotonic() - started)
        assert events[-1]["type"] == "response.completed", f"{words} ended with {events[-1]}"
        response = events[-1]["response"]
        assert said(response["output"][0]) == f"{number} in order: True, last: {words}"
        ids.append(response["id"])

    assert len(set(ids)) == TURNS
    assert upstream.order == ids, "the account answered a turn twice, or for nobody"
    refused = [each for each in upstream.requests if each.response_id is None]
    assert len(refused) == LIMITS
    assert len(upstream.requests) == TURNS + LIMITS
    sockets = upstream.websockets.sockets
    assert [len(each.turns) for each in sockets[:-1]] == [TURNS_OF_A_SOCKET + 1] * LIMITS
    # A new socket is sent the whole conversation once, if nothing is stored; then it chains.
    whole = [each for each in upstream.requests if each.previous_response_id is None]
    assert len(whole) == (1 if store else 1 + LIMITS)
    for one, next_one in pairwise(whole):
        gap = upstream.requests.index(next_one) - upstream.requests.index(one)
        assert gap == TURNS_OF_A_SOCKET + 1, "a replay that no lost socket explains"
    usual = sorted(took)[TURNS // 2]
    print(
        f"{TURNS} turns over {len(sockets)} sockets, {LIMITS} of them at their end: none lost, none"
        f" doubled; a turn took {usual * 1000:.1f} ms, the slowest {max(took) * 1000:.1f} ms"
    )
