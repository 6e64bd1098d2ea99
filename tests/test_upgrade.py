"""An upgrade: the successor that is ready, late, or fails, and what this process does then."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from twisted.logger import capturedLogs, formatEvent

from gateway import upgrade
from gateway.inheritance import VARIABLE, Inheritance, Succession, succession
from gateway.upgrade import TRANSITIONS, Upgrade, UpgradeState, tell_ready
from tests.workers.fake_processes import FakeReactor

S = UpgradeState


class Stage:
    """A process that may be upgraded."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.handed_over: list[int] = []
        self.upgrade = Upgrade(
            self.reactor,
            ["python", "twistd", "-n", "responses-gateway"],
            "/somewhere",
            lambda: Succession("/run/gateway.pid", "/var/log/gateway.log"),
            lambda: {"listen=tcp:1": [7]},
            self.handed_over.append,
        )

    @property
    def successor(self) -> Any:
        return self.reactor.processes[-1]

    def say(self, data: bytes, place: int = 4) -> None:
        self.upgrade.childDataReceived(place, data)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_every_state_has_its_followers() -> None:
    assert set(TRANSITIONS) == set(S)


def test_the_successor_has_the_same_command_line_and_the_sockets(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    stage.upgrade.begin()
    asked = stage.successor.asked
    assert asked["args"] == ["python", "twistd", "-n", "responses-gateway"]
    files = asked["childFDs"]
    assert (files[1], files[2], files[3], files[4]) == (1, 2, 7, "r")
    assert asked["env"][VARIABLE] == '{"listen=tcp:1": [3], "ready": [4]}'
    assert "LISTEN_FDS" not in asked["env"]
    told = succession(dict(asked["env"]))
    assert told == Succession("/run/gateway.pid", "/var/log/gateway.log")


def test_a_successor_that_is_ready_takes_over(stage: Stage) -> None:
    stage.upgrade.begin()
    stage.say(b"ready", place=1)
    stage.say(b"re")
    assert (stage.upgrade.state, stage.handed_over) == (S.STARTING, [])
    stage.say(b"ady")
    assert (stage.upgrade.state, stage.handed_over) == (S.HANDED_OVER, [1000])
    assert not stage.reactor.getDelayedCalls()
    with capturedLogs() as events:
        stage.upgrade.begin()
    assert [formatEvent(event) for event in events] == ["there is a successor already"]
    assert len(stage.reactor.processes) == 1


def test_a_successor_that_ends_changes_nothing_and_another_may_come(stage: Stage) -> None:
    stage.upgrade.begin()
    with capturedLogs() as events:
        stage.successor.end(status=1)
    assert [formatEvent(event) for event in events] == [
        "no upgrade: the successor ended before it was ready; this process goes on"
    ]
    assert stage.upgrade.state is S.IDLE
    stage.upgrade.begin()
    stage.say(b"ready")
    assert stage.handed_over == [1001]


def test_a_successor_that_is_late_is_ended_first(stage: Stage) -> None:
    stage.upgrade.begin()
    with capturedLogs() as events:
        stage.reactor.advance(upgrade._START_SECONDS)
    assert "was not ready within" in formatEvent(events[0])
    assert stage.successor.signals == [signal.SIGKILL]
    stage.say(b"ready")
    assert stage.handed_over == []
    stage.upgrade.begin()
    assert len(stage.reactor.processes) == 1, "the late one runs still"
    stage.successor.end(signal.SIGKILL)
    stage.upgrade.begin()
    assert len(stage.reactor.processes) == 2


def test_a_stop_ends_a_successor_that_has_not_taken_over(stage: Stage) -> None:
    stage.upgrade.begin()
    with capturedLogs() as events:
        stage.upgrade.give_up()
        stage.say(b"ready")
        stage.successor.end(signal.SIGKILL)
        stage.upgrade.begin()
        stage.upgrade.give_up()
    assert [formatEvent(event) for event in events] == [
        "the gateway stops: its successor, process 1000, is ended",
        "no upgrade: the gateway stops",
    ]
    assert stage.handed_over == []
    assert len(stage.reactor.processes) == 1
    assert not stage.reactor.getDelayedCalls()


def test_a_stop_leaves_a_successor_that_has_taken_over(stage: Stage) -> None:
    stage.upgrade.begin()
    stage.say(b"ready")
    stage.upgrade.give_up()
    assert (stage.upgrade.state, stage.successor.signals) == (S.HANDED_OVER, [])


def test_a_command_that_cannot_be_run_changes_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(stage.reactor, "spawnProcess", missing)
    with capturedLogs() as events:
        stage.upgrade.begin()
    assert "cannot be started: No such file or directory" in formatEvent(events[0])
    assert stage.upgrade.state is S.IDLE


def test_the_word_is_said_through_the_pipe_also_when_nobody_listens() -> None:
    reader, writer = os.pipe()
    tell_ready(Inheritance({"ready": [writer]}))
    assert os.read(reader, 100) == b"ready"
    os.close(reader)
    reader, writer = os.pipe()
    os.close(reader)
    tell_ready(Inheritance({"ready": [writer]}))
    tell_ready(Inheritance())
