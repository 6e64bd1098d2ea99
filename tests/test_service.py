"""The tree of services on a reactor in memory: what listens, what waits, what ends a start."""

from __future__ import annotations

from typing import Any

import pytest
import txaio
from msgspec.structs import replace
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent

from gateway.config import (
    AdminSettings,
    KeySettings,
    LimitSettings,
    LogSettings,
    RoutingSettings,
    TimeoutSettings,
)
from gateway.conversations.store import ResponseRecord, Transcript
from gateway.listening import CannotListen
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.routing.affinity import AffinityKey
from gateway.routing.health import AccountState
from gateway.service import GatewayService
from tests.support.whole import ACCOUNT, NoPorts, connected, settings, stopped


@pytest.fixture
def reactor(monkeypatch: pytest.MonkeyPatch) -> MemoryReactorClock:
    reactor = MemoryReactorClock()
    monkeypatch.setattr(txaio.config, "loop", reactor)
    return reactor


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
    gateway = GatewayService(settings(accounts=()), reactor)
    assert [account.name for account in gateway.turn_services.pool.accounts] == [
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
    ledger = gateway.turn_services.conversations
    record = ResponseRecord(
        "laptop", "resp_1", None, (), (), "a", True, True, None, reactor.seconds()
    )
    ledger.add(Transcript(record))
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
    gateway.reconfigure(after, before)
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
    pool = gateway.turn_services.pool
    health = pool.accounts[0].health
    health.refused(None, Fault(FaultKind.EXHAUSTED, "used up", reactor.seconds() + 300))
    health.drain()
    key = AffinityKey("thread", "laptop", "t-1")
    pool.bindings.bind(key, ACCOUNT.name, "round-robin")
    arranged(gateway, **about)
    health = pool.accounts[0].health
    assert health.state is AccountState.DRAINING, "the operator wished so"
    health.resume()
    assert health.state is AccountState.EXHAUSTED
    binding = pool.bindings.peek(key)
    assert binding is not None, "its prompt cache is there"
    assert binding.account == ACCOUNT.name


def test_another_key_is_another_account(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(), reactor)
    pool = gateway.turn_services.pool
    pool.accounts[0].health.refused(None, Fault(FaultKind.UNAUTHORIZED, "refused"))
    arranged(gateway, accounts=(replace(ACCOUNT, key="sk-another"),))
    assert pool.accounts[0].health.state is AccountState.READY


def test_what_a_reload_disables_and_enables_is_so(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(), reactor)
    pool = gateway.turn_services.pool
    off = settings(accounts=(replace(ACCOUNT, enabled=False),))
    gateway.reconfigure(off, gateway.settings)
    assert pool.accounts[0].health.state is AccountState.DISABLED
    gateway.reconfigure(settings(), off)
    assert pool.accounts[0].health.state is AccountState.READY


def test_conversations_of_an_account_that_is_gone_have_no_home(
    reactor: MemoryReactorClock,
) -> None:
    gateway = GatewayService(settings(), reactor)
    bindings = gateway.turn_services.pool.bindings
    key = AffinityKey("thread", "laptop", "t-1")
    bindings.bind(key, ACCOUNT.name, "round-robin")
    arranged(gateway, accounts=(replace(ACCOUNT, name="another"),))
    assert bindings.peek(key) is None


def test_a_reload_leaves_simulated_accounts_in_service(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(accounts=()), reactor)
    names = [account.name for account in gateway.turn_services.pool.accounts]
    arranged(gateway, accounts=())
    assert [account.name for account in gateway.turn_services.pool.accounts] == names


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
    gateway.limiter.leave(client)
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
    gateway.limiter.leave(client)  # too late, and harmless


def test_a_reload_reaches_every_part(reactor: MemoryReactorClock) -> None:
    """Each setting that needs no restart is found again where it counts."""
    gateway = GatewayService(settings(), reactor)
    services, pool = gateway.turn_services, gateway.turn_services.pool
    waiting: list[str] = []
    services.waiting.wait(
        "desk", 60.0, lambda: bool(waiting.append("asked")), lambda: None, "a place"
    )
    arranged(
        gateway,
        keys=(KeySettings(name="desk", key="sk-desk", max_concurrent_turns=7),),
        routing=RoutingSettings(max_attempts=9, max_waiting=8, max_bindings=5, affinity_minutes=4),
        timeouts=TimeoutSettings(stall_seconds=3),
        limits=LimitSettings(
            max_connections=6,
            max_queued_turns=2,
            max_incoming_bytes=2**20,
            max_upstream_sockets=4,
        ),
        log=LogSettings(level="error"),
        admin=AdminSettings(token="token-of-the-operator"),
    )
    found = {
        "keys": gateway.api_keys.knows("desk"),
        "routing.max_attempts": pool.routing.max_attempts,
        "routing.max_waiting": services.waiting.max_waiting,
        "routing.max_bindings": pool.bindings.max_bindings,
        "routing.affinity_minutes": pool.bindings.ttl_seconds,
        "timeouts.stall_seconds": (gateway.websockets.stall_seconds, gateway._site.stall_seconds),
        "limits.max_connections": gateway.limiter.max_connections,
        "limits.max_queued_turns": gateway.websockets.max_queued_turns,
        "limits.max_incoming_bytes": gateway.limiter.incoming.max_bytes,
        "limits.max_upstream_sockets": gateway._registry.socket_budget.most,
        "log.level": gateway.threshold.level,
        "admin.token": gateway._access.has_token,
        "turns that waited ask anew": waiting,
    }
    assert found == {
        "keys": True,
        "routing.max_attempts": 9,
        "routing.max_waiting": 8,
        "routing.max_bindings": 5,
        "routing.affinity_minutes": 240,
        "timeouts.stall_seconds": (3, 3),
        "limits.max_connections": 6,
        "limits.max_queued_turns": 2,
        "limits.max_incoming_bytes": 2**20,
        "limits.max_upstream_sockets": 4,
        "log.level": "error",
        "admin.token": True,
        "turns that waited ask anew": ["asked"],
    }


def test_a_level_that_was_set_by_hand_outlasts_a_reload(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(), reactor)
    gateway.threshold.level = "debug"
    with capturedLogs() as said:
        arranged(gateway, routing=RoutingSettings(max_attempts=9))
    assert gateway.threshold.level == "debug"
    assert [formatEvent(event) for event in said if "kept" in event] == [
        "the log's level stays debug, as it was set on the admin side"
    ]
    arranged(gateway, log=LogSettings(level="warn"))
    assert gateway.threshold.level == "warn", "expected a changed file to count"


def test_a_reload_may_change_how_long_a_stop_waits(reactor: MemoryReactorClock) -> None:
    gateway = GatewayService(settings(timeouts=TimeoutSettings(shutdown_seconds=30)), reactor)
    gateway.startService()
    client = connected(reactor, gateway)
    arranged(gateway, timeouts=TimeoutSettings(shutdown_seconds=300, handover_seconds=500))
    assert gateway.drain.handover_seconds == 500
    stopped(gateway)
    reactor.advance(299)
    assert client.abandoned == []
    reactor.advance(1)
    assert client.abandoned == [300]
    reactor.advance(2)


# --- a start that fails --------------------------------------------------------------------


def test_a_port_in_use_is_one_line_with_the_setting() -> None:
    with pytest.raises(CannotListen) as caught:
        GatewayService(settings(), NoPorts()).startService()
    line = str(caught.value)
    assert line.startswith("admin.listen: 'tcp:8081:interface=127.0.0.1': ")
    assert "Address already in use" in line
    assert "\n" not in line
