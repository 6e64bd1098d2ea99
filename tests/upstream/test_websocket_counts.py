"""What is counted of the WebSockets of one account."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from gateway.config import AccountSettings
from gateway.protocol.websocket_messages import UpgradeRefusal
from gateway.upstream.websocket_access import WebSocketAccess
from gateway.upstream.websocket_client import ClosedSocket
from gateway.upstream.websocket_counts import SocketCounts, SocketEnd, end_of_code
from gateway.upstream.websocket_pool import (
    PooledSocket,
    SocketBudget,
    SocketKey,
    SocketReceiver,
    WebSocketPool,
)
from tests.upstream.websocket_account import AT_ITS_END, SocketAccount

KEY = SocketKey("laptop", "thread 1")


class Socket:
    """An open socket to nobody."""

    listener: Any = None

    def close(self) -> None:
        """Nobody is there."""

    drop = close


class Receiver(SocketReceiver):
    """A turn that only waits."""

    def socket_closed(self, closed: ClosedSocket) -> None:
        """It is told."""


def pool_of(counts: SocketCounts | None = None) -> WebSocketPool:
    return WebSocketPool(Clock(), 5, 3300.0, 1800.0, SocketBudget(8), counts)


def opened(pool: WebSocketPool) -> PooledSocket:
    assert pool.reserve()
    socket: Any = Socket()
    return pool.add(socket, KEY, is_private=False)


def test_sockets_are_counted_by_what_they_do() -> None:
    pool = pool_of()
    opened(pool)
    opened(pool).begin(Receiver())
    assert pool.reserve()
    figures = pool.figures()
    assert (figures.in_use, figures.idle, figures.opening) == (1, 1, 1)
    assert (figures.opened, figures.lost) == (2, {})
    assert (figures.most, figures.most_of_all) == (5, 8)


def test_each_end_has_its_reason() -> None:
    pool = pool_of()
    opened(pool).socket_closed(ClosedSocket(1012, "we restart"))
    opened(pool).socket_closed(ClosedSocket(4711, "a code of their own"))
    opened(pool).socket_messages([b'{"type":"response.created"}'])
    opened(pool).socket_is_silent()
    running = opened(pool)
    running.begin(Receiver())
    running.drop(SocketEnd.CANCELLED)
    idle = opened(pool)
    idle.used_at -= 1800.0
    pool._sweep()
    old = opened(pool)
    old.opened_at -= 3300.0
    pool._sweep()
    opened(pool)
    pool.close()
    assert pool.figures().lost == {
        "closed 1012": 1,
        "closed otherwise": 1,
        "unexpected message": 1,
        "no pong": 1,
        "cancelled": 1,
        "idle": 1,
        "age": 1,
        "account closed": 1,
    }
    assert pool.figures().in_use == pool.figures().idle == 0


def test_a_refusal_is_told_from_a_client_that_leaves() -> None:
    account = SocketAccount()
    account.streaming(account.turn("one"))[0].cancel()
    exchange, heard, peer = account.sent(account.turn("two"))
    heard.does = lambda step: exchange.cancel() if step == "events" else None
    peer.says(b'{"type":"error","status":429,"error":{"code":"rate_limit_exceeded"}}')
    assert account.pool.figures().lost == {"cancelled": 1, "refused": 1}
    account.check_rest()


def test_a_socket_that_is_too_old_for_its_service_is_told_from_others() -> None:
    account = SocketAccount()
    peer = account.sent()[2]
    peer.says(AT_ITS_END)
    assert account.pool.figures().lost == {"connection limit": 1}
    account.check_rest()


def test_it_is_told_until_when_responses_are_not_continued() -> None:
    account = SocketAccount()
    for _ in range(3):
        assert account.access.figures().forgets_until is None
        account.access.missed()
    assert account.access.figures().forgets_until == account.reactor.seconds() + 3600
    account.reactor.advance(3600)
    assert account.access.figures().forgets_until is None


@pytest.mark.parametrize("code", [0, 999, 1004, 1015, 3000, 4999, -1, 70_000])
def test_codes_that_services_choose_share_a_reason(code: int) -> None:
    assert end_of_code(code) is SocketEnd.CLOSED_OTHERWISE


def test_counts_outlive_the_pool() -> None:
    counts = SocketCounts()
    former = pool_of(counts)
    opened(former)
    former.close()
    pool = pool_of(counts)
    opened(pool)
    assert (pool.figures().opened, pool.figures().lost) == (2, {"account closed": 1})


@pytest.mark.parametrize(
    ("transport", "refusal", "seconds"),
    [
        ("auto", UpgradeRefusal.NO_WEBSOCKET, 600.0),
        ("auto", None, 30.0),
        ("websocket", UpgradeRefusal.NO_WEBSOCKET, None),
    ],
)
def test_why_no_socket_can_be_had_and_until_when(
    transport: Any, refusal: UpgradeRefusal | None, seconds: float | None
) -> None:
    clock = Clock()
    clock.advance(1000)
    settings = AccountSettings(name="a", base_url="http://a.test", key="k", transport=transport)
    nothing: Any = None
    access = WebSocketAccess(clock, settings, nothing, nothing, pool_of())
    access.could_not_open(refusal, "it answered the upgrade with 426")
    figures = access.figures()
    if seconds is None:
        assert (figures.why_unavailable, figures.unavailable_until) == (None, None)
        return
    assert figures.why_unavailable == "it answered the upgrade with 426"
    assert figures.unavailable_until == 1000 + seconds
    clock.advance(seconds)
    assert access.figures().why_unavailable is None
