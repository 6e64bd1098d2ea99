"""Session affinity: what identifies a conversation, and the account it is bound to (design law 8).

Clients choose how many conversations they begin.  When there are too many bindings, the tenant
with the most loses its least recently used ones, so that no tenant can evict those of another.
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

#: Bytes of a digest.  Collisions are practically impossible, and it takes 48 bytes of memory.
_DIGEST_SIZE = 15

#: Digests that are cached; a turn needs that of its key several times.
_DIGESTS = 256

#: Texts (names and reasons) that bindings share in memory.
_MAX_TEXTS = 4096

#: One in so many bindings of a tenant is evicted at once, because finding the oldest is costly.
_EVICTED_SHARE = 128

#: The first use in each such share of the lifetime is reported.
_REPORTED_SHARE = 0.1

#: Bindings that :meth:`Bindings.expire` forgets at once.
_EXPIRED_AT_ONCE = 10_000


class AffinityKey(NamedTuple):
    """The identity of a conversation: the rule, the tenant, and the value."""

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
    """As :func:`affinity_keys`, but never empty: without a key from the client one is derived."""
    keys = affinity_keys(tenant, headers, request.client_metadata, request.prompt_cache_key, None)
    return keys or [derived_key(tenant, request)]


def derived_key(tenant: str, request: TurnRequest) -> AffinityKey:
    """A key for clients that send the whole conversation each time, without an id for it.

    It is derived from the parts that all requests of a conversation share: the model, the
    instructions, the tools and the first user message, as the client wrote them.
    """
    said = (item.raw for item in request.items if item.role == "user")
    first = next(said, request.items[0].raw if request.items else b"")
    digest = blake2b(digest_size=16)
    for part in (*(request.members.get(name, b"") for name in _LASTING_MEMBERS), first):
        digest.update(b"%d " % len(part))
        digest.update(part)
    return AffinityKey("derived from the request", tenant, digest.hexdigest())


def derived_cache_key(keys: Sequence[AffinityKey]) -> str:
    """A ``prompt_cache_key`` for accounts that need one, if the client sends none.

    It is the same for a conversation at any time and from any gateway, and differs between
    tenants.  It reveals nothing of the client's ids.

    :param keys: the turn's.
    """
    return _hashed("\0".join(("prompt_cache_key", *keys[-1])))


def connection_key(tenant: str, connection: str) -> AffinityKey:
    """The key of a connection, the weakest one."""
    return _key("connection", tenant, connection)


def named_keys(tenant: str, value: str) -> list[AffinityKey]:
    """The keys of all rules with ``value``, for a search."""
    rules = ("thread", "session", "prompt_cache_key", "connection")
    return [_key(rule, tenant, value) for rule in rules]


def _key(rule: str, tenant: str, value: str) -> AffinityKey:
    """A key; a long value is hashed, so that clients cannot use up memory."""
    if len(value) > _MAX_VALUE:
        value = _hashed(value)
    return AffinityKey(rule, tenant, value)


def _hashed(text: str) -> str:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


class Binding(Struct, gc=False):
    """The account that a conversation is bound to, and why.

    :ivar account: its own account.
    :ivar why: the rule that chose it.
    :ivar bound_at: when it was bound, in unix seconds.
    :ivar stand_in: the account that serves it while its own account cannot, or None.
    :ivar stand_in_why: why its own account cannot, or None.
    :ivar used_at: when it was last used, in unix seconds.
    :ivar rule: the rule of its affinity key: thread, session, ...
    :ivar tenant: name of the client key.
    :ivar leaves: the account that it should leave at its next turn (operator action), or None.
    :ivar answered: whether the account has answered it; until then the binding is tentative and
        is not shown.
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
    """Remembers the account of each conversation; keys are stored as digests.

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
        """Bind ``key`` to ``account``, and end the use of a stand-in.

        :param why: kept as long as the account is the same.
        """

    def expect(self, key: AffinityKey, account: str, why: str = "") -> None:
        """Bind ``key`` to ``account`` tentatively, until an account has answered.

        Parallel turns follow it there; :meth:`settle` makes the binding final.
        """

    def settle(self, key: AffinityKey, account: str, why: str = "") -> None:
        """``account`` answered ``key``: bind it there, unless another account answered before."""

    def withdraw(self, key: AffinityKey, account: str) -> None:
        """Remove a tentative binding of ``key`` to ``account``, which did not answer."""

    def stand_in(self, key: AffinityKey, account: str, why: str = "") -> None:
        """Let ``account`` serve ``key`` until it is bound again; bind it there if it is unbound.

        :param why: why its own account cannot serve.
        """

    def release(self, key: AffinityKey) -> None:
        """Forget ``key``, for example when its connection ends."""

    def items(self, limit: int) -> Iterator[tuple[str, Binding]]:
        """The ``limit`` most recently used bindings, the latest first, each with its opaque id."""

    def with_id(self, opaque_id: str) -> Binding | None:
        """The binding with this opaque id, or None."""

    def move(self, opaque_id: str) -> Binding | None:
        """Let the conversation move to another account at its next turn, if one is available.

        :return: its binding, or None when there is none.
        """

    def forget(self, opaque_id: str) -> bool:
        """Forget the binding with this opaque id; False when there is none.

        :raises ValueError: when the id is malformed.
        """

    def forget_account(self, account: str) -> int:
        """Remove ``account`` from all bindings, as account and as stand-in.

        A conversation with a stand-in is bound to that.

        :return: how many conversations were bound to ``account``.
        """

    def reconfigure(self, max_bindings: int, ttl_seconds: float) -> None:
        """Take these bounds from now on."""

    def expire(self) -> None:
        """Forget what is too old; to be called now and then."""


class MemoryBindings:
    """Bindings in memory, bounded in count and age.

    :ivar ttl_seconds: how long an unused binding lasts.
    :ivar changed: called with the digest, the tenant and the binding after a change; with None
        when it was forgotten before its time.  Of its uses only some are reported.
    """

    def __init__(self, max_bindings: int, ttl_seconds: float, now: Callable[[], float]) -> None:
        self.max_bindings = max_bindings
        self.ttl_seconds = ttl_seconds
        self.now = now
        self.changed: Callable[[bytes, str, Binding | None], None] = lambda *change: None
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
        if binding.used_at + self.ttl_seconds <= now:
            self._count -= 1
            return None
        share = self.ttl_seconds * _REPORTED_SHARE
        if now // share != binding.used_at // share:
            self.changed(digest, key.tenant, binding)
        binding.used_at = now
        bound[digest] = binding
        return binding

    def peek(self, key: AffinityKey) -> Binding | None:
        """The binding of ``key`` without using it, or None."""
        return self._alive(self._bound.get(key.tenant, {}).get(_digest(key)), self.now())

    def bind(self, key: AffinityKey, account: str, why: str = "") -> None:
        """Bind ``key`` to ``account``, and end the use of a stand-in."""
        binding = self.find(key)
        if binding is None or binding.account != account:
            binding = self._put(key, account, why)
            binding.answered = False
        if not binding.answered or binding.stand_in or binding.leaves:
            binding.stand_in = binding.stand_in_why = binding.leaves = None
            binding.answered = True
            self.changed(_digest(key), key.tenant, binding)
        self._shrink()

    def expect(self, key: AffinityKey, account: str, why: str = "") -> None:
        """Bind ``key`` to ``account`` tentatively, until an account has answered."""
        if self.find(key) is None:
            self._put(key, account, why).answered = False
            self._shrink()

    def settle(self, key: AffinityKey, account: str, why: str = "") -> None:
        """``account`` answered ``key``: bind it there, unless another account answered before."""
        binding = self.find(key)
        if binding is None or (not binding.answered and binding.account != account):
            binding = self._put(key, account, why)
            binding.answered = False
        if not binding.answered:
            binding.answered = True
            self.changed(_digest(key), key.tenant, binding)
        self._shrink()

    def withdraw(self, key: AffinityKey, account: str) -> None:
        """Remove a tentative binding of ``key`` to ``account``, which did not answer."""
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
            self.changed(_digest(key), key.tenant, binding)

    def release(self, key: AffinityKey) -> None:
        """Forget ``key``."""
        digest = _digest(key)
        if self._pop(key.tenant, digest) is not None and key.rule != "connection":
            self.changed(digest, key.tenant, None)

    def items(self, limit: int) -> Iterator[tuple[str, Binding]]:
        """The ``limit`` most recently used bindings, the latest first, each with its opaque id."""
        now = self.now()
        by_tenant = [reversed(bound.items()) for bound in self._bound.values()]
        latest = merge(*by_tenant, key=lambda item: -item[1].used_at)
        alive = takewhile(lambda item: self._alive(item[1], now), latest)
        final = (item for item in alive if item[1].answered)
        return ((digest.hex(), binding) for digest, binding in islice(final, limit))

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
            self.changed(bytes.fromhex(opaque_id), binding.tenant, binding)
        return binding

    def forget(self, opaque_id: str) -> bool:
        """Forget the binding of this id; False when it is gone."""
        digest = bytes.fromhex(opaque_id)
        for tenant in self._bound:
            if self._pop(tenant, digest) is not None:
                self.changed(digest, tenant, None)
                return True
        return False

    def forget_account(self, account: str) -> int:
        """Remove ``account`` from all bindings, as account and as stand-in."""
        moved = 0
        for tenant, bound in self._bound.items():
            for digest, binding in list(bound.items()):
                stand_in = binding.stand_in
                if binding.account == account:
                    moved += 1
                    if stand_in is None or stand_in == account:
                        self._pop(tenant, digest)
                        self.changed(digest, tenant, None)
                        continue
                    binding.account, binding.why = stand_in, binding.stand_in_why or ""
                elif stand_in != account:
                    continue
                binding.stand_in = binding.stand_in_why = None
                self.changed(digest, tenant, binding)
        return moved

    def all(self) -> Iterator[tuple[bytes, Binding]]:
        """All bindings with their digests."""
        for bound in self._bound.values():
            yield from bound.items()

    def restore(self, digest: bytes, tenant: str, binding: Binding | None) -> None:
        """Take a binding from before a restart, or from another process; None forgets it.

        A binding that was used later here stays.
        """
        here = self._bound.get(tenant, {}).get(digest)
        if binding is None:
            self._pop(tenant, digest)
        elif here is None or here.used_at <= binding.used_at:
            self._pop(tenant, digest)
            binding.account, binding.why = self._shared(binding.account), self._shared(binding.why)
            binding.rule, binding.tenant = self._shared(binding.rule), self._shared(tenant)
            self._bound.setdefault(binding.tenant, {})[digest] = binding
            self._count += 1
            self._shrink()

    def reconfigure(self, max_bindings: int, ttl_seconds: float) -> None:
        """Take these bounds from now on."""
        self.max_bindings = max_bindings
        self.ttl_seconds = ttl_seconds
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
        """Add a binding, replacing an existing one."""
        digest, now = _digest(key), self.now()
        self._pop(key.tenant, digest)
        account, why = self._shared(account), self._shared(why)
        rule, tenant = self._shared(key.rule), self._shared(key.tenant)
        binding = Binding(account, why, now, None, None, now, rule, tenant)
        self._bound.setdefault(tenant, {})[digest] = binding
        self._count += 1
        return binding

    def _alive(self, binding: Binding | None, now: float) -> Binding | None:
        if binding is None or binding.used_at + self.ttl_seconds <= now:
            return None
        return binding

    def _pop(self, tenant: str, digest: bytes) -> Binding | None:
        binding = self._bound.get(tenant, {}).pop(digest, None)
        self._count -= binding is not None
        return binding

    def _shrink(self) -> None:
        """Evict until the bound holds; tenants are few, so each is checked."""
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
    """The effect of a choice on the conversation's binding."""

    NONE = "nothing"
    BEGIN = "bind it to the account, if that is the first to answer"
    BIND = "bind it to the account, without a stand-in"
    STAND_IN = "the account stands in for its own account"


class BindingUpdate:
    """The update of a conversation's binding by one attempt.

    Parallel turns of a new conversation go to one account, because it is bound there tentatively
    from the first choice on.  The account that answers makes the binding final.

    :param why: the rule that chose the account; for a stand-in, why the own account cannot serve.
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
        """The account answered the attempt."""
        if self._effect is BindingEffect.BEGIN:
            self._bindings.settle(self._key, self._account, self._why)
        elif self._effect is BindingEffect.BIND:
            self._bindings.bind(self._key, self._account, self._why)

    def unanswered(self) -> None:
        """The attempt is over without an answer."""
        if self._effect is BindingEffect.BEGIN:
            self._bindings.withdraw(self._key, self._account)


def opaque_id(key: AffinityKey) -> str:
    """The opaque id of the binding of ``key``."""
    return _digest(key).hex()


@lru_cache(_DIGESTS)
def _digest(key: AffinityKey) -> bytes:
    """Lengths are included so that ``("ab", "c")`` differs from ``("a", "bc")``."""
    text = f"{len(key.rule)} {len(key.tenant)} {key.rule}{key.tenant}{key.value}"
    return blake2b(text.encode(errors="surrogatepass"), digest_size=_DIGEST_SIZE).digest()
