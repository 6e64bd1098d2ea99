"""Who counts for the limits of client keys that processes share: Redis, or the supervisor.

Both count as :class:`gateway.api_keys.limit_ledger.LimitLedger` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred

from gateway.api_keys.limit_ledger import (
    KeyUse,
    LimitAnswer,
    LimitAsk,
    LimitAuthority,
    LimitLedger,
    LimitWindow,
)
from gateway.api_keys.limit_permits import SharedLimits
from gateway.state.backend import KEY_USE, LIMITS, Row, StateBackend
from gateway.state.encryption import EncryptedBackend
from gateway.state.redis import RedisBackend, RedisScript
from gateway.state.replication import KEY_USE_SECONDS
from gateway.state.serialization import decode
from gateway.state.worker_state import LinkBackend, StateServer
from gateway.state.write_behind import WriteBehind
from gateway.worker_link import Link

#: The method of the link.
_EXCHANGE = "limits.exchange"

#: How long a worker waits for its supervisor, in seconds.
_ANSWER_SECONDS = 1.0

#: How long a key that is not used is remembered in Redis, in milliseconds.
_REMEMBERED_MILLISECONDS = int(KEY_USE_SECONDS * 1000)

#: How long a process may come to hear that a place is free, in seconds.
_NEWS_SECONDS = 2.0

_SCRIPT = RedisScript((files("gateway.state") / "scripts" / "limits.lua").read_text("utf-8"))

_encode = msgspec.msgpack.Encoder().encode
_decode_ask = msgspec.msgpack.Decoder(LimitAsk).decode
_decode_answer = msgspec.msgpack.Decoder(LimitAnswer).decode


class ScriptRunner(Protocol):
    """Runs scripts in Redis."""

    def evaluate(
        self,
        script: RedisScript,
        keys: Sequence[str | bytes],
        arguments: Sequence[bytes | str | int | float],
    ) -> Deferred[Any]:
        """Run a script; fails when Redis cannot be reached."""


class RedisLimits:
    """Redis counts, in a script.

    :param now: unix seconds for tests; None for the clock of Redis, the same for all processes.
    """

    def __init__(self, redis: ScriptRunner, now: Callable[[], float] | None = None) -> None:
        self._redis = redis
        self._now = now

    def exchange(self, ask: LimitAsk) -> Deferred[LimitAnswer]:
        """Ask and report."""
        now = "" if self._now is None else repr(self._now())
        arguments = (_encode(ask), now, _REMEMBERED_MILLISECONDS)
        answer = self._redis.evaluate(_SCRIPT, [f"counts:{ask.tenant}"], arguments)
        return answer.addCallback(_decode_answer)


class LinkLimits:
    """The supervisor counts.

    :param link: to it.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    def exchange(self, ask: LimitAsk) -> Deferred[LimitAnswer]:
        """Ask and report."""
        answer = self._link.call(_EXCHANGE, _encode(ask), _ANSWER_SECONDS)
        return answer.addCallback(_decode_answer)


class LimitServer:
    """The supervisor's side of :class:`LinkLimits`.

    :param state: keeps what is used, over a restart of the supervisor.
    :param now: unix seconds.
    :ivar ledger: counts for all workers.
    """

    def __init__(self, state: StateServer, now: Callable[[], float]) -> None:
        self._state = state
        self._now = now
        self.ledger = LimitLedger()
        #: The limits of each key, as they were asked for last.
        self._windows: dict[str, Sequence[LimitWindow]] = {}

    def serve(self, link: Link) -> None:
        """Serve a worker until its link ends; then its places are free."""
        processes: set[str] = set()

        def exchange(payload: bytes) -> bytes:
            ask = _decode_ask(payload)
            processes.add(ask.process)
            return _encode(self._exchange(ask))

        def ended(link: Link) -> Link:
            for process in processes:
                self.ledger.gone(process)
            return link

        link.handle(_EXCHANGE, exchange)
        link.closed.addCallback(ended)

    def _exchange(self, ask: LimitAsk) -> LimitAnswer:
        key = ask.tenant.encode(errors="surrogatepass")
        if ask.tenant not in self.ledger.keys:
            kept = self._state.row(KEY_USE, key)
            use = None if kept is None or kept.value is None else decode(kept.value, KeyUse)
            if use is not None:
                self.ledger.restore(ask.tenant, ask.windows, use)
        self._windows[ask.tenant] = ask.windows
        answer = self.ledger.exchange(ask, self._now())
        if answer.granted or ask.uses:
            self._state.writes.put_later(KEY_USE, key, partial(self._row, ask.tenant, key))
        return answer

    def _row(self, tenant: str, key: bytes) -> Row:
        now = self._now()
        use = self.ledger.use_of(tenant, self._windows[tenant], now)
        return Row(KEY_USE, key, _encode(use), now + KEY_USE_SECONDS, tenant)


class OnceOpen:
    """Asks when the state is open: after a start the first requests would come too early."""

    def __init__(self, authority: LimitAuthority, writes: WriteBehind) -> None:
        self._authority = authority
        self._writes = writes

    def exchange(self, ask: LimitAsk) -> Deferred[LimitAnswer]:
        """Ask and report."""
        return self._writes.when_open().addCallback(lambda _: self._authority.exchange(ask))


def authority_of(backend: StateBackend) -> LimitAuthority | None:
    """Who counts for the processes that share a backend; None if nobody shares it."""
    inner = backend.inner if isinstance(backend, EncryptedBackend) else backend
    if isinstance(inner, RedisBackend):
        return RedisLimits(inner)
    if isinstance(inner, LinkBackend):
        return LinkLimits(inner.link)
    return None


class FreePlaces:
    """Tells processes whose requests wait that another one has given back a place.

    :param now: unix seconds.
    """

    table = LIMITS

    def __init__(self, writes: WriteBehind, now: Callable[[], float]) -> None:
        self._writes = writes
        self._now = now
        self.limits: SharedLimits | None = None

    def tell(self, tenant: str) -> None:
        """A place of a key is free."""
        key = tenant.encode(errors="surrogatepass")
        self._writes.put(Row(LIMITS, key, b"", self._now() + _NEWS_SECONDS))

    def load(self, rows: Sequence[Row]) -> None:
        """What was free some time ago says nothing."""

    def apply(self, row: Row) -> None:
        """Another process tells that a place is free."""
        if self.limits is not None:
            self.limits.freed_elsewhere(row.key.decode(errors="surrogatepass"))
