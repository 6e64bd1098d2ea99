"""The tree of services on a reactor in memory: what listens, what waits, what ends a start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import txaio
from msgspec.structs import replace
from twisted.application.service import Application
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, capturedLogs, formatEvent
from twisted.python.components import Componentized

from gateway import __version__, service
from gateway.accounts.affinity import AffinityKey
from gateway.accounts.health import AccountState
from gateway.config import AccountSettings, AdminSettings, Settings, TimeoutSettings
from gateway.ledger.records import Record
from gateway.listening import CannotListen
from gateway.options import Options
from gateway.protocol.faults import Fault, FaultKind
from gateway.service import GatewayService, TwistdService

ACCOUNT = AccountSettings(name="a", base_url="http://upstream.test/v1", key="sk-a")


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


class NoPorts(MemoryReactorClock):
    """Somebody else has them all."""

    def listenTCP(self, port: int, *_: Any, **__: Any) -> Any:
        raise CannotListenError("127.0.0.1", port, OSError(98, "Address already in use"))


def settings(**about: Any) -> Settings:
    return Settings(**{"accounts": (ACCOUNT,), **about})


def ports(reactor: MemoryReactorClock) -> list[tuple[int, str]]:
    return sorted((server[0], server[3]) for server in reactor.tcpServers)


def test_it_listens_for_clients_and_operators_on_loopback(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(), reactor)
    assert reactor.tcpServers == [], "nothing listens before the start"
    gateway.startService()
    assert ports(reactor) == [(8080, "127.0.0.1"), (8081, "127.0.0.1")]
    gateway.stopService()


def test_the_admin_side_can_be_switched_off(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(admin=AdminSettings(listen=None)), reactor)
    gateway.startService()
    assert ports(reactor) == [(8080, "127.0.0.1")]
    gateway.stopService()


def test_without_accounts_the_simulator_serves_two(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(Settings(), reactor)
    assert [account.name for account in gateway.environment.pool.accounts] == [
        "simulated-1",
        "simulated-2",
    ]
    gateway.startService()
    assert len(reactor.tcpServers) == 3
    assert {interface for _, interface in ports(reactor)} == {"127.0.0.1"}
    gateway.stopService()


def test_old_conversations_are_forgotten_as_time_goes_by(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(), reactor)
    gateway.startService()
    ledger = gateway.environment.ledger
    ledger.add(Record("laptop", "resp_1", None, (), (), "a", True, True, None, reactor.seconds()))
    reactor.pump([30] * 119)
    assert ledger.figures().responses == 1
    reactor.pump([30] * 3)
    assert ledger.figures().responses == 0
    gateway.stopService()
    reactor.advance(60)


# --- reloads -------------------------------------------------------------------------------


def arranged(gateway: GatewayService, **about: Any) -> GatewayService:
    """After a reload."""
    before, after = gateway.settings, settings(**about)
    gateway.arrange(after, before)
    return gateway


@pytest.mark.parametrize(
    "about",
    [
        {"accounts": (replace(ACCOUNT, weight=7),)},
        {"timeouts": TimeoutSettings(stall_seconds=7.0)},
    ],
)
def test_an_account_described_otherwise_is_still_the_same(
    reactor: MemoryReactorClock, about: Any
) -> None:
    """Neither its rest nor the operator's wish nor its conversations are lost."""
    gateway = GatewayService(settings(), reactor)
    pool = gateway.environment.pool
    health = pool.accounts[0].health
    health.broke(None, Fault(FaultKind.EXHAUSTED, "used up", reactor.seconds() + 300))
    health.drain()
    key = AffinityKey("thread", "laptop", "t-1")
    pool.bindings.bind(key, ACCOUNT.name, "round-robin")
    arranged(gateway, **about)
    health = pool.accounts[0].health
    assert health.state is AccountState.DRAINING, "the operator wished so"
    health.resume()
    assert health.state is AccountState.EXHAUSTED
    assert pool.bindings.account_of(key) == ACCOUNT.name, "its prompt cache is there"


def test_another_key_is_another_account(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(), reactor)
    pool = gateway.environment.pool
    pool.accounts[0].health.broke(None, Fault(FaultKind.UNAUTHORIZED, "refused"))
    arranged(gateway, accounts=(replace(ACCOUNT, key="sk-another"),))
    assert pool.accounts[0].health.state is AccountState.READY


def test_what_a_reload_disables_and_enables_is_so(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(), reactor)
    pool = gateway.environment.pool
    off = settings(accounts=(replace(ACCOUNT, enabled=False),))
    gateway.arrange(off, gateway.settings)
    assert pool.accounts[0].health.state is AccountState.DISABLED
    gateway.arrange(settings(), off)
    assert pool.accounts[0].health.state is AccountState.READY


def test_conversations_of_an_account_that_is_gone_have_no_home(
    reactor: MemoryReactorClock,
) -> None:
    gateway = GatewayService(settings(), reactor)
    bindings = gateway.environment.pool.bindings
    key = AffinityKey("thread", "laptop", "t-1")
    bindings.bind(key, ACCOUNT.name, "round-robin")
    arranged(gateway, accounts=(replace(ACCOUNT, name="another"),))
    assert bindings.account_of(key) is None


def test_a_reload_leaves_simulated_accounts_in_service(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(accounts=()), reactor)
    names = [account.name for account in gateway.environment.pool.accounts]
    arranged(gateway, accounts=())
    assert [account.name for account in gateway.environment.pool.accounts] == names


def stopped(gateway: GatewayService) -> list[object]:
    results: list[object] = []
    stopping: Deferred[Any] = gateway.stopService()
    stopping.addBoth(results.append)
    return results


class Client:
    """A guest that writes down what it is told."""

    def __init__(self, reactor: MemoryReactorClock) -> None:
        self.reactor = reactor
        self.drained: list[float] = []
        self.abandoned: list[float] = []

    def drain(self) -> None:
        self.drained.append(self.reactor.seconds())

    def abandon(self) -> None:
        self.abandoned.append(self.reactor.seconds())


def connected(reactor: MemoryReactorClock, gateway: GatewayService) -> Client:
    client = Client(reactor)
    gateway.admission.enter(client)
    return client


def test_an_idle_gateway_stops_at_once(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(), reactor)
    gateway.startService()
    assert stopped(gateway) == [None]
    assert reactor.getDelayedCalls() == []


def test_it_stops_when_the_last_client_is_gone(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(), reactor)
    gateway.startService()
    client = connected(reactor, gateway)
    results = stopped(gateway)
    reactor.advance(20)
    assert results == []
    gateway.admission.leave(client)
    assert results == [None]
    assert reactor.getDelayedCalls() == []


def test_it_does_not_wait_longer_than_it_may(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(timeouts=TimeoutSettings(shutdown_seconds=30)), reactor)
    gateway.startService()
    client = connected(reactor, gateway)
    results = stopped(gateway)
    assert len(client.drained) == 1, "the client is told to finish"
    reactor.advance(29.9)
    assert (client.abandoned, results) == ([], [])
    reactor.advance(0.2)
    assert (len(client.abandoned), results) == (1, []), "the last words need a moment"
    reactor.advance(2)
    assert results == [None]
    gateway.admission.leave(client)  # too late, and harmless


def test_a_reload_may_change_how_long_a_stop_waits(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(timeouts=TimeoutSettings(shutdown_seconds=30)), reactor)
    gateway.startService()
    client = connected(reactor, gateway)
    arranged(gateway, timeouts=TimeoutSettings(shutdown_seconds=300))
    stopped(gateway)
    reactor.advance(299)
    assert client.abandoned == []
    reactor.advance(1)
    assert client.abandoned == [300]
    reactor.advance(2)


# --- under twistd --------------------------------------------------------------------------


def test_a_port_in_use_is_one_line_with_the_setting() -> None:
    with pytest.raises(CannotListen) as caught:
        GatewayService(settings(), NoPorts()).startService()
    line = str(caught.value)
    assert line.startswith("admin.listen: 'tcp:8081:interface=127.0.0.1': ")
    assert "Address already in use" in line
    assert "\n" not in line


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start tunes its process; this one is not its own."""
    monkeypatch.setattr(service, "_collect_rarely", lambda: None)
    monkeypatch.setattr(service, "_allow_open_files", lambda: None)


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
        patch.setattr(service, "on_signal", self._on_signal)
        patch.setattr(service, "on_second_stop", self._on_second_stop)
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
    gateway.admission.leave(client)
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
