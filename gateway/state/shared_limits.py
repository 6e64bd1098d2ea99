"""Who counts for the limits of client keys that processes share: Redis, or the supervisor.

Both count as :class:`gateway.api_keys.limit_ledger.LimitLedger` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred

from gateway.api_keys.limit_ledger import (
    LimitAnswer,
    LimitAsk,
    LimitAuthority,
    LimitLedger,
)
from gateway.api_keys.limit_permits import SharedLimits
from gateway.state.backend import LIMITS, Row, StateBackend
from gateway.state.encryption import EncryptedBackend
from gateway.state.redis import RedisBackend, RedisScript
from gateway.state.worker_state import LinkBackend
from gateway.state.write_behind import WriteBehind
from gateway.worker_link import Link

#: The method of the link.
_EXCHANGE = "limits.exchange"

#: How long a worker waits for its supervisor, in seconds.
_ANSWER_SECONDS = 1.0

#: How long a key that is not used is remembered in Redis, in milliseconds.
_REMEMBERED_MILLISECONDS = 400 * 86_400_000

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

    :param now: unix seconds.
    :ivar ledger: counts for all workers.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.ledger = LimitLedger()

    def serve(self, link: Link) -> None:
        """Serve a worker until its link ends; then its places are free."""
        processes: set[str] = set()

        def exchange(payload: bytes) -> bytes:
            ask = _decode_ask(payload)
            processes.add(ask.process)
            return _encode(self.ledger.exchange(ask, self._now()))

        def ended(link: Link) -> Link:
            for process in processes:
                self.ledger.gone(process)
            return link

        link.handle(_EXCHANGE, exchange)
        link.closed.addCallback(ended)


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
