"""The WebSockets of one account: which conversation has which, and how many there are.

A response that is not stored lives on the socket that made it, and only while it is the latest one
there.  So a conversation keeps its socket.  One response runs on a socket at a time.  A socket that
a client's session was named to belongs to that conversation for good; others are given to another
conversation of the same tenant when they are idle and hold nothing.  Tenants never share a socket.
"""

from __future__ import annotations

import enum
import itertools
import secrets
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

from twisted.internet.interfaces import IDelayedCall

from gateway.protocol.websocket_messages import is_out_of_band, read_message
from gateway.upstream.interface import SocketFigures
from gateway.upstream.websocket_client import ABNORMAL, ClosedSocket, UpstreamSocket
from gateway.upstream.websocket_counts import SocketCounts, SocketEnd, end_of_code

#: How often idle sockets are looked through, in seconds; the age of one is looked at, too, when it
#: is used.
_SWEEP_SECONDS = 30.0

#: Distinguishes the sockets of this process from those of others that share the state.
_PROCESS = secrets.token_hex(4)
_numbers = itertools.count(1)


class SocketKey(NamedTuple):
    """Whose socket it is.

    :ivar conversation: what identifies the conversation; None for a request without one.
    """

    tenant: str
    conversation: Hashable = None


class SocketUse(enum.Enum):
    """What a socket is used for."""

    __hash__ = object.__hash__  # there is one of each; Enum hashes names, in Python

    BUSY = "a response runs on it"
    IDLE = "free"
    GONE = "closed, or to be closed"


TRANSITIONS = {
    SocketUse.BUSY: {SocketUse.IDLE, SocketUse.GONE},
    SocketUse.IDLE: {SocketUse.BUSY, SocketUse.GONE},
    SocketUse.GONE: set(),
}


class PooledSocket:
    """One socket and what it holds.

    :param key: whose it is; None until it is first used.
    :param is_private: whether its handshake named a client's session.
    :ivar receiver: gets the messages of the response that runs.
    """

    def __init__(
        self, pool: WebSocketPool, socket: UpstreamSocket, key: SocketKey | None, is_private: bool
    ) -> None:
        self._pool = pool
        self.socket = socket
        self.key = key
        self.is_private = is_private
        self.name = f"{_PROCESS}-{next(_numbers)}"
        self.opened_at = self.used_at = pool.now()
        self.use = SocketUse.IDLE
        self.turns = 0
        self.holds_latest = False
        self.is_silent = False
        self.receiver: SocketReceiver | None = None
        socket.listener = self

    @property
    def token(self) -> str:
        """Stands for its latest response: what ``ResponseRecord.holder`` remembers."""
        return f"{self.name}/{self.turns}"

    @property
    def is_usable(self) -> bool:
        """Whether a turn may begin on it."""
        age = self._pool.now() - self.opened_at
        return (
            self.use is SocketUse.IDLE and not self.is_silent and age < self._pool.max_age_seconds
        )

    def begin(self, receiver: SocketReceiver) -> None:
        """A response begins; what was held is not the latest any more."""
        self._enter(SocketUse.BUSY)
        self.receiver = receiver
        self.turns += 1
        self.holds_latest = False

    def go_on(self, receiver: SocketReceiver) -> None:
        """Another response begins right behind the one before."""
        self.receiver = receiver
        self.turns += 1
        self.holds_latest = False

    def finish(self, holds_latest: bool) -> None:
        """The response has ended in order: the socket is free.

        :param holds_latest: whether only this socket can continue that response.
        """
        if self.use is SocketUse.BUSY:
            self.receiver = None
            self.holds_latest = holds_latest
            self.used_at = self._pool.now()
            self._enter(SocketUse.IDLE)
            self._pool.freed(self)

    def drop(self, why: SocketEnd) -> None:
        """Close it at once: what runs on it is given up."""
        self.receiver = None
        if self.use is not SocketUse.GONE:
            self._leave(why)
            self.socket.drop()

    def close(self, why: SocketEnd) -> None:
        """Close it, between two responses."""
        if self.use is not SocketUse.GONE:
            self._leave(why)
            self.socket.close()

    # --- what the socket reports -----------------------------------------------------

    def socket_messages(self, payloads: list[bytes]) -> None:
        """Messages for the response that runs; between two, some are dropped."""
        if self.receiver is not None:
            self.is_silent = False
            payloads = self.receiver.socket_messages(payloads)
        if payloads:
            self.messages_behind(payloads)

    def messages_behind(self, payloads: list[bytes]) -> None:
        """Messages behind the end of a response; another may follow it by itself."""
        if self.receiver is not None and self.receiver.follows:
            payloads = self.receiver.socket_messages(payloads)
        for payload in payloads:
            message = read_message(payload)
            if self.use is SocketUse.GONE:
                return
            if message is None or not is_out_of_band(message[0]):
                self._spoilt()

    def socket_closed(self, closed: ClosedSocket) -> None:
        """The socket is lost."""
        receiver, self.receiver = self.receiver, None
        if self.use is not SocketUse.GONE:
            self._leave(end_of_code(closed.code))
        if receiver is not None:
            receiver.socket_closed(closed)

    def socket_is_silent(self) -> None:
        """A ping was not answered: if a response runs, what comes of it decides."""
        self.is_silent = True
        if self.use is SocketUse.IDLE:
            self.drop(SocketEnd.NO_PONG)

    def _spoilt(self) -> None:
        """A message came that belongs to no response; another may have begun by now."""
        receiver, self.receiver = self.receiver, None
        self.close(SocketEnd.UNEXPECTED_MESSAGE)
        if receiver is not None:
            receiver.socket_closed(ClosedSocket(ABNORMAL, "an unexpected message came"))

    def _leave(self, why: SocketEnd) -> None:
        self._enter(SocketUse.GONE)
        self._pool.left(self, why)

    def _enter(self, use: SocketUse) -> None:
        if use not in TRANSITIONS[self.use]:
            raise AssertionError(f"a socket cannot go from {self.use} to {use}")
        self.use = use


class SocketReceiver:
    """Gets what comes for one response.

    :ivar follows: whether it waits for one that begins by itself, behind the end of another.
    """

    follows = False

    def socket_messages(self, payloads: list[bytes]) -> list[bytes]:
        """Take messages; return those that come after the end of the response."""
        raise NotImplementedError

    def socket_closed(self, closed: ClosedSocket) -> None:
        """The socket is lost before the response has ended."""
        raise NotImplementedError


class SocketBudget:
    """The bound on the sockets of all accounts together.

    :param most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._pools: list[WebSocketPool] = []

    @property
    def used(self) -> int:
        """Sockets that are open or being opened."""
        return sum(pool.opened_now for pool in self._pools)

    def join(self, pool: WebSocketPool) -> None:
        """``pool`` takes its sockets from here."""
        self._pools.append(pool)

    def leave(self, pool: WebSocketPool) -> None:
        """``pool`` opens no more."""
        if pool in self._pools:
            self._pools.remove(pool)

    def makes_room(self) -> bool:
        """Whether one more may be opened; the one that was idle longest may be closed for it."""
        if self.used < self.most:
            return True
        idle = [found for pool in self._pools if (found := pool.longest_idle()) is not None]
        if not idle:
            return False
        min(idle, key=lambda each: each.used_at).close(SocketEnd.ROOM)
        return True


class WebSocketPool:
    """The sockets of one account.

    :param now: seconds; any clock that does not go back.
    :param most: how many sockets the account may have.
    :param max_age_seconds: how old a socket may be when a turn begins on it.
    :param idle_seconds: how long an idle one is kept.
    :param counts: of the account's sockets so far; it may have some of an earlier pool.
    """

    def __init__(
        self,
        reactor: Any,
        most: int,
        max_age_seconds: float,
        idle_seconds: float,
        budget: SocketBudget,
        counts: SocketCounts | None = None,
    ) -> None:
        self._reactor = reactor
        self.now: Callable[[], float] = reactor.seconds
        self.most = most
        self.max_age_seconds = max_age_seconds
        self._idle_seconds = idle_seconds
        self._budget = budget
        self._sockets: dict[str, PooledSocket] = {}
        self._of_key: dict[SocketKey, list[PooledSocket]] = {}
        self._dialing = 0
        self._closed = False
        self._sweeping: IDelayedCall | None = None
        self.counts = counts or SocketCounts()
        budget.join(self)

    # --- counts ----------------------------------------------------------------------

    @property
    def opened_now(self) -> int:
        """Sockets that are open or being opened."""
        return len(self._sockets) + self._dialing

    @property
    def busy(self) -> int:
        """Sockets on which a response runs."""
        return sum(each.use is SocketUse.BUSY for each in self._sockets.values())

    @property
    def spares(self) -> int:
        """Sockets that were not used yet."""
        return sum(each.key is None for each in self._sockets.values())

    def figures(self) -> SocketFigures:
        """All counts."""
        busy, counts = self.busy, self.counts
        return SocketFigures(
            in_use=busy,
            idle=len(self._sockets) - busy,
            opening=self._dialing,
            most=self.most,
            most_of_all=self._budget.most,
            opened=counts.opened,
            lost={end.value: count for end, count in counts.lost.items()},
        )

    # --- finding one -----------------------------------------------------------------

    def holding(self, token: str) -> PooledSocket | None:
        """The socket that can continue the response that ``token`` stands for."""
        name = token.partition("/")[0]
        found = self._sockets.get(name)
        if found is None or not found.holds_latest or found.token != token or not found.is_usable:
            return None
        return found

    def take(self, key: SocketKey) -> PooledSocket | None:
        """A free socket for a turn that continues nothing; None if one has to be opened.

        The conversation's own comes first: it has no use for what that socket holds.
        """
        found = self._usable(self._of_key.get(key, ()))
        if found is None:
            found = self._usable(
                each for each in self._sockets.values() if self._may_change_to(each, key)
            )
        if found is not None:
            self._give(found, key)
        return found

    def _usable(self, sockets: Any) -> PooledSocket | None:
        for each in sockets:
            if each.is_usable:
                found: PooledSocket = each
                return found
        return None

    def _may_change_to(self, each: PooledSocket, key: SocketKey) -> bool:
        if each.key is None:
            return True
        return each.key.tenant == key.tenant and not (each.is_private or each.holds_latest)

    def _give(self, socket: PooledSocket, key: SocketKey) -> None:
        if socket.key != key:
            self._forget_key(socket)
            socket.key = key
            self._of_key.setdefault(key, []).append(socket)

    # --- opening and closing ---------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether one more may be opened, and none has to be closed for it."""
        return self.opened_now < self.most and self._budget.used < self._budget.most

    def reserve(self) -> bool:
        """Keep room for one more, until :meth:`add` or :meth:`give_up`; False if there is none."""
        if self.opened_now >= self.most:
            idle = self.longest_idle()
            if idle is None:
                return False
            idle.close(SocketEnd.ROOM)
        if not self._budget.makes_room():
            return False
        self._dialing += 1
        return True

    def give_up(self) -> None:
        """The socket that was to be opened could not be."""
        self._dialing -= 1

    def add(self, socket: UpstreamSocket, key: SocketKey | None, is_private: bool) -> PooledSocket:
        """A socket was opened.

        :param key: whose it is; None for a spare one.
        """
        self._dialing -= 1
        self.counts.opened += 1
        pooled = PooledSocket(self, socket, key, is_private)
        self._sockets[pooled.name] = pooled
        if key is not None:
            self._of_key.setdefault(key, []).append(pooled)
        if self._sweeping is None and not self._closed:
            self._sweeping = self._reactor.callLater(_SWEEP_SECONDS, self._sweep)
        return pooled

    def longest_idle(self) -> PooledSocket | None:
        """The free socket that will be missed least: it holds nothing, or is idle for longest."""
        idle = [each for each in self._sockets.values() if each.use is SocketUse.IDLE]
        return min(idle, key=lambda each: (each.holds_latest, each.used_at), default=None)

    def freed(self, socket: PooledSocket) -> None:
        """A response has ended on ``socket``."""
        if self._closed:
            socket.close(SocketEnd.ACCOUNT_CLOSED)
        elif socket.is_silent:
            socket.close(SocketEnd.NO_PONG)
        elif not socket.is_usable:
            socket.close(SocketEnd.AGE)

    def left(self, socket: PooledSocket, why: SocketEnd) -> None:
        """``socket`` is gone."""
        self.counts.lost[why] += 1
        self._sockets.pop(socket.name, None)
        self._forget_key(socket)

    def close(self) -> None:
        """Close all sockets, and open no more; one that is being opened closes after its turn."""
        self._budget.leave(self)
        self._closed = True
        self.most = 0
        sweeping, self._sweeping = self._sweeping, None
        if sweeping is not None and sweeping.active():
            sweeping.cancel()
        for each in list(self._sockets.values()):
            receiver = each.receiver
            if each.use is SocketUse.IDLE:
                each.close(SocketEnd.ACCOUNT_CLOSED)
            else:
                each.drop(SocketEnd.ACCOUNT_CLOSED)
            if receiver is not None:
                receiver.socket_closed(ClosedSocket(ABNORMAL, "the account is closed"))

    def sockets(self) -> Iterator[PooledSocket]:
        """All of them."""
        return iter(self._sockets.values())

    def _forget_key(self, socket: PooledSocket) -> None:
        if socket.key is None:
            return
        of_key = self._of_key.get(socket.key, [])
        if socket in of_key:
            of_key.remove(socket)
        if not of_key:
            self._of_key.pop(socket.key, None)

    def _sweep(self) -> None:
        """Close what is too old, or was idle for too long."""
        now = self.now()
        for each in list(self._sockets.values()):
            if each.use is SocketUse.IDLE:
                if now - each.opened_at >= self.max_age_seconds:
                    each.close(SocketEnd.AGE)
                elif now - each.used_at >= self._idle_seconds:
                    each.close(SocketEnd.IDLE)
        self._sweeping = None
        if self._sockets:
            self._sweeping = self._reactor.callLater(_SWEEP_SECONDS, self._sweep)
