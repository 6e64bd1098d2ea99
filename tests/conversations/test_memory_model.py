"""The ledger in memory against a model that is too simple to be wrong."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.conversations.records import ResponseRecord
from gateway.conversations.store import MemoryStore
from gateway.protocol.items import Item

TTL = 100
MAX_BYTES = 12_000
TENANT_NAMES = ["laptop", "desktop", "phone"]
TENANTS = st.sampled_from(TENANT_NAMES)
WHICH = st.integers(0, 1000)


class Conversation:
    def __init__(self) -> None:
        self.used_at = 0
        self.members: list[ResponseRecord] = []


def root_of(record: ResponseRecord) -> ResponseRecord:
    return list(record.ancestry())[-1]


class Model(RuleBasedStateMachine):
    """Conversations by their root, the least recently used first.

    Of tenants that hold equally much, the last by name makes room.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000
        self.made: list[ResponseRecord] = []
        self.alive: dict[ResponseRecord, Conversation] = {}
        self.evicted: set[ResponseRecord] = set()
        self.ledger = MemoryStore(MAX_BYTES, TTL, lambda: self.now)

    def touch(self, root: ResponseRecord) -> None:
        conversation = self.alive.pop(root)
        conversation.used_at = self.now
        self.alive[root] = conversation

    def some(self, which: int) -> ResponseRecord:
        return self.made[which % len(self.made)]

    def remember(self, tenant: str, parent: ResponseRecord | None, size: int) -> None:
        number = sum(each.tenant == tenant for each in self.made)
        record = ResponseRecord(
            tenant=tenant,
            id=f"resp_{number}",
            parent=parent,
            input=(Item(b"x" * size, id=f"msg_{len(self.made)}"),),
            output=(),
            account=None,
            store=True,
            held_upstream=False,
            model=None,
            created_at=self.now,
        )
        self.made.append(record)
        self.ledger.add(record)
        root = root_of(record)
        members = self.alive.setdefault(root, Conversation()).members
        members += [each for each in record.ancestry() if each not in members]
        self.touch(root)
        while self.bytes() > MAX_BYTES:
            del self.alive[self.next_to_go()]

    def next_to_go(self) -> ResponseRecord:
        largest = max(TENANT_NAMES, key=lambda name: (self.bytes_of(name), name))
        return next(root for root in self.alive if root.tenant == largest)

    def bytes(self) -> int:
        return sum(self.bytes_of(tenant) for tenant in TENANT_NAMES)

    def bytes_of(self, tenant: str) -> int:
        """By the ledger's own scale: a record and its one item have a fixed share each."""
        return sum(
            1060 + len(record.input[0].raw)
            for root, conversation in self.alive.items()
            for record in conversation.members
            if root.tenant == tenant
        )

    @rule(tenant=TENANTS, size=st.integers(0, 3000))
    def begin(self, tenant: str, size: int) -> None:
        self.remember(tenant, None, size)

    @precondition(lambda self: self.made)
    @rule(which=WHICH, size=st.integers(0, 3000))
    def go_on(self, which: int, size: int) -> None:
        parent = self.some(which)
        self.remember(parent.tenant, parent, size)

    @precondition(lambda self: self.made)
    @rule(which=WHICH)
    def evict(self, which: int) -> None:
        record = self.some(which)
        self.ledger.evict(record)
        if record in self.evicted:
            return
        self.evicted.add(record)
        root = root_of(record)
        members = self.alive[root].members if root in self.alive else []
        if record in members and self.evicted.issuperset(members):
            del self.alive[root]

    @precondition(lambda self: self.made)
    @rule(which=WHICH)
    def ask(self, which: int) -> None:
        record = self.some(which)
        found = self.ledger.get(record.tenant, record.id)
        root = root_of(record)
        conversation = self.alive.get(root)
        expected: Any = None
        if conversation is not None and record in conversation.members:
            if conversation.used_at + TTL <= self.now:
                del self.alive[root]
            else:
                self.touch(root)
                expected = None if record in self.evicted else record
        assert found is expected
        item = record.input[0]
        by_item = self.ledger.find_item(record.tenant, item.id or "")
        assert by_item == (None if expected is None else (item, record, False))
        assert self.ledger.find_item("stranger", item.id or "") is None
        assert self.ledger.get("stranger", record.id) is None, "another tenant sees nothing"

    @rule(seconds=st.integers(1, TTL))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        self.ledger.expire()
        for root, conversation in list(self.alive.items()):
            if conversation.used_at + TTL <= self.now:
                del self.alive[root]

    @invariant()
    def the_ledger_holds_what_the_model_holds(self) -> None:
        figures = self.ledger.figures()
        assert figures.conversations == len(self.alive)
        assert figures.responses == sum(len(each.members) for each in self.alive.values())
        assert figures.bytes == self.bytes()
        assert figures.bytes <= MAX_BYTES, "the bound holds"
        unused = self.now - self.alive[self.next_to_go()].used_at if self.alive else None
        assert figures.longest_unused == unused

    @invariant()
    def nothing_is_held_without_what_it_continued(self) -> None:
        for conversation in self.alive.values():
            for record in conversation.members:
                assert set(record.ancestry()) <= set(conversation.members)


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMemoryLedger = Model.TestCase
