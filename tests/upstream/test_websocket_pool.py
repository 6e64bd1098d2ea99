"""The WebSockets of accounts: any use of them, in any order, within their bounds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock

from gateway.upstream.websocket_client import ClosedSocket
from gateway.upstream.websocket_counts import SocketEnd
from gateway.upstream.websocket_pool import (
    TRANSITIONS,
    PooledSocket,
    SocketBudget,
    SocketKey,
    SocketReceiver,
    SocketUse,
    WebSocketPool,
)

MAX_AGE, MAX_IDLE = 3300.0, 1800.0
SWEEP = 30.0

TENANTS = ["ann", "bob"]
KEYS = [SocketKey(tenant, thread) for tenant in TENANTS for thread in ("1", "2", None)]

RATE_LIMITS = b'{"type":"codex.rate_limits"}'
UNEXPECTED = b'{"type":"response.created"}'


class Socket:
    """An open socket, as its pool sees it."""

    listener: Any = None
    closed = ""

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = "closed"
        self.listener = None

    def drop(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = "dropped"
        self.listener = None

    def is_lost(self, code: int = 1006) -> None:
        """The peer closes it."""
        listener, self.listener = self.listener, None
        self.closed = "lost"
        listener.socket_closed(ClosedSocket(code, "gone"))


class Receiver(SocketReceiver):
    """A turn that writes down; ``rest`` is what it gives back."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.ends: list[ClosedSocket] = []
        self.rest: list[bytes] = []

    def socket_messages(self, payloads: list[bytes]) -> list[bytes]:
        assert not self.ends, "messages after the end"
        self.messages += payloads
        return self.rest

    def socket_closed(self, closed: ClosedSocket) -> None:
        self.ends.append(closed)
        assert len(self.ends) == 1, "told twice"


def pool_of(
    most: int = 3, budget: SocketBudget | None = None, clock: Clock | None = None
) -> WebSocketPool:
    return WebSocketPool(clock or Clock(), most, MAX_AGE, MAX_IDLE, budget or SocketBudget(10))


def opened(
    pool: WebSocketPool, key: SocketKey | None = KEYS[0], is_private: bool = False
) -> tuple[PooledSocket, Socket]:
    assert pool.reserve()
    socket: Any = Socket()
    return pool.add(socket, key, is_private), socket


class Known:
    """What the model knows of a socket.

    :ivar users: the keys of the turns that ran on it.
    :ivar holds: the token of the response that it holds, or None.
    """

    def __init__(
        self, pool: WebSocketPool, pooled: PooledSocket, socket: Socket, key: SocketKey | None
    ) -> None:
        self.pool = pool
        self.pooled = pooled
        self.socket = socket
        self.key = key
        self.is_private = pooled.is_private
        self.born = self.used = pool.now()
        self.users: set[SocketKey] = set()
        self.receiver: Receiver | None = None
        self.silent = False
        self.holds: str | None = None

    @property
    def usable(self) -> bool:
        young = self.pool.now() - self.born < MAX_AGE
        return not self.socket.closed and self.receiver is None and not self.silent and young


class PoolMachine(RuleBasedStateMachine):
    """Two accounts with a bound each and one in common; the rules are turns, peers, and time."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.budget = SocketBudget(4)
        self.pools = [pool_of(3, self.budget, self.clock), pool_of(2, self.budget, self.clock)]
        self.known: list[Known] = []
        self.dialing = [0, 0]
        self.tokens: set[str] = set()

    def alive(self, at: int | None = None) -> list[Known]:
        return [
            each
            for each in self.known
            if not each.socket.closed and (at is None or each.pool is self.pools[at])
        ]

    def begins(self, known: Known, key: SocketKey) -> None:
        known.receiver = Receiver()
        known.pooled.begin(known.receiver)
        known.users.add(key)
        known.holds = None
        self.tokens.add(known.pooled.token)

    accounts = st.sampled_from([0, 1])
    keys = st.sampled_from(KEYS)

    @rule(at=accounts, key=keys, is_private=st.booleans())
    def a_turn_begins(self, at: int, key: SocketKey, is_private: bool) -> None:
        candidates = [
            each
            for each in self.alive(at)
            if each.usable
            and (
                each.key in (None, key)
                or (each.key.tenant == key.tenant and not each.is_private and not each.holds)
            )
        ]
        own = [each for each in candidates if each.key == key]
        pooled = self.pools[at].take(key)
        if pooled is not None:
            (found,) = [each for each in self.known if each.pooled is pooled]
            assert found in (own or candidates), "not a socket that this turn may have"
            found.key = key
            self.begins(found, key)
            return
        assert not candidates, "there is a socket that it could have had"
        room = self.pools[at].reserve()
        assert room == (self._has_room(at) or room), "room for one, and none is given"
        if room:
            socket: Any = Socket()
            added = self.pools[at].add(socket, key, is_private)
            self.known.append(Known(self.pools[at], added, socket, key))
            self.begins(self.known[-1], key)

    def _has_room(self, at: int) -> bool:
        own = len(self.alive(at)) + self.dialing[at] < self.pools[at].most
        return own and len(self.alive()) + sum(self.dialing) < self.budget.most

    @rule(at=accounts)
    def a_dial_begins(self, at: int) -> None:
        had_room = self._has_room(at)
        idle = [each for each in self.alive(at) if each.receiver is None]
        reserved = self.pools[at].reserve()
        if had_room or idle:
            assert reserved
        self.dialing[at] += reserved

    @precondition(lambda self: any(self.dialing))
    @rule(data=st.data(), key=st.one_of(st.none(), keys), fails=st.booleans())
    def a_dial_ends(self, data: st.DataObject, key: SocketKey | None, fails: bool) -> None:
        at = data.draw(st.sampled_from([n for n in (0, 1) if self.dialing[n]]))
        self.dialing[at] -= 1
        if fails:
            self.pools[at].give_up()
        else:
            socket: Any = Socket()
            added = self.pools[at].add(socket, key, False)
            self.known.append(Known(self.pools[at], added, socket, key))

    def running(self) -> list[Known]:
        return [each for each in self.alive() if each.receiver is not None]

    @precondition(lambda self: self.running())
    @rule(data=st.data(), holds=st.booleans())
    def a_turn_ends(self, data: st.DataObject, holds: bool) -> None:
        known = data.draw(st.sampled_from(self.running()))
        token = known.pooled.token
        known.pooled.finish(holds)
        known.receiver = None
        known.used = self.clock.seconds()
        if known.silent or self.clock.seconds() - known.born >= MAX_AGE:
            assert known.socket.closed == "closed"
        known.holds = token if holds else None

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def a_turn_is_cancelled(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(self.running()))
        known.pooled.drop(SocketEnd.CANCELLED)
        assert known.socket.closed == "dropped"

    @precondition(lambda self: self.alive())
    @rule(data=st.data(), code=st.sampled_from([1000, 1006, 1011, 4321]))
    def a_peer_closes(self, data: st.DataObject, code: int) -> None:
        known = data.draw(st.sampled_from(self.alive()))
        known.socket.is_lost(code)
        if known.receiver is not None:
            assert [end.code for end in known.receiver.ends] == [code]

    @precondition(lambda self: self.alive())
    @rule(data=st.data())
    def a_peer_is_silent(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(self.alive()))
        known.pooled.socket_is_silent()
        known.silent = True
        assert bool(known.socket.closed) == (known.receiver is None)

    @precondition(lambda self: self.alive())
    @rule(
        data=st.data(),
        payload=st.sampled_from([RATE_LIMITS, UNEXPECTED, b"{}", b"no event"]),
    )
    def a_message_comes(self, data: st.DataObject, payload: bytes) -> None:
        known = data.draw(st.sampled_from(self.alive()))
        known.socket.listener.socket_messages([payload])
        if known.receiver is not None:
            known.silent = False
            assert known.receiver.messages[-1] == payload
            assert not known.socket.closed
        else:
            assert bool(known.socket.closed) == (payload is not RATE_LIMITS)

    @rule(seconds=st.sampled_from([1.0, 31.0, 600.0, 1799.0, 1801.0, 3299.0, 3301.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def bounds_hold(self) -> None:
        for at, pool in enumerate(self.pools):
            alive = self.alive(at)
            assert pool.opened_now == len(alive) + self.dialing[at] <= pool.most
            assert pool.busy == sum(each.receiver is not None for each in alive)
            assert pool.figures().idle == len(alive) - pool.busy
            assert pool.spares == sum(each.key is None for each in alive)
            assert set(pool.sockets()) == {each.pooled for each in alive}
            figures = pool.figures()
            assert figures.opened == sum(each.pool is pool for each in self.known)
            assert sum(figures.lost.values()) == figures.opened - len(alive)
        assert self.budget.used <= self.budget.most

    @invariant()
    def no_socket_has_two_tenants_and_a_private_one_no_two_conversations(self) -> None:
        for each in self.known:
            assert len({key.tenant for key in each.users}) <= 1
            assert not each.is_private or len(each.users) <= 1

    @invariant()
    def a_token_stands_for_the_latest_response_of_a_free_young_socket(self) -> None:
        held = {each.holds: each for each in self.known if each.holds and each.usable}
        for token in self.tokens:
            for pool in self.pools:
                found = pool.holding(token)
                expected = held.get(token)
                if expected is not None and expected.pool is pool:
                    assert found is expected.pooled
                else:
                    assert found is None

    @invariant()
    def what_is_old_or_unused_does_not_stay(self) -> None:
        now = self.clock.seconds()
        for each in self.alive():
            if each.receiver is None:
                assert now - each.born < MAX_AGE + SWEEP
                assert now - each.used < MAX_IDLE + SWEEP

    @invariant()
    def nothing_is_kept_of_sockets_that_are_gone(self) -> None:
        for pool in self.pools:
            kept = [each for of_key in pool._of_key.values() for each in of_key]
            assert sorted(kept, key=id) == sorted(
                (each for each in pool.sockets() if each.key is not None), key=id
            )
            assert all(pool._of_key.values())

    def teardown(self) -> None:
        running = self.running()
        for pool in self.pools:
            pool.close()
            assert not pool.reserve()
        assert not self.alive(), "a socket outlives its account"
        assert all(each.receiver is None or each.receiver.ends for each in running), (
            "a turn waits for a socket that is gone"
        )
        assert not self.clock.getDelayedCalls()


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestPool = PoolMachine.TestCase


# --- single cases --------------------------------------------------------------------------


def test_a_conversations_own_socket_comes_first() -> None:
    pool = pool_of()
    other, _ = opened(pool, KEYS[1])
    own, _ = opened(pool, KEYS[0])
    assert pool.take(KEYS[0]) is own
    own.begin(Receiver())
    assert pool.take(KEYS[0]) is other, "a free one that holds nothing"
    assert other.key == KEYS[0]
    other.begin(Receiver())
    own.finish(True)
    other.finish(False)
    assert pool.take(KEYS[1]) is other


def test_the_socket_that_is_missed_least_makes_room() -> None:
    clock = Clock()
    pool = pool_of(3, clock=clock)
    sockets = []
    for holds in (True, True, False):
        pooled, socket = opened(pool)
        pooled.begin(Receiver())
        pooled.finish(holds)
        sockets.append(socket)
        clock.advance(1)
    for expected in (2, 0, 1):
        assert pool.reserve()
        assert sockets[expected].closed == "closed"
    assert not pool.reserve(), "sockets that are being opened make no room"


def test_another_accounts_idle_socket_makes_room_for_a_turn() -> None:
    budget = SocketBudget(1)
    one, two = pool_of(budget=budget), pool_of(budget=budget)
    pooled, socket = opened(one)
    pooled.begin(Receiver())
    assert not two.reserve(), "a response runs on it"
    pooled.finish(True)
    assert two.reserve()
    assert socket.closed
    assert budget.used == 1


def test_no_room_is_made_for_a_spare_socket() -> None:
    budget = SocketBudget(2)
    one, two = pool_of(budget=budget), pool_of(most=1, budget=budget)
    _, idle = opened(one)
    assert two.has_room
    _, own = opened(two)
    assert not two.has_room, "its own bound"
    assert not one.has_room, "the bound of all"
    assert not idle.closed
    assert not own.closed


@pytest.mark.parametrize("rest", [[UNEXPECTED], [b"no event"], [RATE_LIMITS, UNEXPECTED]])
def test_a_turn_that_has_begun_since_is_told_of_a_spoilt_socket(rest: list[bytes]) -> None:
    pool = pool_of()
    pooled, socket = opened(pool)
    following = Receiver()

    class Ending(Receiver):
        def socket_messages(self, payloads: list[bytes]) -> list[bytes]:
            pooled.finish(True)
            pooled.begin(following)
            return rest

    pooled.begin(Ending())
    socket.listener.socket_messages([b"all of it"])
    assert len(following.ends) == 1
    assert not following.messages
    assert socket.closed == "closed"


def test_a_socket_that_is_opened_for_a_closed_account_does_not_stay() -> None:
    clock = Clock()
    pool = pool_of(clock=clock)
    assert pool.reserve()
    pool.close()
    socket: Any = Socket()
    pooled = pool.add(socket, KEYS[0], False)
    pooled.begin(Receiver())
    pooled.finish(True)
    assert socket.closed == "closed"
    assert not clock.getDelayedCalls()


def test_a_name_is_never_given_twice() -> None:
    pool = pool_of(10)
    names = {opened(pool)[0].name for _ in range(10)}
    assert len(names) == 10
    assert all("/" not in name for name in names)


@pytest.mark.parametrize("token", ["", "/", "/1", "main", "x-1/1", "\0"])
def test_other_holders_are_no_tokens(token: str) -> None:
    assert pool_of().holding(token) is None


def test_commands_to_a_socket_that_is_gone_change_nothing() -> None:
    pool = pool_of()
    pooled, _ = opened(pool)
    pooled.drop(SocketEnd.CANCELLED)
    pooled.drop(SocketEnd.FAILED)
    pooled.close(SocketEnd.AGE)
    pooled.finish(True)
    pooled.socket_closed(ClosedSocket(1006, ""))
    pooled.socket_is_silent()
    pooled.socket_messages([UNEXPECTED])
    assert dict(pool.counts.lost) == {SocketEnd.CANCELLED: 1}


def test_the_table_has_every_use_and_an_end() -> None:
    assert set(TRANSITIONS) == set(SocketUse)
    assert TRANSITIONS[SocketUse.GONE] == set()
    pooled, _ = opened(pool_of())
    pooled.begin(Receiver())
    with pytest.raises(AssertionError):
        pooled.begin(Receiver())
