"""A start by twistd: what it prints, what its log says, what signals do."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import txaio
from twisted.application.service import Application
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, capturedLogs, formatEvent
from twisted.python.components import Componentized

from gateway import __version__
from gateway import tap as daemon
from gateway.options import Options
from gateway.tap import TwistdService
from tests.support.whole import NoPorts, connected, settings, stopped


@pytest.fixture
def reactor(monkeypatch: pytest.MonkeyPatch) -> MemoryReactorClock:
    reactor = MemoryReactorClock()
    monkeypatch.setattr(txaio.config, "loop", reactor)
    return reactor


def options(twistd: dict[str, Any]) -> Options:
    """The command line of a start with ``twistd`` as its own options."""
    made = Options()
    made["config"] = None
    made.settings, made.parent = settings(), twistd
    return made


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start tunes its process; this one is not its own."""
    monkeypatch.setattr(daemon, "_collect_rarely", lambda: None)
    monkeypatch.setattr(daemon, "_allow_open_files", lambda: None)


def test_in_the_foreground_a_failed_start_is_printed_and_ends_with_1(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, quiet: None
) -> None:
    pidfile = tmp_path / "pid"
    pidfile.write_text("1")
    twistd = {"nodaemon": True, "pidfile": str(pidfile)}
    with pytest.raises(SystemExit) as caught:
        TwistdService(options(twistd), NoPorts()).startService()
    assert caught.value.code == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("responses-gateway: admin.listen: ")
    assert not pidfile.exists(), "twistd does not get to remove it"


def test_a_daemon_hands_the_line_to_who_waits_for_its_start(tmp_path: Path, quiet: None) -> None:
    reader, writer = os.pipe()
    twistd = {"nodaemon": False, "pidfile": str(tmp_path / "pid"), "statusPipe": writer}
    with pytest.raises(SystemExit):
        TwistdService(options(twistd), NoPorts()).startService()
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read().startswith(b"1 responses-gateway: admin.listen: ")


class Foreground:
    """A gateway that twistd started, and what it answers signals with."""

    def __init__(self, reactor: MemoryReactorClock, patch: pytest.MonkeyPatch, **twistd: Any):
        self.signals: dict[int, Callable[[], object]] = {}
        self.second_stop: Callable[[], object] = lambda: None
        patch.setattr(daemon, "on_signal", self._on_signal)
        patch.setattr(daemon, "on_second_stop", self._on_second_stop)
        self.gateway = TwistdService(options({"nodaemon": True, **twistd}), reactor)
        self.gateway.setServiceParent(Application("test"))

    def _on_signal(self, _: object, number: int, call: Callable[[], object]) -> None:
        self.signals[number] = call

    def _on_second_stop(self, _: object, call: Callable[[], object]) -> None:
        self.second_stop = call


def messages(events: list[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events]


def test_the_log_says_what_is_served_where(
    reactor: MemoryReactorClock, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    foreground = Foreground(reactor, monkeypatch)
    with capturedLogs() as events:
        foreground.gateway.startService()
    (line,) = [line for line in messages(events) if "started" in line]
    assert line == (
        f"responses-gateway {__version__} started with no file: the defaults: 1 account,"
        " no client keys, listen on tcp:8080:interface=127.0.0.1,"
        " admin on tcp:8081:interface=127.0.0.1"
    )
    foreground.gateway.stopService()


def test_the_configuration_in_force_is_not_that_which_waits_for_a_restart(
    reactor: MemoryReactorClock, tmp_path: Path
) -> None:
    file = tmp_path / "gateway.yaml"
    text = "simulator: {accounts: 1}\nlog: {level: %s, format: %s}"
    file.write_text(text % ("info", "text"))
    made = Options()
    made.parseOptions(["--config", str(file)])
    gateway = TwistdService(made, reactor)
    file.write_text(text % ("warn", "json"))
    assert gateway.reloads.reload().endswith("a restart is needed for log.format")
    assert gateway.whole.configuration is not None
    shown = {each.path: each.value for each in gateway.whole.configuration.settings()}
    assert (shown["log.level"], shown["log.format"]) == ("warn", "text")


def test_a_second_signal_to_stop_waits_for_nobody(
    reactor: MemoryReactorClock, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    foreground = Foreground(reactor, monkeypatch)
    gateway = foreground.gateway
    gateway.startService()
    client = connected(reactor, gateway)
    with capturedLogs() as events:
        for call, args, kwargs in reactor.triggers["before"]["shutdown"]:
            call(*args, **kwargs)
    assert messages(events) == [
        "stopping, connections: 1; turns that run have 30 seconds, or until a second signal"
    ]
    results = stopped(gateway)
    assert (client.abandoned, results) == ([], [])
    foreground.second_stop()
    assert client.abandoned == [reactor.seconds()]
    gateway.limiter.leave(client)
    assert results == [None]


def test_a_log_that_was_put_aside_is_opened_again_at_a_signal(
    reactor: MemoryReactorClock, monkeypatch: pytest.MonkeyPatch, quiet: None, tmp_path: Path
) -> None:
    path = tmp_path / "gateway.log"
    foreground = Foreground(reactor, monkeypatch, logfile=str(path))
    foreground.gateway.startService()
    assert path.exists()
    path.unlink()
    foreground.signals[signal.SIGUSR1]()
    assert path.exists()
    foreground.gateway.stopService()


def test_a_log_that_cannot_be_written_is_one_line(
    reactor: MemoryReactorClock,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "missing" / "gateway.log"
    with pytest.raises(SystemExit) as caught:
        Foreground(reactor, monkeypatch, logfile=str(path))
    assert caught.value.code == 1
    _, err = capfd.readouterr()
    assert err == f"responses-gateway: --logfile '{path}': No such file or directory\n"


def test_without_a_file_of_its_own_only_a_reload_is_asked_for_by_signal(
    reactor: MemoryReactorClock, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    foreground = Foreground(reactor, monkeypatch, logfile="-")
    foreground.gateway.startService()
    assert list(foreground.signals) == [signal.SIGHUP]
    foreground.gateway.stopService()


def test_it_brings_its_own_log_unless_syslog_is_wanted(reactor: MemoryReactorClock) -> None:
    for twistd, expected in (({"nodaemon": True}, True), ({"syslog": True}, False)):
        application: Componentized = Application("test")
        TwistdService(options(twistd), reactor).setServiceParent(application)
        observer = application.getComponent(ILogObserver, None)
        assert (observer is not None) is expected
