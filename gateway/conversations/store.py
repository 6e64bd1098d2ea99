"""The conversation store: records of responses, the interface, and the store in memory.

Responses form a forest: each names the one that it continued.  Clients fork, go back, start
anew and compact on one connection, so a list per connection would be wrong (design law 2).

The store in memory is bounded in bytes and age.  It evicts whole conversations (trees), because an
incomplete transcript cannot be replayed.  At the bound, the tenant that uses the most memory loses
its least recently used conversation, so that no tenant can evict those of tenants with less.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from os import urandom
from typing import NamedTuple, Protocol
from weakref import WeakSet

import msgspec

from gateway.protocol.items import Item

#: What Python needs for a record and for an item beside their bytes (measured, rounded up).
_RECORD_OVERHEAD = 700
_ITEM_OVERHEAD = 360


def _new_key() -> str:
    return urandom(12).hex()


class ResponseRecord(msgspec.Struct, frozen=True):
    """One response, as a value that a store can serialize.

    :ivar tenant: the client key that may continue it (design law 14).
    :ivar id: the response id; an upstream may give the same one twice.
    :ivar parent: the ``key`` of the record that it continued, or None for a root.
    :ivar input: the items that the client sent, without repeated history.
    :ivar output: the finished items the client saw, in ``output_index`` order.
    :ivar account: the account that made it; None for one the gateway made.
    :ivar holder: the token of the connection, if responses live on one (``Upstream.holds``); None
        if the account knows them on any.
    :ivar store: whether the upstream was allowed to keep it.
    :ivar held_upstream: whether its account can know it under this id; false for prewarms
        and interrupted responses.
    :ivar created_at: unix seconds.
    :ivar pinned_to: the one account that can read the transcript up to here, when encrypted
        content binds it (protocol.md §8.3.9).
    :ivar foreign: whether the gateway does not have it, and only an upstream may.
    :ivar upstream_id: its id at its account, where clients got another one because the account
        uses one id for several responses.
    :ivar instructions: a digest of the instructions it was made with, where the account keeps those
        for the turns that continue it.
    :ivar key: the record's own opaque id.
    """

    tenant: str
    id: str
    parent: str | None = None
    input: tuple[Item, ...] = ()
    output: tuple[Item, ...] = ()
    account: str | None = None
    store: bool = True
    held_upstream: bool = True
    model: str | None = None
    created_at: float = 0.0
    pinned_to: str | None = None
    foreign: bool = False
    holder: str | None = None
    upstream_id: str | None = None
    instructions: bytes | None = None
    key: str = msgspec.field(default_factory=_new_key)

    def items(self) -> tuple[Item, ...]:
        """What it adds to a transcript: its input, then its output."""
        return self.input + self.output


class Transcript:
    """A response together with everything that it continued.

    Forks share their common part.  A turn that has a transcript can replay it even if the store
    forgets the conversation meanwhile.

    :ivar record: the response.
    :ivar parent: the transcript that it continued, or None for a root.
    :ivar root: the key of the first response, which names the conversation.
    :ivar written: for a store that is written behind: after how many losses it was written last;
        None if it was not; negative if it was, and must be written again.
    """

    __slots__ = ("__weakref__", "parent", "record", "root", "written")

    def __init__(self, record: ResponseRecord, parent: Transcript | None = None) -> None:
        self.record = record
        self.parent = parent
        self.root: str = record.key if parent is None else parent.root
        self.written: int | None = None

    @property
    def account(self) -> str | None:
        """The account that made the latest of its responses; None if the gateway made all."""
        return next((each.account for each in self.ancestry() if each.account is not None), None)

    def path(self) -> Iterator[Transcript]:
        """This transcript, its parent, and so on to the root."""
        transcript: Transcript | None = self
        while transcript is not None:
            yield transcript
            transcript = transcript.parent

    def ancestry(self) -> Iterator[ResponseRecord]:
        """The record, the one that it continued, and so on to the root."""
        return (transcript.record for transcript in self.path())


class FoundItem(NamedTuple):
    """A remembered item, and the response that it belongs to.

    :ivar is_output: whether it is an output item of the response; else the client sent it.
    """

    item: Item
    record: ResponseRecord
    is_output: bool

    def is_kept_by(self, account: str) -> bool:
        """Whether ``account`` made it and was asked to keep it."""
        record = self.record
        return (
            self.is_output and record.account == account and record.store and record.held_upstream
        )

    def is_known_to(self, account: str) -> bool:
        """Whether ``account`` may know it by its id: it keeps it, or accepted that id before."""
        if self.is_output or not self.item.is_reference:
            return self.is_kept_by(account)
        return self.record.store and self.record.account in (None, account)


def foreign_response(tenant: str, response_id: str, owner: str | None) -> Transcript:
    """A transcript for a response that an upstream may have and the gateway does not.

    :param owner: the account that keeps it; None if any account may.
    """
    return Transcript(
        ResponseRecord(tenant, response_id, account=owner, pinned_to=owner, foreign=True)
    )


class StoreFigures(msgspec.Struct, frozen=True):
    """The size of a store against its bound, for the admin side.

    :ivar longest_unused: seconds since the last use of the conversation that is evicted next.
    """

    responses: int
    conversations: int
    bytes: int
    max_bytes: int
    evicted_conversations: int
    longest_unused: float | None = None


class ConversationStore(Protocol):
    """Remembers responses per tenant."""

    def get(self, tenant: str, response_id: str) -> Transcript | None:
        """The response, or None when this tenant has none of that id that can be continued.

        Reading it keeps its conversation alive.
        """

    def find_item(self, tenant: str, item_id: str) -> FoundItem | None:
        """The newest item of this id in any conversation of the tenant, or None.

        Finding one keeps its conversation alive.
        """

    def add(self, transcript: Transcript) -> None:
        """Remember a response in the conversation of its parent, or in a new one.

        A parent that was forgotten meanwhile is added again, with all that it continued.
        """

    def evict(self, transcript: Transcript) -> None:
        """Let a response no longer be continued by its id; its descendants stay whole.

        A conversation of which nothing can be continued any more is forgotten.
        """

    def is_evicted(self, transcript: Transcript) -> bool:
        """Whether the response can no longer be continued by its id."""

    def expire(self) -> None:
        """Forget conversations that were not used for too long; to be called now and then."""

    def conversation(self, tenant: str, response_id: str) -> list[Transcript]:
        """All responses of the conversation that holds this one, the earliest first.

        For the admin side: nothing is kept alive by it.
        """

    def forget(self, tenant: str, response_id: str) -> int:
        """Forget the whole conversation that holds this response.

        :return: how many responses are forgotten.
        """

    def figures(self) -> StoreFigures:
        """How much is remembered."""


class _Tree:
    """One conversation: the responses that share a root."""

    __slots__ = ("bytes", "continuable", "keys", "share", "used_at")

    def __init__(self, share: _Share, used_at: float) -> None:
        self.bytes = 0
        self.continuable = 0
        self.share = share
        self.used_at = used_at
        self.keys: list[tuple[str, str]] = []


class _Share:
    """The conversations of one tenant, the least recently used first.

    :ivar outputs: output items by id; of each id the newest.
    :ivar inputs: input items by id, likewise; one may be a shorter copy of an output item.  Of
        an item that is only an id the oldest: its account was the first to know it.
    """

    __slots__ = ("bytes", "inputs", "outputs", "tenant", "trees")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.bytes = 0
        self.trees: OrderedDict[_Tree, None] = OrderedDict()
        self.outputs: dict[str, FoundItem] = {}
        self.inputs: dict[str, FoundItem] = {}

    def index(self, record: ResponseRecord) -> None:
        """Let the items of ``record`` be found."""
        for item in record.output:
            if item.id is not None:
                self.outputs[item.id] = FoundItem(item, record, True)
        for item in record.input:
            if item.id is not None and not (item.is_reference and item.id in self.inputs):
                self.inputs[item.id] = FoundItem(item, record, False)

    def unindex(self, record: ResponseRecord) -> None:
        """Forget the items of ``record``, but not newer ones with the same ids."""
        for items, found in ((record.output, self.outputs), (record.input, self.inputs)):
            for item in items:
                if item.id in found and found[item.id].record.key == record.key:
                    del found[item.id]


class MemoryStore:
    """The store in memory.

    :param max_bytes: bound on everything remembered, of all tenants together.
    :param ttl_seconds: how long a conversation is kept after its last use.
    :param now: the clock, in seconds.
    """

    def __init__(self, max_bytes: int, ttl_seconds: float, now: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._ttl_seconds = ttl_seconds
        self._now = now
        self._entries: dict[tuple[str, str], tuple[Transcript, _Tree]] = {}
        #: Includes transcripts of forgotten conversations that turns still have.
        self._evicted: WeakSet[Transcript] = WeakSet()
        self._shares: dict[str, _Share] = {}
        self._bytes = 0
        self._evicted_conversations = 0

    def get(self, tenant: str, response_id: str) -> Transcript | None:
        """The response, or None."""
        found = self._entries.get((tenant, response_id))
        if found is None:
            return None
        transcript, tree = found
        if tree.used_at + self._ttl_seconds <= self._now():
            self._drop(tree)
            return None
        self._touch(tree)
        return None if transcript.record.foreign or transcript in self._evicted else transcript

    def find_item(self, tenant: str, item_id: str) -> FoundItem | None:
        """The newest item of this id, or None; output items are preferred to copies of them."""
        share = self._shares.get(tenant)
        found = None if share is None else share.outputs.get(item_id) or share.inputs.get(item_id)
        transcript = None if found is None else self.get(tenant, found.record.id)
        if found is None or transcript is None or transcript.record.key != found.record.key:
            return None
        return found

    def add(self, transcript: Transcript) -> None:
        """Remember a response."""
        tree: _Tree | None = None
        fresh = [transcript]
        for each in islice(transcript.path(), 1, None):
            found = self._entries.get((each.record.tenant, each.record.id))
            if found is None:
                fresh.append(each)
            elif found[0].record.key == each.record.key:
                tree = found[1]
                break
        if tree is None:
            tenant = transcript.record.tenant
            tree = _Tree(self._shares.setdefault(tenant, _Share(tenant)), self._now())
        for each in reversed(fresh):
            self._put(each, tree)
        self._touch(tree)
        self._shrink()

    def evict(self, transcript: Transcript) -> None:
        """Let a response no longer be continued by its id."""
        if transcript in self._evicted:
            return
        self._evicted.add(transcript)  # also when it is forgotten: it may be added again
        found = self._entries.get((transcript.record.tenant, transcript.record.id))
        if found is None or found[0] is not transcript:
            return
        tree = found[1]
        tree.continuable -= 1
        if tree.continuable == 0:
            self._drop(tree)

    def is_evicted(self, transcript: Transcript) -> bool:
        """Whether the response can no longer be continued by its id."""
        return transcript in self._evicted

    def expire(self) -> None:
        """Forget conversations that were not used for the store's lifetime."""
        too_old = self._now() - self._ttl_seconds
        for share in list(self._shares.values()):
            while share.trees and (tree := next(iter(share.trees))).used_at <= too_old:
                self._drop(tree)

    def conversation(self, tenant: str, response_id: str) -> list[Transcript]:
        """All responses of the conversation that holds this one, the earliest first."""
        found = self._entries.get((tenant, response_id))
        return [] if found is None else [self._entries[key][0] for key in found[1].keys]

    def forget(self, tenant: str, response_id: str) -> int:
        """Forget the whole conversation that holds this response."""
        found = self._entries.get((tenant, response_id))
        if found is None:
            return 0
        self._drop(found[1])
        return len(found[1].keys)

    def figures(self) -> StoreFigures:
        """How much is remembered."""
        next_to_go = self._next_to_go()
        return StoreFigures(
            responses=len(self._entries),
            conversations=sum(len(share.trees) for share in self._shares.values()),
            bytes=self._bytes,
            max_bytes=self._max_bytes,
            evicted_conversations=self._evicted_conversations,
            longest_unused=None if next_to_go is None else self._now() - next_to_go.used_at,
        )

    def _put(self, transcript: Transcript, tree: _Tree) -> None:
        record = transcript.record
        key = (record.tenant, record.id)
        if key in self._entries:
            self._replace(key)
        self._entries[key] = (transcript, tree)
        tree.keys.append(key)
        tree.continuable += transcript not in self._evicted
        self._grow(tree, _size_of(record))
        tree.share.index(record)

    def _replace(self, key: tuple[str, str]) -> None:
        """Remove a response whose id an upstream has used again: the newer one counts."""
        transcript, tree = self._entries.pop(key)
        tree.keys.remove(key)
        tree.continuable -= transcript not in self._evicted
        self._grow(tree, -_size_of(transcript.record))
        tree.share.unindex(transcript.record)
        if not tree.keys:
            tree.share.trees.pop(tree, None)  # the share stays: the newer response is added to it

    def _grow(self, tree: _Tree, size: int) -> None:
        tree.bytes += size
        tree.share.bytes += size
        self._bytes += size

    def _touch(self, tree: _Tree) -> None:
        tree.used_at = self._now()
        tree.share.trees[tree] = None
        tree.share.trees.move_to_end(tree)

    def _shrink(self) -> None:
        """Evict old conversations until the bound holds, if need be also the newest one."""
        while self._bytes > self._max_bytes and (tree := self._next_to_go()) is not None:
            self._drop(tree)
            self._evicted_conversations += 1

    def _next_to_go(self) -> _Tree | None:
        """The oldest conversation of the tenant with the most bytes; tenants are few."""
        if not self._shares:
            return None
        largest = max(self._shares.values(), key=lambda share: (share.bytes, share.tenant))
        return next(iter(largest.trees), None)

    def _drop(self, tree: _Tree) -> None:
        share = tree.share
        del share.trees[tree]
        share.bytes -= tree.bytes
        if not share.trees:
            del self._shares[share.tenant]
        self._bytes -= tree.bytes
        for key in tree.keys:
            share.unindex(self._entries.pop(key)[0].record)


def _size_of(record: ResponseRecord) -> int:
    items = record.input + record.output
    return _RECORD_OVERHEAD + sum(len(item.raw) + _ITEM_OVERHEAD for item in items)
