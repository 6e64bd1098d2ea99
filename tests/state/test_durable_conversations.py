"""Any forest of conversations that is written and recalled equals the one in memory."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from twisted.internet.defer import Deferred

from gateway.config.settings import Persisted
from gateway.conversations.owners import MemoryIssuers, MemoryOwners
from gateway.conversations.store import MemoryStore, ResponseRecord, Transcript, foreign_response
from gateway.protocol.errors import ApiError
from gateway.protocol.items import Item
from gateway.state.backend import ITEMS, RECORDS, RESPONSES, Recall, StateError
from gateway.state.durable_conversations import (
    ConversationRecall,
    DurableConversations,
    DurableIssuers,
    DurableOwners,
    NoRecall,
)
from gateway.state.serialization import AccountIds
from tests.state.stage import DAY, FLUSH, LATER, Behind, disk_full

ACCOUNTS = [("a", "http://a.test/v1"), ("b", "http://b.test/v1")]
SEALED = b'{"type":"reasoning","id":"rs_1","encrypted_content":"%s"}'


class Process:
    """What a process has in memory, on a backend that outlives it."""

    def __init__(
        self,
        behind: Behind,
        persist: Persisted = "stored",
        accounts: list[tuple[str, str]] = ACCOUNTS,
        one_tenant: bool = False,
        refuses: bool = False,
    ) -> None:
        self.behind = behind
        writes = behind.again()
        ids, now = AccountIds(accounts), behind.clock.seconds
        self.memory = MemoryStore(2**24, 3600.0, now)
        self.memory_owners, self.memory_issuers = MemoryOwners(now), MemoryIssuers()
        self.conversations = DurableConversations(self.memory, writes, ids, persist, 30 * DAY, now)
        self.owners = DurableOwners(self.memory_owners, writes, ids, now)
        self.issuers = DurableIssuers(self.memory_issuers, writes, ids, now)
        self._recall = ConversationRecall(
            behind.clock,
            writes,
            self.memory,
            self.memory_owners,
            self.memory_issuers,
            ids,
            refuses,
            lambda: one_tenant,
        )
        writes.start()

    def recall(self, tenant: str, response_id: str | None, *items: Item) -> Any:
        """What it gave at once; "known" if memory had all of it."""
        answer: Deferred[None] | None = self._recall.recall(tenant, response_id, items)
        if answer is None:
            return "known"
        got: list[Any] = []
        answer.addBoth(got.append)
        return got[0] if got else "waits"

    def get(self, tenant: str, response_id: str) -> Transcript | None:
        self.recall(tenant, response_id)
        return self.conversations.get(tenant, response_id)


def made(
    number: int | str,
    parent: Transcript | None = None,
    tenant: str = "laptop",
    store: bool = True,
    text: bytes = b"{}",
) -> Transcript:
    record = ResponseRecord(
        tenant,
        f"resp_{number}",
        None if parent is None else parent.record.key,
        (Item(text, id=f"msg_{number}", role="user"),),
        (Item(b"out", id=f"out_{number}", issuer="a"),),
        account="a",
        store=store,
        model="m",
        created_at=7.0,
    )
    return Transcript(record, parent)


def same(one: Transcript | None, other: Transcript | None) -> bool:
    if one is None or other is None:
        return one is other
    return list(one.ancestry()) == list(other.ancestry())


@pytest.fixture
def behind() -> Behind:
    return Behind()


def flushed(behind: Behind) -> None:
    behind.pass_time(FLUSH)


def test_a_conversation_outlives_the_process(behind: Behind) -> None:
    before = Process(behind)
    first = made(1)
    second, fork = made(2, first), made(3, first)
    for each in (first, second, fork):
        before.conversations.add(each)
    flushed(behind)
    after = Process(behind)
    for each in (second, fork, first):
        assert same(after.get("laptop", each.record.id), each)
    assert after.recall("laptop", "resp_2") == "known", "asked for once"
    assert after.get("desk", "resp_2") is None, "another tenant's"


@pytest.mark.parametrize(
    ("persist", "stored", "written"),
    [
        ("owners", True, False),
        ("stored", True, True),
        ("stored", False, False),
        ("all", True, True),
        ("all", False, True),
    ],
)
def test_only_what_may_be_written_is(
    behind: Behind, persist: Persisted, stored: bool, written: bool
) -> None:
    Process(behind, persist).conversations.add(made(1, store=stored, text=b"secret words"))
    flushed(behind)
    assert (Process(behind, persist).get("laptop", "resp_1") is not None) == written
    values = [row.value or b"" for row in behind.backend.written]
    assert any(b"secret words" in each for each in values) == written


def test_what_continues_an_unwritten_response_is_not_written(behind: Behind) -> None:
    """Nobody could continue it."""
    before = Process(behind)
    first = made(1, store=False)
    second = made(2, first)
    third = made(3, second)
    for each in (first, second, third):
        before.conversations.add(each)
    flushed(behind)
    assert behind.backend.written == [] or behind.backend.database.figures().responses == 0
    assert Process(behind).get("laptop", "resp_3") is None


def test_a_foreign_parent_is_written_with_its_child(behind: Behind) -> None:
    foreign = foreign_response("laptop", "resp_elsewhere", "b")
    child = made(1, foreign)
    Process(behind).conversations.add(child)
    flushed(behind)
    after = Process(behind)
    assert same(after.get("laptop", "resp_1"), child)
    assert after.get("laptop", "resp_elsewhere") is None, "nothing is known of it"


def test_of_an_id_that_is_used_again_the_newer_response_counts(behind: Behind) -> None:
    before = Process(behind)
    older = made(1)
    child = made(2, older)
    newer = made(1, text=b"newer")
    for each in (older, child, newer):
        before.conversations.add(each)
    before.conversations.evict(older)
    flushed(behind)
    after = Process(behind)
    assert same(after.get("laptop", "resp_1"), newer)
    assert same(after.get("laptop", "resp_2"), child)


def test_an_evicted_response_is_not_continued_but_its_children_are(behind: Behind) -> None:
    before = Process(behind)
    first = made(1)
    second = made(2, first)
    before.conversations.add(first)
    before.conversations.add(second)
    before.conversations.evict(first)
    flushed(behind)
    after = Process(behind)
    assert same(after.get("laptop", "resp_2"), second)
    assert after.get("laptop", "resp_1") is None
    after.conversations.evict(after.get("laptop", "resp_2") or second)
    flushed(behind)
    assert behind.backend.database.figures()[:3] == (0, 0, 0), "nothing is left of it"


def test_a_turn_that_outlives_its_parents_eviction_is_written_as_a_whole(behind: Behind) -> None:
    before = Process(behind)
    first = made(1)
    before.conversations.add(first)
    flushed(behind)
    before.conversations.evict(first)
    flushed(behind)
    second = made(2, first)
    before.conversations.add(second)
    flushed(behind)
    after = Process(behind)
    assert same(after.get("laptop", "resp_2"), second)
    assert after.get("laptop", "resp_1") is None


def test_a_turn_goes_on_from_what_was_recalled_and_evicted(behind: Behind) -> None:
    elsewhere = foreign_response("laptop", "resp_0", "a")
    first = made(1, elsewhere)
    Process(behind).conversations.add(first)
    flushed(behind)
    process = Process(behind)
    found = process.get("laptop", "resp_1")
    assert found is not None
    process.conversations.evict(found)
    process.conversations.add(made(2, found))
    flushed(behind)
    after = Process(behind)
    assert same(after.get("laptop", "resp_2"), process.conversations.get("laptop", "resp_2"))
    assert after.get("laptop", "resp_1") is None


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("flushes", [True, False])
def test_of_responses_that_are_deleted_one_after_the_other_nothing_is_left(
    behind: Behind, order: tuple[int, ...], flushes: bool
) -> None:
    process = Process(behind)
    chain = [made(0)]
    for number in (1, 2):
        chain.append(made(number, chain[-1]))
    for each in chain:
        process.conversations.add(each)
    flushed(behind)
    for which in order:
        process.conversations.evict(chain[which])
        process.conversations.evict(chain[which])  # as when the connection ends later
        if flushes:
            flushed(behind)
    flushed(behind)
    after = Process(behind)
    assert [after.get("laptop", each.record.id) for each in chain] == [None] * 3
    assert behind.backend.database.figures()[:3] == (0, 0, 0), "nor its content"


def test_a_deleted_parent_stays_deleted_where_its_child_is_recalled(behind: Behind) -> None:
    process = Process(behind)
    root = made(0)
    child = made(1, root)
    fork = made(2, root)
    for each in (root, child, fork):
        process.conversations.add(each)
    flushed(behind)
    process.conversations.evict(child)
    process.conversations.evict(root)
    flushed(behind)
    after = Process(behind)
    assert same(after.get("laptop", "resp_2"), fork)
    assert after.conversations.get("laptop", "resp_0") is None
    assert after.get("laptop", "resp_0") is None


def test_a_forgotten_conversation_is_forgotten_everywhere(behind: Behind) -> None:
    before = Process(behind)
    first = made(1)
    second = made(2, first)
    before.conversations.add(first)
    flushed(behind)
    before.conversations.add(second)
    assert before.conversations.forget("laptop", "resp_1") == 2
    assert before.get("laptop", "resp_1") is None, "also while the deletion is not written"
    assert before.get("laptop", "resp_2") is None
    third = made(3, second)
    before.conversations.add(third)
    flushed(behind)
    after = Process(behind)
    assert same(after.get("laptop", "resp_3"), third), "a turn that ran goes on"


def test_what_was_lost_is_written_with_the_next_turn(behind: Behind) -> None:
    process = Process(behind)
    process.conversations.add(first := made(1))
    flushed(behind)
    behind.backend.begin_anew()
    behind.writes.began_anew()
    process.conversations.add(second := made(2, first))
    flushed(behind)
    assert same(Process(behind).get("laptop", "resp_2"), second)


def test_a_conversation_that_was_recalled_is_not_written_again(behind: Behind) -> None:
    first, second = made(1), None
    Process(behind).conversations.add(first)
    flushed(behind)
    after = Process(behind)
    second = made(2, after.get("laptop", "resp_1"))
    written = len(behind.backend.written)
    after.conversations.add(second)
    flushed(behind)
    tables = [row.table for row in behind.backend.written[written:]]
    assert tables == [RECORDS, RESPONSES, ITEMS], "expected the new response alone"


def test_what_is_recalled_shares_what_memory_has(behind: Behind) -> None:
    here, there = Process(behind), Process(behind)
    latest = None
    for number in range(6):
        process = (here, there)[number % 2]
        if latest is not None:
            latest = process.get("laptop", f"resp_{number - 1}")
            assert latest is not None
        latest = made(number, latest)
        process.conversations.add(latest)
        flushed(behind)
    for process in (here, there):
        kept = [process.get("laptop", f"resp_{number}") for number in range(6)]
        alive = {id(part) for each in kept if each is not None for part in each.path()}
        assert len(alive) == 6, "each response is in memory once"


def test_an_eviction_elsewhere_is_taken_over_with_what_is_recalled(behind: Behind) -> None:
    here, there = Process(behind), Process(behind)
    first = made(1)
    here.conversations.add(first)
    flushed(behind)
    found = there.get("laptop", "resp_1")
    assert found is not None
    there.conversations.add(made(2, found))
    there.conversations.evict(found)
    there.conversations.add(made(3, there.get("laptop", "resp_2")))
    flushed(behind)
    assert here.get("laptop", "resp_3") is not None
    assert here.conversations.get("laptop", "resp_1") is None


def test_items_are_found_by_their_ids(behind: Behind) -> None:
    """Each by the response that it belongs to, and no other tenant's."""
    before = Process(behind)
    first = made(1)
    for each in (first, made(2, first), made(3), made(4, tenant="desk")):
        before.conversations.add(each)
    flushed(behind)
    after = Process(behind)
    named = [Item(b"", "item_reference", f"out_{each}") for each in (1, 2, 3, 4, 5)]
    assert after.recall("laptop", None, *named) is None
    found = [after.conversations.find_item("laptop", each.id or "") for each in named]
    assert [each and each.record.id for each in found] == ["resp_1", "resp_2", "resp_3", None, None]
    assert after.recall("laptop", None, *named[:3]) == "known", "asked for once"


def test_an_item_that_is_not_only_an_id_is_not_looked_up(behind: Behind) -> None:
    process = Process(behind)
    items = [Item(b"", "message", "out_1", role="assistant"), Item(b"", "function_call", "out_2")]
    assert process.recall("laptop", None, *items) == "known"
    assert process.recall("laptop", None, Item(b"", "reasoning", "out_3")) is None


def test_items_that_cannot_be_looked_up_stop_no_turn(behind: Behind) -> None:
    process = Process(behind)
    behind.backend.trouble = StateError("gone")
    assert process.recall("laptop", None, Item(b"", "item_reference", "out_1")) is None


def test_the_issuer_of_the_latest_item_may_be_about_to_be_written(behind: Behind) -> None:
    """By the process that made it; a history from elsewhere is not waited for."""
    behind.backend.shared = True
    process = Process(behind)
    old, new = (Item(SEALED % each, encrypted=True) for each in (b"old", b"new"))
    assert process.recall("laptop", None, old, new) is None, "nobody here made the old one"
    process.memory_issuers.note(old.raw, "b")
    old = Item(old.raw, encrypted=True, issuer="b")
    assert process.recall("laptop", None, old, new) == "waits"
    behind.clock.advance(0.05)
    assert process.memory_issuers.issuer_of(new.raw) is None
    Process(behind).issuers.note(new.raw, "b")
    flushed(behind)
    behind.clock.advance(0.25)
    assert process.memory_issuers.issuer_of(new.raw) == "b"
    assert process.recall("laptop", None, Item(SEALED % b"only", encrypted=True)) == "waits"


def test_one_turn_looks_up_a_bounded_count_of_issuers(behind: Behind) -> None:
    process = Process(behind)
    asked: list[int] = []
    read = behind.backend.read

    def counting(wanted: Recall) -> Any:
        asked.append(len(wanted.rows))
        return read(wanted)

    behind.backend.read = counting  # type: ignore[method-assign]
    items = [Item(SEALED % b"%d" % n, type="reasoning", encrypted=True) for n in range(5000)]
    process.recall("laptop", None, *items, *items)
    assert asked == [1000]


def test_owners_and_issuers_outlive_the_process(behind: Behind) -> None:
    before = Process(behind)
    raw = SEALED % b"abc"
    before.owners.note("laptop", "resp_1", "a")
    before.owners.note("laptop", "resp_2", "b")
    before.owners.forget("laptop", "resp_2")
    before.issuers.note(raw, "b")
    flushed(behind)
    after = Process(behind)
    sealed = Item(raw, encrypted=True)
    assert after.recall("laptop", "resp_1", sealed) is None
    assert after.owners.owner_of("laptop", "resp_1") == "a"
    assert after.issuers.issuer_of(raw) == "b"
    assert after.owners.owner_of("desk", "resp_1") is None
    after.recall("laptop", "resp_2")
    assert after.owners.owner_of("laptop", "resp_2") is None


@pytest.mark.parametrize(
    "accounts", [[("renamed", "http://a.test/v1")], [("a", "http://elsewhere.test/v1")], []]
)
def test_another_account_owns_nothing_of_the_one_before(
    behind: Behind, accounts: list[tuple[str, str]]
) -> None:
    """What an account made is replayed elsewhere; no other account is asked for it."""
    before = Process(behind)
    before.owners.note("laptop", "resp_1", "a")
    before.conversations.add(made(1))
    flushed(behind)
    after = Process(behind, accounts=accounts)
    found = after.get("laptop", "resp_1")
    assert found is not None
    assert found.record.account not in [name for name, _ in accounts]
    assert found.record.output[0].issuer not in [name for name, _ in accounts]
    assert after.owners.owner_of("laptop", "resp_1") is None
    again = Process(behind)
    recalled = again.get("laptop", "resp_1")
    assert recalled is not None
    assert recalled.record.account == "a", "it is back, and knows it again"


# --- without the backend -------------------------------------------------------------------


def code_of(answer: Any) -> str | None:
    return answer.value.code if answer.check(ApiError) else None


def recalled_late(process: Process, response_id: str) -> Any:
    """What it gave after it was tried again for a while."""
    got: list[Any] = []
    answer = process._recall.recall("laptop", response_id, ())
    assert answer is not None
    answer.addBoth(got.append)
    assert got == []
    process.behind.pass_time(LATER)
    return got[0]


@pytest.mark.parametrize("one_tenant", [False, True])
def test_an_unknown_response_is_not_answered_while_nothing_can_be_read(
    behind: Behind, one_tenant: bool
) -> None:
    """One tenant's may be asked for at any account; others' could be another tenant's."""
    behind.backend.trouble = StateError("gone")
    process = Process(behind, one_tenant=one_tenant)
    if one_tenant:
        assert process.recall("laptop", "resp_1") is None
    else:
        assert code_of(recalled_late(process, "resp_1")) == "state_unavailable"
    process.owners.note("laptop", "resp_2", "a")
    assert process.recall("laptop", "resp_2") is None, "its account is asked"
    process.conversations.add(made(3))
    assert process.recall("laptop", "resp_3") == "known"
    assert process.recall("laptop", None, Item(SEALED % b"x", encrypted=True)) is None


def test_a_gateway_may_refuse_what_it_cannot_look_up(behind: Behind) -> None:
    behind.backend.trouble = StateError("gone")
    process = Process(behind, one_tenant=True, refuses=True)
    assert code_of(recalled_late(process, "resp_1")) == "state_unavailable"
    assert process.recall("laptop", None) == "known"


def test_what_a_turn_needs_is_read_again_for_a_while(behind: Behind) -> None:
    Process(behind).conversations.add(first := made(1))
    flushed(behind)
    after = Process(behind)
    behind.backend.trouble = StateError("gone")
    assert after.recall("laptop", "resp_1") == "waits"
    behind.backend.trouble = None
    behind.pass_time(LATER)
    assert same(after.conversations.get("laptop", "resp_1"), first)


def test_a_full_disk_costs_nothing_that_was_on_it(behind: Behind) -> None:
    Process(behind).conversations.add(first := made(1))
    flushed(behind)
    after = Process(behind)
    behind.backend.write_trouble = disk_full()
    after.conversations.add(other := made(9))
    behind.pass_time(LATER)
    assert same(after.get("laptop", "resp_1"), first)
    behind.backend.write_trouble = None
    behind.pass_time(LATER)
    assert same(Process(behind).get("laptop", "resp_9"), other)


def test_without_a_backend_nothing_is_recalled() -> None:
    assert NoRecall().recall("laptop", "resp_1", []) is None


# --- any forest ----------------------------------------------------------------------------

WHICH = st.integers(0, 1000)


class Forest(RuleBasedStateMachine):
    """A process that writes everything, and at any moment a new one that knows the same.

    Ids are used once; what happens when an upstream repeats one has tests of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.behind = Behind()
        self.process = Process(self.behind, "all")
        self.made: list[Transcript] = []
        self.numbers = itertools.count()

    @rule(tenant=st.sampled_from(["laptop", "desk"]))
    def begin(self, tenant: str) -> None:
        self.add(made(next(self.numbers), None, tenant))

    @precondition(lambda self: self.made)
    @rule(which=WHICH)
    def go_on(self, which: int) -> None:
        parent = self.made[which % len(self.made)]
        self.add(made(next(self.numbers), parent, parent.record.tenant))

    @rule()
    def go_on_from_elsewhere(self) -> None:
        number = next(self.numbers)
        self.add(made(number, foreign_response("laptop", f"resp_far_{number}", "b")))

    def add(self, transcript: Transcript) -> None:
        self.made.append(transcript)
        self.process.conversations.add(transcript)

    @precondition(lambda self: self.made)
    @rule(which=WHICH)
    def evict(self, which: int) -> None:
        self.process.conversations.evict(self.made[which % len(self.made)])

    @precondition(lambda self: self.made)
    @rule(which=WHICH)
    def forget(self, which: int) -> None:
        record = self.made[which % len(self.made)].record
        self.process.conversations.forget(record.tenant, record.id)

    @rule()
    def wait(self) -> None:
        flushed(self.behind)

    @rule(trouble=st.booleans())
    def trouble(self, trouble: bool) -> None:
        self.behind.backend.write_trouble = disk_full() if trouble else None

    @rule()
    def restart(self) -> None:
        self.behind.backend.write_trouble = None
        self.behind.pass_time(LATER)
        before = self.process
        after = self.process = Process(self.behind, "all")
        known: list[Transcript] = []
        for each in {(each.record.tenant, each.record.id) for each in self.made}:
            expected, found = before.conversations.get(*each), after.get(*each)
            assert same(found, expected), f"{each} is {found} after the restart"
            if found is not None:
                known.append(found)
        self.made = known


Forest.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestAnyForest = Forest.TestCase


@given(st.lists(st.booleans(), min_size=1, max_size=12))
@settings(deadline=None, max_examples=20)
def test_of_mixed_conversations_the_written_part_is_whole(stores: list[bool]) -> None:
    behind = Behind()
    before = Process(behind)
    parent: Transcript | None = None
    chain = []
    for number, store in enumerate(stores):
        parent = made(number, parent, store=store)
        before.conversations.add(parent)
        chain.append(parent)
    flushed(behind)
    after = Process(behind)
    for number, each in enumerate(chain):
        found = after.get("laptop", each.record.id)
        assert same(found, each if all(stores[: number + 1]) else None)
