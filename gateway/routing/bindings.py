"""Which account each conversation sticks to, since when and why; bounded in count and age.

Clients choose how many conversations they begin.  When there are too many, the tenant that has
the most gives up its least recently used ones, so that none can push out those of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from heapq import merge
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from gateway.routing.affinity import AffinityKey

#: With these bytes no two conversations meet, and a digest takes 48 of memory.
_DIGEST_SIZE = 15

#: Names and reasons that bindings share.
_MAX_TEXTS = 4096

#: Finding the oldest costs more the more a tenant has: this share of them goes at once.
_EVICTED_SHARE = 128

#: Bindings that :meth:`Bindings.expire` forgets at once.
_EXPIRED_AT_ONCE = 10_000


class Binding(Struct, gc=False):
    """Where a conversation is at home, and why.

    :ivar account: its home.
    :ivar why: how it came there.
    :ivar bound_at: since when it is there, in unix seconds.
    :ivar stand_in: who serves it while its home cannot, or None.
    :ivar stand_in_why: why its home cannot, or None.
    :ivar used_at: when it was last used, in unix seconds.
    :ivar rule: what it is known by: a thread, a session, ...
    :ivar tenant: name of the client key.
    :ivar leaves: the account that the operator wants it to leave at its next turn, or None.
    :ivar answered: whether its account ever answered it; until then it is only expected there,
        and nobody is shown it.
    """

    account: str
    why: str
    bound_at: float
    stand_in: str | None
    stand_in_why: str | None
    used_at: float
    rule: str
    tenant: str
    leaves: str | None = None
    answered: bool = True


class Bindings:
    """Remembers the account of each conversation; of the conversation's key only a digest.

    :param max_bindings: bound on the count, of all tenants together.
    :param ttl_seconds: how long an unused binding lasts.
    :ivar now: unix seconds.
    """

    def __init__(self, max_bindings: int, ttl_seconds: float, now: Callable[[], float]) -> None:
        self.max_bindings = max_bindings
        self._ttl_seconds = ttl_seconds
        self.now = now
        #: By tenant, the least recently used first.
        self._bound: dict[str, dict[bytes, Binding]] = {}
        self._count = 0
        self._texts: dict[str, str] = {}

    def __len__(self) -> int:
        return self._count

    # --- turns -----------------------------------------------------------------------

    def find(self, key: AffinityKey) -> Binding | None:
        """The binding of ``key``, which a turn uses now, or None."""
        digest, now = _digest(key), self.now()
        binding = self._take(key.tenant, digest, now)
        if binding is not None:
            self._put(digest, binding, now)
        return binding

    def bind(self, key: AffinityKey, account: str, why: str = "") -> None:
        """Make ``account`` the home of ``key``, or end the time of its stand-in there.

        :param why: kept as long as the home is the same.
        """
        digest, now = _digest(key), self.now()
        binding = self._take(key.tenant, digest, now)
        if binding is None or binding.account != account:
            binding = self._made(key, account, why, now)
        binding.stand_in = binding.stand_in_why = binding.leaves = None
        binding.answered = True
        self._put(digest, binding, now)

    def expect(self, key: AffinityKey, account: str, why: str = "") -> None:
        """A turn of ``key`` goes to ``account``, and no account has answered it yet.

        Others follow it there; nothing else comes of it until :meth:`settle`.
        """
        digest, now = _digest(key), self.now()
        binding = self._take(key.tenant, digest, now)
        if binding is None:
            binding = self._made(key, account, why, now)
            binding.answered = False
        self._put(digest, binding, now)

    def settle(self, key: AffinityKey, account: str, why: str = "") -> None:
        """``account`` answered ``key``: it is its home, unless another answered before."""
        digest, now = _digest(key), self.now()
        binding = self._take(key.tenant, digest, now)
        if binding is None or (not binding.answered and binding.account != account):
            binding = self._made(key, account, why, now)
        binding.answered = True
        self._put(digest, binding, now)

    def withdraw(self, key: AffinityKey, account: str) -> None:
        """``account`` did not answer ``key``, and is not expected to any more."""
        digest = _digest(key)
        found = self._bound.get(key.tenant, {}).get(digest)
        if found is not None and not found.answered and found.account == account:
            self._pop(key.tenant, digest)

    def stand_in(self, key: AffinityKey, account: str, why: str = "") -> None:
        """Let ``account`` serve ``key`` until it is bound again; without a home it is the home.

        :param why: what ails the home.
        """
        digest, now = _digest(key), self.now()
        binding = self._take(key.tenant, digest, now)
        if binding is None:
            self.bind(key, account, why)
            return
        binding.stand_in, binding.stand_in_why = self._shared(account), self._shared(why)
        self._put(digest, binding, now)

    def release(self, key: AffinityKey) -> None:
        """Forget ``key``; a connection's own key dies with the connection."""
        self._pop(key.tenant, _digest(key))

    # --- the operator ----------------------------------------------------------------

    def look(self, key: AffinityKey) -> Binding | None:
        """The binding of ``key`` for one who only looks, or None."""
        return self._alive(self._bound.get(key.tenant, {}).get(_digest(key)), self.now())

    def items(self, limit: int) -> Iterator[tuple[str, Binding]]:
        """The ``limit`` most recently used, the last one first; each with its opaque id."""
        now = self.now()
        by_tenant = [reversed(bound.items()) for bound in self._bound.values()]
        latest = merge(*by_tenant, key=lambda item: -item[1].used_at)
        alive = takewhile(lambda item: self._alive(item[1], now), latest)
        at_home = (item for item in alive if item[1].answered)
        return ((digest.hex(), binding) for digest, binding in islice(at_home, limit))

    def with_id(self, opaque_id: str) -> Binding | None:
        """The binding that :meth:`items` gives this id, or None, also when it is no such id."""
        digest = _bytes(opaque_id)
        found = (bound[digest] for bound in self._bound.values() if digest in bound)
        binding = self._alive(next(found, None), self.now())
        return binding if binding is not None and binding.answered else None

    def move(self, opaque_id: str) -> Binding | None:
        """Let the conversation go to another account at its next turn, where there is one.

        :return: its binding, or None when it is gone.
        """
        binding = self.with_id(opaque_id)
        if binding is not None:
            binding.leaves = binding.stand_in or binding.account
        return binding

    def forget(self, opaque_id: str) -> bool:
        """Forget the binding that :meth:`items` gave this id; False when it is gone.

        :raises ValueError: when it is no such id.
        """
        digest = bytes.fromhex(opaque_id)
        return any(self._pop(tenant, digest) is not None for tenant in self._bound)

    def forget_account(self, account: str) -> int:
        """Nobody is at home at ``account`` any more, nor does it stand in for another.

        Who has a stand-in stays there.

        :return: how many conversations lost their home.
        """
        moved = 0
        for tenant, bound in self._bound.items():
            for digest, binding in list(bound.items()):
                stand_in = binding.stand_in
                if binding.account == account:
                    moved += 1
                    if stand_in is None or stand_in == account:
                        self._pop(tenant, digest)
                        continue
                    binding.account, binding.why = stand_in, binding.stand_in_why or ""
                elif stand_in != account:
                    continue
                binding.stand_in = binding.stand_in_why = None
        return moved

    def reconfigure(self, max_bindings: int, ttl_seconds: float) -> None:
        """Take these bounds from now on."""
        self.max_bindings = max_bindings
        self._ttl_seconds = ttl_seconds
        self._shrink()

    def expire(self) -> None:
        """Forget what is too old; to be called now and then."""
        now, left = self.now(), _EXPIRED_AT_ONCE
        for tenant, bound in list(self._bound.items()):
            old = takewhile(lambda item: not self._alive(item[1], now), bound.items())
            left -= self._drop(tenant, islice(old, left))
            if not bound:
                del self._bound[tenant]

    # --- inside ----------------------------------------------------------------------

    def _made(self, key: AffinityKey, account: str, why: str, now: float) -> Binding:
        account, why = self._shared(account), self._shared(why)
        rule, tenant = self._shared(key.rule), self._shared(key.tenant)
        return Binding(account, why, now, None, None, now, rule, tenant)

    def _alive(self, binding: Binding | None, now: float) -> Binding | None:
        if binding is None or binding.used_at + self._ttl_seconds <= now:
            return None
        return binding

    def _take(self, tenant: str, digest: bytes, now: float) -> Binding | None:
        return self._alive(self._pop(tenant, digest), now)

    def _pop(self, tenant: str, digest: bytes) -> Binding | None:
        binding = self._bound.get(tenant, {}).pop(digest, None)
        self._count -= binding is not None
        return binding

    def _put(self, digest: bytes, binding: Binding, now: float) -> None:
        """Keep it; it is not there now."""
        binding.used_at = now
        self._bound.setdefault(binding.tenant, {})[digest] = binding
        self._count += 1
        self._shrink()

    def _shrink(self) -> None:
        """Tenants are few: whoever has the most is found by a look at each."""
        while self._count > self.max_bindings:
            tenant, bound = max(self._bound.items(), key=lambda item: len(item[1]))
            self._drop(tenant, islice(bound.items(), max(1, len(bound) // _EVICTED_SHARE)))

    def _drop(self, tenant: str, items: Iterable[tuple[bytes, Binding]]) -> int:
        bound, gone = self._bound[tenant], [digest for digest, _ in items]
        for digest in gone:
            del bound[digest]
        self._count -= len(gone)
        return len(gone)

    def _shared(self, text: str) -> str:
        if len(self._texts) >= _MAX_TEXTS:
            self._texts.clear()
        return self._texts.setdefault(text, text)


def opaque_id(key: AffinityKey) -> str:
    """What :meth:`Bindings.items` calls the binding of ``key``."""
    return _digest(key).hex()


def _bytes(opaque_id: str) -> bytes:
    try:
        return bytes.fromhex(opaque_id)
    except ValueError:
        return b""


def _digest(key: AffinityKey) -> bytes:
    """Lengths keep ``("ab", "c")`` apart from ``("a", "bc")``."""
    text = f"{len(key.rule)} {len(key.tenant)} {key.rule}{key.tenant}{key.value}"
    return blake2b(text.encode(errors="surrogatepass"), digest_size=_DIGEST_SIZE).digest()
