"""The ledger in memory, bounded in bytes and age.

What is forgotten is always a whole conversation (a tree): half a transcript would be worse
than none.  When memory runs out, the tenant that holds the most gives up its least recently
used one, so that no tenant can push out what those with less hold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from gateway.conversations.records import FoundItem, ResponseRecord, StoreFigures

#: What Python needs for a record and for an item beside their bytes (measured, rounded up).
_RECORD_OVERHEAD = 700
_ITEM_OVERHEAD = 360


class _Tree:
    """One conversation: the records that share a root."""

    __slots__ = ("bytes", "continuable", "keys", "share", "used_at")

    def __init__(self, share: _Share, used_at: float) -> None:
        self.bytes = 0
        self.continuable = 0
        self.share = share
        self.used_at = used_at
        self.keys: list[tuple[str, str]] = []


class _Share:
    """What one tenant holds: its conversations, the least recently used first.

    :ivar made: what models made, by id: of each id the newest.
    :ivar sent: what clients sent under an id, likewise; it may be a copy with less in it.  Of
        what stands by its id alone the oldest: its account was the first to know it.
    """

    __slots__ = ("bytes", "made", "sent", "tenant", "trees")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.bytes = 0
        self.trees: OrderedDict[_Tree, None] = OrderedDict()
        self.made: dict[str, FoundItem] = {}
        self.sent: dict[str, FoundItem] = {}

    def find(self, item_id: str) -> FoundItem | None:
        """The newest item of this id."""
        return self.made.get(item_id) or self.sent.get(item_id)

    def take_in(self, record: ResponseRecord) -> None:
        """The items of ``record`` can be found from now on."""
        for item in record.output:
            if item.id is not None:
                self.made[item.id] = FoundItem(item, record, True)
        for item in record.input:
            if item.id is not None and not (item.by_id and item.id in self.sent):
                self.sent[item.id] = FoundItem(item, record, False)

    def let_go(self, record: ResponseRecord) -> None:
        """The items of ``record`` are forgotten, but not newer ones of their ids."""
        for items, found in ((record.output, self.made), (record.input, self.sent)):
            for item in items:
                if item.id in found and found[item.id].record is record:
                    del found[item.id]


class MemoryStore:
    """See :class:`~gateway.conversations.records.ConversationStore`.

    :param max_bytes: bound on everything remembered, of all tenants together.
    :param ttl_seconds: how long a conversation is kept after its last use.
    :param now: the clock, in seconds.
    """

    def __init__(self, max_bytes: int, ttl_seconds: float, now: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._ttl_seconds = ttl_seconds
        self._now = now
        self._records: dict[tuple[str, str], tuple[ResponseRecord, _Tree]] = {}
        self._shares: dict[str, _Share] = {}
        self._bytes = 0
        self._evicted_conversations = 0

    def get(self, tenant: str, response_id: str) -> ResponseRecord | None:
        """The record; reading it keeps its conversation alive."""
        found = self._records.get((tenant, response_id))
        if found is None:
            return None
        record, tree = found
        if tree.used_at + self._ttl_seconds <= self._now():
            self._drop(tree)
            return None
        self._touch(tree)
        return None if record.evicted or record.foreign else record

    def find_item(self, tenant: str, item_id: str) -> FoundItem | None:
        """See :meth:`Ledger.find_item`; finding one keeps its conversation alive."""
        share = self._shares.get(tenant)
        found = None if share is None else share.find(item_id)
        alive = found is not None and self.get(tenant, found.record.id) is found.record
        return found if alive else None

    def add(self, record: ResponseRecord) -> None:
        """Remember a response in its parent's conversation, or in a new one.

        A parent that was forgotten meanwhile is still whole behind the pointer: the
        conversation is taken in anew from here on.
        """
        tree: _Tree | None = None
        fresh = [record]
        for each in islice(record.ancestry(), 1, None):
            found = self._records.get((each.tenant, each.id))
            if found is None:
                fresh.append(each)
            elif found[0] is each:
                tree = found[1]
                break
        if tree is None:
            share = self._shares.setdefault(record.tenant, _Share(record.tenant))
            tree = _Tree(share, self._now())
        for each in reversed(fresh):
            self._take_in(each, tree)
        self._touch(tree)
        self._shrink()

    def evict(self, record: ResponseRecord) -> None:
        """Let ``record`` no longer be continued; what continued it already stays whole.

        A conversation of which nothing can be continued any more is forgotten.
        """
        if record.evicted:
            return
        record.evicted = True  # also when it is forgotten: it may be taken in anew
        found = self._records.get((record.tenant, record.id))
        if found is None or found[0] is not record:
            return
        tree = found[1]
        tree.continuable -= 1
        if tree.continuable == 0:
            self._drop(tree)

    def expire(self) -> None:
        """Forget conversations that were not used for the ledger's lifetime."""
        too_old = self._now() - self._ttl_seconds
        for share in list(self._shares.values()):
            while share.trees and (tree := next(iter(share.trees))).used_at <= too_old:
                self._drop(tree)

    def conversation(self, tenant: str, response_id: str) -> list[ResponseRecord]:
        """See :meth:`Ledger.conversation`."""
        found = self._records.get((tenant, response_id))
        return [] if found is None else [self._records[key][0] for key in found[1].keys]

    def forget(self, tenant: str, response_id: str) -> int:
        """See :meth:`Ledger.forget`."""
        found = self._records.get((tenant, response_id))
        if found is None:
            return 0
        self._drop(found[1])
        return len(found[1].keys)

    def figures(self) -> StoreFigures:
        """How much is remembered."""
        next_to_go = self._next_to_go()
        return StoreFigures(
            responses=len(self._records),
            conversations=sum(len(share.trees) for share in self._shares.values()),
            bytes=self._bytes,
            max_bytes=self._max_bytes,
            evicted_conversations=self._evicted_conversations,
            longest_unused=None if next_to_go is None else self._now() - next_to_go.used_at,
        )

    def _take_in(self, record: ResponseRecord, tree: _Tree) -> None:
        key = (record.tenant, record.id)
        known = self._records.get(key)
        if known is not None:
            self._forget_one(key, *known)
        size = _size_of(record)
        self._records[key] = (record, tree)
        tree.keys.append(key)
        tree.bytes += size
        tree.continuable += not record.evicted
        tree.share.bytes += size
        self._bytes += size
        tree.share.take_in(record)

    def _forget_one(self, key: tuple[str, str], record: ResponseRecord, tree: _Tree) -> None:
        """An upstream gave the same id twice: the newer response counts."""
        del self._records[key]
        tree.keys.remove(key)
        size = _size_of(record)
        tree.bytes -= size
        tree.continuable -= not record.evicted
        tree.share.bytes -= size
        self._bytes -= size
        tree.share.let_go(record)
        if not tree.keys:
            tree.share.trees.pop(tree, None)  # the share stays: the newer response is its own

    def _touch(self, tree: _Tree) -> None:
        tree.used_at = self._now()
        tree.share.trees[tree] = None
        tree.share.trees.move_to_end(tree)

    def _shrink(self) -> None:
        """Forget old conversations until the bound holds; in the end the newest one too."""
        while self._bytes > self._max_bytes and (tree := self._next_to_go()) is not None:
            self._drop(tree)
            self._evicted_conversations += 1

    def _next_to_go(self) -> _Tree | None:
        """The oldest of the tenant that holds the most; tenants are few."""
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
            record, _ = self._records.pop(key)
            share.let_go(record)


def _size_of(record: ResponseRecord) -> int:
    items = record.input + record.output
    return _RECORD_OVERHEAD + sum(len(item.raw) + _ITEM_OVERHEAD for item in items)
