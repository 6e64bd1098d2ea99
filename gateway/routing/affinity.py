"""Session affinity: what identifies a conversation, and the account it is bound to (design law 8).

Clients choose how many conversations they begin.  When there are too many bindings, the tenant
that has the most loses its least recently used ones, so that none can push out those of another.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from heapq import merge
from itertools import islice, takewhile
from typing import NamedTuple, Protocol

from msgspec import Struct

from gateway.protocol.request import TurnRequest

#: Members that stay the same over a conversation's requests.
_LASTING_MEMBERS = ("model", "instructions", "tools")

_MAX_VALUE = 100

#: With these bytes no two conversations meet, and a digest takes 48 of memory.
_DIGEST_SIZE = 15

#: Digests of keys that were used last; a turn needs its own several times.
_DIGESTS = 256

#: Names and reasons that bindings share.
_MAX_TEXTS = 4096

#: Finding the oldest costs more the more a tenant has: this share of them goes at once.
_EVICTED_SHARE = 128

#: Bindings that :meth:`Bindings.expire` forgets at once.
_EXPIRED_AT_ONCE = 10_000


class AffinityKey(NamedTuple):
    """What identifies a conversation: the rule it comes from, the tenant, and the value."""

    rule: str
    tenant: str
    value: str


def affinity_keys(
    tenant: str,
    headers: Mapping[str, str],
    metadata: Mapping[str, str],
    prompt_cache_key: str | None,
    connection: str | None,
) -> list[AffinityKey]:
    """The key a conversation is bound by: the strongest that the client gives (design law 8).

    Weaker ones are left out, so that sub-agents, which share a session and differ in thread,
    do not pre-empt each other.

    :param headers: of the client's handshake or request, names in lower case.
    :param metadata: the turn's ``client_metadata``.
    :param connection: the connection's own id; None for a request of its own, which may
        then have no key at all (see :func:`http_affinity_keys`).
    """
    thread = metadata.get("thread_id") or headers.get("thread-id")
    if thread:
        return [_key("thread", tenant, thread)]
    session = (
        metadata.get("session_id")
        or headers.get("session-id")
        or headers.get("session_id")
        or headers.get("conversation_id")
    )
    if session:
        return [_key("session", tenant, session)]
    if prompt_cache_key:
        return [_key("prompt_cache_key", tenant, prompt_cache_key)]
    return [_key("connection", tenant, connection)] if connection else []


def http_affinity_keys(
    tenant: str, headers: Mapping[str, str], request: TurnRequest
) -> list[AffinityKey]:
    """As :func:`affinity_keys`, and never empty, even where the client sends none at all."""
    keys = affinity_keys(tenant, headers, request.client_metadata, request.prompt_cache_key, None)
    return keys or [derived_key(tenant, request)]


def derived_key(tenant: str, request: TurnRequest) -> AffinityKey:
    """The key of a client that sends its whole conversation each time, and no name for it.

    It is made of what its requests have in common: the model, the instructions, the tools
    and the first thing the user said, as the client wrote them.
    """
    said = (item.raw for item in request.items if item.role == "user")
    first = next(said, request.items[0].raw if request.items else b"")
    digest = blake2b(digest_size=16)
    for part in (*(request.members.get(name, b"") for name in _LASTING_MEMBERS), first):
        digest.update(b"%d " % len(part))
        digest.update(part)
    return AffinityKey("derived from the request", tenant, digest.hexdigest())


def derived_cache_key(keys: Sequence[AffinityKey]) -> str:
    """A ``prompt_cache_key`` for accounts that want one where the client sends none.

    The same conversation gets the same one at any time and from any gateway, and tenants do
    not share any.  It tells the upstream nothing of the client's ids.

    :param keys: the turn's.
    """
    return _hashed("\0".join(("prompt_cache_key", *keys[-1])))


def connection_key(tenant: str, connection: str) -> AffinityKey:
    """The key of a connection without any better one."""
    return _key("connection", tenant, connection)


def named_keys(tenant: str, value: str) -> list[AffinityKey]:
    """Every key that ``value`` may be of, for a search."""
    rules = ("thread", "session", "prompt_cache_key", "connection")
    return [_key(rule, tenant, value) for rule in rules]


def _key(rule: str, tenant: str, value: str) -> AffinityKey:
    """Clients choose the values: a long one must not cost more memory than another."""
    if len(value) > _MAX_VALUE:
        value = _hashed(value)
    return AffinityKey(rule, tenant, value)


def _hashed(text: str) -> str:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


class Binding(Struct, gc=False):
    """Where a conversation is at home, and why.

    :ivar account: its home.
    :ivar why: how it came there.
    :ivar bound_at: since when it is there, in unix seconds.
    :ivar stand_in: the account that serves it while its home cannot, or None.
    :ivar stand_in_why: why its home cannot, or None.
    :ivar used_at: when it was last used, in unix seconds.
    :ivar rule: what identifies it: a thread, a session, ...
    :ivar tenant: name of the client key.
    :ivar leaves: the account that the operator wants it to leave at its next turn, or None.
    :ivar answered: whether its account ever answered it; until then it is only expected there,
        and is not shown.
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


class Bindings(Protocol):
    """Remembers the account of each conversation, and of its key only a digest.

    :ivar max_bindings: bound on the count, of all tenants together.
    :ivar now: its clock, unix seconds.
    """

    max_bindings: int
    now: Callable[[], float]

    def __len__(self) -> int: ...

    def find(self, key: AffinityKey) -> Binding | None:
        """The binding of ``key``, which a turn uses now, or None."""

    def peek(self, key: AffinityKey) -> Binding | None:
        """The binding of ``key`` without using it, or None."""

    def bind(self, key: AffinityKey, account: str, why: str = "") -> None:
        """Make ``account`` the home of ``key``, and end the time of a stand-in.

        :param why: kept as long as the home is the same.
        """

    def expect(self, key: AffinityKey, account: str, why: str = "") -> None:
        """A turn of ``key`` goes to ``account``, and no account has answered it yet.

        Other turns follow it there; nothing else comes of it until :meth:`settle`.
        """

    def settle(self, key: AffinityKey, account: str, why: str = "") -> None:
        """``account`` answered ``key``: it is its home, unless another answered before."""

    def withdraw(self, key: AffinityKey, account: str) -> None:
        """``account`` did not answer ``key``, and is not expected to any more."""

    def stand_in(self, key: AffinityKey, account: str, why: str = "") -> None:
        """Let ``account`` serve ``key`` until it is bound again; without a home it is the home.

        :param why: why the home cannot serve.
        """

    def release(self, key: AffinityKey) -> None:
        """Forget ``key``; a connection's own key ends with the connection."""

    def items(self, limit: int) -> Iterator[tuple[str, Binding]]:
        """The ``limit`` most recently used, the last one first; each with its opaque id."""

    def with_id(self, opaque_id: str) -> Binding | None:
        """The binding that :meth:`items` gives this id, or None, also when it is no such id."""

    def move(self, opaque_id: str) -> Binding | None:
        """Let the conversation go to another account at its next turn, where there is one.

        :return: its binding, or None when it is gone.
        """

    def forget(self, opaque_id: str) -> bool:
        """Forget the binding that :meth:`items` gave this id; False when it is gone.

        :raises ValueError: when it is no such id.
        """

    def forget_account(self, account: str) -> int:
        """Let no conversation be at home at ``account``, nor served by it for another.

        A conversation that has a stand-in stays there.

        :return: how many conversations lost their home.
        """

    def reconfigure(self, max_bindings: int, ttl_seconds: float) -> None:
        """Take these bounds from now on."""

    def expire(self) -> None:
        """Forget what is too old; to be called now and then."""


class MemoryBindings:
    """Bindings in memory, bounded in count and age.

    :param ttl_seconds: how long an unused binding lasts.
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

    def find(self, key: AffinityKey) -> Binding | None:
        """The binding of ``key``, which a turn uses now, or None."""
        bound = self._bound.get(key.tenant)
        digest = _digest(key)
        binding = None if bound is None else bound.pop(digest, None)
        if bound is None or binding is None:
            return None
        now = self.now()
        if binding.used_at + self._ttl_seconds <= now:
            self._count -= 1
            return None
        binding.used_at = now
        bound[digest] = binding
        return binding

    def peek(self, key: AffinityKey) -> Binding | None:
        """The binding of ``key`` without using it, or None."""
        return self._alive(self._bound.get(key.tenant, {}).get(_digest(key)), self.now())

    def bind(self, key: AffinityKey, account: str, why: str = "") -> None:
        """Make ``account`` the home of ``key``, and end the time of a stand-in."""
        binding = self.find(key)
        if binding is None or binding.account != account:
            binding = self._put(key, account, why)
        binding.stand_in = binding.stand_in_why = binding.leaves = None
        binding.answered = True
        self._shrink()

    def expect(self, key: AffinityKey, account: str, why: str = "") -> None:
        """A turn of ``key`` goes to ``account``, and no account has answered it yet."""
        if self.find(key) is None:
            self._put(key, account, why).answered = False
            self._shrink()

    def settle(self, key: AffinityKey, account: str, why: str = "") -> None:
        """``account`` answered ``key``: it is its home, unless another answered before."""
        binding = self.find(key)
        if binding is None or (not binding.answered and binding.account != account):
            binding = self._put(key, account, why)
        binding.answered = True
        self._shrink()

    def withdraw(self, key: AffinityKey, account: str) -> None:
        """``account`` did not answer ``key``, and is not expected to any more."""
        digest = _digest(key)
        found = self._bound.get(key.tenant, {}).get(digest)
        if found is not None and not found.answered and found.account == account:
            self._pop(key.tenant, digest)

    def stand_in(self, key: AffinityKey, account: str, why: str = "") -> None:
        """Let ``account`` serve ``key`` until it is bound again."""
        binding = self.find(key)
        if binding is None:
            self.bind(key, account, why)
        else:
            binding.stand_in, binding.stand_in_why = self._shared(account), self._shared(why)

    def release(self, key: AffinityKey) -> None:
        """Forget ``key``."""
        self._pop(key.tenant, _digest(key))

    def items(self, limit: int) -> Iterator[tuple[str, Binding]]:
        """The ``limit`` most recently used, the last one first; each with its opaque id."""
        now = self.now()
        by_tenant = [reversed(bound.items()) for bound in self._bound.values()]
        latest = merge(*by_tenant, key=lambda item: -item[1].used_at)
        alive = takewhile(lambda item: self._alive(item[1], now), latest)
        at_home = (item for item in alive if item[1].answered)
        return ((digest.hex(), binding) for digest, binding in islice(at_home, limit))

    def with_id(self, opaque_id: str) -> Binding | None:
        """The binding of this id, or None."""
        try:
            digest = bytes.fromhex(opaque_id)
        except ValueError:
            return None
        found = (bound[digest] for bound in self._bound.values() if digest in bound)
        binding = self._alive(next(found, None), self.now())
        return binding if binding is not None and binding.answered else None

    def move(self, opaque_id: str) -> Binding | None:
        """Let the conversation go to another account at its next turn."""
        binding = self.with_id(opaque_id)
        if binding is not None:
            binding.leaves = binding.stand_in or binding.account
        return binding

    def forget(self, opaque_id: str) -> bool:
        """Forget the binding of this id; False when it is gone."""
        digest = bytes.fromhex(opaque_id)
        return any(self._pop(tenant, digest) is not None for tenant in self._bound)

    def forget_account(self, account: str) -> int:
        """Let no conversation be at home at ``account``, nor served by it for another."""
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
        """Forget what is too old."""
        now, left = self.now(), _EXPIRED_AT_ONCE
        for tenant, bound in list(self._bound.items()):
            old = takewhile(lambda item: not self._alive(item[1], now), bound.items())
            left -= self._drop(tenant, islice(old, left))
            if not bound:
                del self._bound[tenant]

    def _put(self, key: AffinityKey, account: str, why: str) -> Binding:
        """Make a new binding, instead of one that there may be."""
        digest, now = _digest(key), self.now()
        self._pop(key.tenant, digest)
        account, why = self._shared(account), self._shared(why)
        rule, tenant = self._shared(key.rule), self._shared(key.tenant)
        binding = Binding(account, why, now, None, None, now, rule, tenant)
        self._bound.setdefault(tenant, {})[digest] = binding
        self._count += 1
        return binding

    def _alive(self, binding: Binding | None, now: float) -> Binding | None:
        if binding is None or binding.used_at + self._ttl_seconds <= now:
            return None
        return binding

    def _pop(self, tenant: str, digest: bytes) -> Binding | None:
        binding = self._bound.get(tenant, {}).pop(digest, None)
        self._count -= binding is not None
        return binding

    def _shrink(self) -> None:
        """Tenants are few: the one that has the most is found by a look at each."""
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


class BindingEffect(enum.Enum):
    """What a choice makes of the conversation's binding."""

    NONE = "nothing"
    BEGIN = "the account is its home, if it is the first that answers"
    BIND = "the account is its home, and no stand-in serves it any longer"
    STAND_IN = "the account stands in for its home"


class BindingUpdate:
    """What one attempt makes of its conversation's binding.

    Turns of a new conversation that run side by side go to one account: it is expected there
    from its first choice on.  Its home is the account that answers it.

    :param why: the rule that named the account; for a stand-in, why the home cannot serve.
    """

    __slots__ = ("_account", "_bindings", "_effect", "_key", "_why")

    def __init__(
        self, bindings: Bindings, key: AffinityKey, account: str, effect: BindingEffect, why: str
    ) -> None:
        self._bindings = bindings
        self._key = key
        self._account = account
        self._effect = effect
        self._why = why
        if effect is BindingEffect.BEGIN:
            bindings.expect(key, account, why)
        elif effect is BindingEffect.STAND_IN:
            bindings.stand_in(key, account, why)

    def answered(self) -> None:
        """The account took the turn up."""
        if self._effect is BindingEffect.BEGIN:
            self._bindings.settle(self._key, self._account, self._why)
        elif self._effect is BindingEffect.BIND:
            self._bindings.bind(self._key, self._account, self._why)

    def unanswered(self) -> None:
        """It did not, and the attempt is over."""
        if self._effect is BindingEffect.BEGIN:
            self._bindings.withdraw(self._key, self._account)


def opaque_id(key: AffinityKey) -> str:
    """The id that :meth:`Bindings.items` gives the binding of ``key``."""
    return _digest(key).hex()


@lru_cache(_DIGESTS)
def _digest(key: AffinityKey) -> bytes:
    """Lengths keep ``("ab", "c")`` apart from ``("a", "bc")``."""
    text = f"{len(key.rule)} {len(key.tenant)} {key.rule}{key.tenant}{key.value}"
    return blake2b(text.encode(errors="surrogatepass"), digest_size=_DIGEST_SIZE).digest()
