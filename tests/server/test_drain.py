"""Emptying the gateway of its clients: who is told what, when, and what is counted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import txaio
from twisted.logger import capturedLogs, formatEvent

from gateway.protocol.errors import ApiError
from gateway.server.drain import Drain, DrainState
from tests.server.websocket_client import Client, Door
from tests.support.events import call_item, text_item, turn_events


@pytest.fixture(autouse=True)
def autobahns_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(txaio.config, "loop", txaio.config.loop)


class Drained:
    """A door with its drain; both of its clocks go together."""

    def __init__(self, **times: float) -> None:
        self.door = Door()
        self.world = self.door.world
        self.drain = Drain(
            self.world.clock,
            self.door.limiter,
            self.door.factory,
            self.world.services.turn_log,
            **times,
        )
        self.began = self.world.clock.seconds()

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds * 100)):
            self.world.clock.advance(0.01)
        self.door.reactor.advance(seconds)

    def running(self) -> Client:
        client = self.door.client()
        client.create()
        return client

    def answer(self, which: int = 0, *items: Any) -> None:
        exchange = [each for each in self.world.exchanges() if each.state == "running"][which]
        exchange.sends(*turn_events(list(items) or [text_item()], f"resp_{id(exchange)}"))

    def codes(self) -> list[int | None]:
        """How each client's connection was closed, in their order; those that were leave."""
        for client in self.door.clients:
            client.read()
            if client.close_code is not None:
                client.is_lost()
        return [client.close_code for client in self.door.clients]


@pytest.fixture
def stage() -> Iterator[Drained]:
    stage = Drained(shutdown_seconds=30.0, spread_seconds=5.0)
    yield stage
    for client in stage.door.clients:
        client.is_lost()
    stage.world.check_rest()


def summary(logged: Any) -> list[str]:
    return [formatEvent(each) for each in logged if "drained in" in (each["log_format"] or "")]


def test_idle_connections_close_one_after_the_other(stage: Drained) -> None:
    for _ in range(20):
        stage.door.client()
    done: list[object] = []
    stage.drain.finish().addBoth(done.append)
    closed = []
    for _ in range(21):
        closed.append(stage.codes().count(1012))
        stage.advance(0.1)
    assert closed[0] <= 1, "all at once"
    assert all(later - earlier <= 3 for earlier, later in pairwise(closed))
    assert stage.codes() == [1012] * 20, "twenty need two seconds"
    assert done == [None]


def test_many_connections_take_the_whole_window_but_no_more(stage: Drained) -> None:
    for _ in range(60):
        stage.door.client()
    stage.drain.begin()
    stage.advance(2.5)
    assert 20 <= stage.codes().count(1012) <= 40, "not spread evenly"
    stage.advance(2.6)
    assert stage.codes() == [1012] * 60
    stage.drain.resume()


def test_a_short_stop_has_a_short_window() -> None:
    stage = Drained(shutdown_seconds=3, spread_seconds=60)
    for _ in range(60):
        stage.door.client()
    done: list[object] = []
    stage.drain.finish().addBoth(done.append)
    stage.advance(1.1)
    assert stage.codes() == [1012] * 60
    assert done == [None]


def test_a_busy_connection_closes_after_its_turn_and_a_quiet_moment(stage: Drained) -> None:
    busy = stage.running()
    stage.drain.begin()
    stage.advance(1)
    assert stage.codes() == [None]
    stage.answer()
    assert stage.codes() == [None]
    stage.advance(0.6)
    assert stage.codes() == [1012]
    assert busy.frames[-1]["type"] == "response.completed"
    stage.drain.resume()


def test_a_client_with_a_tool_at_work_may_bring_its_output(stage: Drained) -> None:
    client = stage.running()
    stage.drain.begin()
    stage.advance(1)
    stage.answer(0, call_item("call_1"))
    stage.advance(3)
    assert stage.codes() == [None], "its tool works"
    client.create()
    stage.answer()
    stage.advance(0.6)
    assert stage.codes() == [1012]
    assert [frame["type"] for frame in client.frames].count("response.completed") == 2
    stage.drain.resume()


def test_later_no_turn_begins_any_more(stage: Drained) -> None:
    client = stage.running()
    stage.drain.begin()
    stage.advance(6)
    client.create()
    assert client.frames[-1]["error"]["code"] == "websocket_connection_limit_reached"
    stage.answer()
    stage.codes()
    assert client.frames[-1]["type"] == "response.completed"
    assert stage.codes() == [1012]
    stage.drain.resume()


def test_a_drain_can_be_taken_back(stage: Drained) -> None:
    stage.running()
    stage.drain.begin()
    stage.drain.begin()
    with pytest.raises(ApiError):
        stage.door.limiter.enter(object())  # type: ignore[arg-type]
    figures = stage.drain.figures
    assert figures is not None
    assert (figures.state, figures.turns_left, figures.seconds_left) == ("draining", 1, None)
    assert stage.drain.resume()
    stage.answer()
    stage.advance(20)
    assert stage.codes() == [None], "it goes on"
    assert stage.door.client().is_open
    assert stage.drain.figures is None
    assert stage.drain.totals == {"completed": 0, "moved": 0, "cut": 0}


def test_the_summary_counts_completed_moved_and_cut(stage: Drained) -> None:
    stage.door.client()
    for _ in range(3):
        stage.running()
    done: list[object] = []
    with capturedLogs() as logged:
        stage.drain.finish().addBoth(done.append)
        stage.advance(1)
        stage.answer(0)
        stage.advance(15)
        assert stage.codes() == [1012, 1012, None, None]
        stage.answer(0)
        assert stage.codes() == [1012, 1012, 1012, None]
        stage.advance(15)
        assert stage.codes() == [1012] * 4
    assert done == [None]
    (line,) = summary(logged)
    assert line.startswith("drained in 3")
    assert line.endswith(" s: 2 turns completed, 3 connections moved, 1 turns cut")
    assert stage.drain.totals == {"completed": 2, "moved": 3, "cut": 1}
    assert not stage.drain.resume(), "a stop goes on"
    again: list[object] = []
    stage.drain.finish().addBoth(again.append)
    assert again == [None]


def test_the_operators_drain_becomes_a_stop(stage: Drained) -> None:
    stage.running()
    stage.drain.begin()
    stage.advance(100)
    assert stage.codes() == [None], "without a stop there is no hurry"
    done: list[object] = []
    with capturedLogs() as logged:
        stage.drain.finish().addBoth(done.append)
        stage.advance(10)
        stage.answer()
        stage.codes()
        stage.advance(1)
    assert done == [None]
    assert len(summary(logged)) == 1
    assert stage.drain.state is DrainState.STOPPING


def test_where_another_process_listens_nobody_is_refused(stage: Drained) -> None:
    order: list[str] = []
    stage.drain.stop_listening = lambda: order.append("stopped listening")
    stage.drain.handed_over = True
    stage.running()
    stage.drain.begin()
    assert order == ["stopped listening"]
    late = stage.door.client()
    assert late.is_open, "it was connected before"
    stage.advance(1)
    assert stage.codes() == [None, 1012], "it is told to move as well"
    stage.answer()
    stage.drain.resume()


def test_one_second_is_left_to_connections_that_have_not_asked_yet(stage: Drained) -> None:
    stage.drain.handed_over = True
    stage.door.limiter.silent[object()] = None
    done: list[object] = []
    stage.drain.finish().addBoth(done.append)
    stage.advance(0.9)
    assert done == []
    stage.advance(0.2)
    assert done == [None]


@pytest.mark.parametrize(("has_successor", "seconds"), [(False, 30), (True, 120)])
def test_turns_have_longer_where_a_successor_serves(has_successor: bool, seconds: int) -> None:
    stage = Drained(shutdown_seconds=30.0, handover_seconds=120.0)
    stage.drain.handed_over = True  # also where new clients only wait for the next process
    stage.drain.has_successor = has_successor
    stage.running()
    done: list[object] = []
    stage.drain.finish().addBoth(done.append)
    stage.world.clock.advance(seconds - 1)
    figures = stage.drain.figures
    assert figures is not None
    assert (figures.cut, figures.seconds_left, done) == (0, 1.0, [])
    stage.world.clock.advance(1)
    stage.codes()
    stage.world.clock.advance(2)
    figures = stage.drain.figures
    assert figures is not None
    assert (figures.cut, done) == (1, [None])
    for client in stage.door.clients:
        client.is_lost()
    stage.world.check_rest()


@pytest.mark.parametrize("drained_before", [False, True])
def test_a_late_client_is_told_to_move_also_when_nobody_was_there(
    stage: Drained, drained_before: bool
) -> None:
    if drained_before:
        stage.drain.begin()
    stage.drain.handed_over = stage.drain.has_successor = True
    stage.door.limiter.silent[object()] = None
    done: list[object] = []
    stage.drain.finish().addBoth(done.append)
    stage.door.client()  # its head was on the way
    stage.advance(2)
    assert stage.codes() == [1012]
    assert done == [None]
