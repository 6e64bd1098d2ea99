"""The ledger in memory against a model that is too simple to be wrong."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.conversations.store import MemoryStore, ResponseRecord, Transcript
from gateway.protocol.items import Item

TTL = 100
MAX_BYTES = 12_000
TENANT_NAMES = ["laptop", "desktop", "phone"]
TENANTS = st.sampled_from(TENANT_NAMES)
WHICH = st.integers(0, 1000)


class Conversation:
    def __init__(self) -> None:
        self.used_at = 0
        self.members: list[Transcript] = []


def root_of(response: Transcript) -> Transcript:
    return list(response.path())[-1]


class Model(RuleBasedStateMachine):
    """Conversations by their root, the least recently used first.

    Of tenants that hold equally much, the last by name makes room.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000
        self.made: list[Transcript] = []
        self.alive: dict[Transcript, Conversation] = {}
        self.evicted: set[Transcript] = set()
        self.ledger = MemoryStore(MAX_BYTES, TTL, lambda: self.now)

    def touch(self, root: Transcript) -> None:
        conversation = self.alive.pop(root)
        conversation.used_at = self.now
        self.alive[root] = conversation

    def some(self, which: int) -> Transcript:
        return self.made[which % len(self.made)]

    def remember(self, tenant: str, parent: Transcript | None, size: int) -> None:
        number = sum(each.record.tenant == tenant for each in self.made)
        record = ResponseRecord(
            tenant=tenant,
            id=f"resp_{number}",
            parent=None if parent is None else parent.record.key,
            input=(Item(b"x" * size, id=f"msg_{len(self.made)}"),),
            output=(),
            account=None,
            store=True,
            held_upstream=False,
            model=None,
            created_at=self.now,
        )
        response = Transcript(record, parent)
        self.made.append(response)
        self.ledger.add(response)
        root = root_of(response)
        members = self.alive.setdefault(root, Conversation()).members
        members += [each for each in response.path() if each not in members]
        self.touch(root)
        while self.bytes() > MAX_BYTES:
            del self.alive[self.next_to_go()]

    def next_to_go(self) -> Transcript:
        largest = max(TENANT_NAMES, key=lambda name: (self.bytes_of(name), name))
        return next(root for root in self.alive if root.record.tenant == largest)

    def bytes(self) -> int:
        return sum(self.bytes_of(tenant) for tenant in TENANT_NAMES)

    def bytes_of(self, tenant: str) -> int:
        """By the ledger's own scale: a record and its one item have a fixed share each."""
        return sum(
            1060 + len(response.record.input[0].raw)
            for root, conversation in self.alive.items()
            for response in conversation.members
            if root.record.tenant == tenant
        )

    @rule(tenant=TENANTS, size=st.integers(0, 3000))
    def begin(self, tenant: str, size: int) -> None:
        self.remember(tenant, None, size)

    @precondition(lambda self: self.made)
    @rule(which=WHICH, size=st.integers(0, 3000))
    def go_on(self, which: int, size: int) -> None:
        parent = self.some(which)
        self.remember(parent.record.tenant, parent, size)

    @precondition(lambda self: self.made)
    @rule(which=WHICH)
    def evict(self, which: int) -> None:
        response = self.some(which)
        self.ledger.evict(response)
        assert self.ledger.is_evicted(response)
        if response in self.evicted:
            return
        self.evicted.add(response)
        root = root_of(response)
        members = self.alive[root].members if root in self.alive else []
        if response in members and self.evicted.issuperset(members):
            del self.alive[root]

    @precondition(lambda self: self.made)
    @rule(which=WHICH)
    def ask(self, which: int) -> None:
        response = self.some(which)
        record = response.record
        found = self.ledger.get(record.tenant, record.id)
        root = root_of(response)
        conversation = self.alive.get(root)
        expected: Any = None
        if conversation is not None and response in conversation.members:
            if conversation.used_at + TTL <= self.now:
                del self.alive[root]
            else:
                self.touch(root)
                expected = None if response in self.evicted else response
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
            for response in conversation.members:
                assert set(response.path()) <= set(conversation.members)


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMemoryLedger = Model.TestCase
