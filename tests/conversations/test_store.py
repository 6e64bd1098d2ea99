"""The ledger in memory: bounded, whole conversations only, one tenant blind to another."""

from __future__ import annotations

import msgspec
import pytest

from gateway.conversations.store import MemoryStore, ResponseRecord, Transcript
from gateway.protocol.items import Item
from tests.support.now import Now

MINUTE = 60.0


@pytest.fixture
def clock() -> Now:
    return Now(1000.0)


@pytest.fixture
def ledger(clock: Now) -> MemoryStore:
    return MemoryStore(1_000_000, 10 * MINUTE, clock)


def record(
    name: str, parent: Transcript | None = None, tenant: str = "laptop", size: int = 10
) -> Transcript:
    made = ResponseRecord(
        tenant=tenant,
        id=name,
        parent=None if parent is None else parent.record.key,
        input=(Item(b"i" * size),),
        output=(Item(b"o" * size),),
        account="primary",
        store=False,
        held_upstream=True,
        model="gpt-5",
        created_at=0.0,
    )
    return Transcript(made, parent)


def remember(ledger: MemoryStore, *records: Transcript) -> None:
    for each in records:
        ledger.add(each)


def test_a_transcript_is_read_from_the_root_on() -> None:
    root = record("resp_1")
    child = record("resp_2", record("resp_1b", root))
    assert [each.id for each in child.ancestry()] == ["resp_2", "resp_1b", "resp_1"]
    assert [item.raw for item in root.record.items()] == [b"i" * 10, b"o" * 10]


def test_a_record_is_a_value_that_can_be_written_down_and_read_back() -> None:
    root = record("resp_1")
    child = record("resp_2", root).record
    written = msgspec.msgpack.encode(child)
    assert msgspec.msgpack.decode(written, type=ResponseRecord) == child
    assert child.parent == root.record.key
    assert record("resp_1").record != root.record, "an upstream may give an id twice"


def test_what_was_added_is_found_by_its_tenant_alone(ledger: MemoryStore) -> None:
    mine, theirs = record("resp_1"), record("resp_1", tenant="desktop")
    remember(ledger, mine, theirs)
    assert ledger.get("laptop", "resp_1") is mine
    assert ledger.get("desktop", "resp_1") is theirs
    assert ledger.get("stranger", "resp_1") is None
    assert ledger.get("laptop", "resp_2") is None


def test_forks_and_their_root_are_one_conversation(ledger: MemoryStore) -> None:
    root = record("resp_1")
    remember(ledger, root, record("resp_2", root), record("resp_3", root))
    assert (ledger.figures().responses, ledger.figures().conversations) == (3, 1)


def test_an_unused_conversation_is_forgotten_whole(ledger: MemoryStore, clock: Now) -> None:
    root = record("resp_1")
    remember(ledger, root, record("resp_2", root))
    clock.now += 10 * MINUTE
    assert ledger.get("laptop", "resp_2") is None
    assert ledger.figures().responses == 0


def test_using_any_response_keeps_its_whole_conversation(ledger: MemoryStore, clock: Now) -> None:
    root = record("resp_1")
    remember(ledger, root, record("resp_2", root))
    for _ in range(3):
        clock.now += 9 * MINUTE
        assert ledger.get("laptop", "resp_1") is root
    assert ledger.get("laptop", "resp_2") is not None


def test_what_is_too_old_is_forgotten_without_being_asked_for(
    ledger: MemoryStore, clock: Now
) -> None:
    remember(ledger, record("resp_1"))
    clock.now += 9 * MINUTE
    remember(ledger, record("resp_2"))
    clock.now += MINUTE
    ledger.expire()
    assert ledger.get("laptop", "resp_1") is None
    assert ledger.get("laptop", "resp_2") is not None
    assert (ledger.figures().conversations, ledger.figures().evicted_conversations) == (1, 0)


def test_the_least_recently_used_conversation_makes_room(clock: Now) -> None:
    ledger = MemoryStore(30_000, 10 * MINUTE, clock)
    for number in range(3):
        remember(ledger, record(f"resp_{number}", size=4000))
    ledger.get("laptop", "resp_0")
    remember(ledger, record("resp_3", size=4000))
    kept = [number for number in range(4) if ledger.get("laptop", f"resp_{number}")]
    assert kept == [0, 2, 3]
    figures = ledger.figures()
    assert figures.bytes <= figures.max_bytes == 30_000
    assert figures.evicted_conversations == 1


def test_the_tenant_that_holds_the_most_makes_room(clock: Now) -> None:
    ledger = MemoryStore(30_000, 10 * MINUTE, clock)
    remember(ledger, record("resp_1", tenant="desktop", size=1000))
    for number in range(10):
        clock.now += 1
        remember(ledger, record(f"resp_{number}", size=4000))
    assert ledger.get("desktop", "resp_1"), "the tenant with less keeps its older conversation"
    kept = [number for number in range(10) if ledger.get("laptop", f"resp_{number}")]
    assert kept == [8, 9], "the tenant with more keeps its newest"
    assert ledger.figures().evicted_conversations == 8


def test_who_holds_the_most_makes_room_for_another_tenant(clock: Now) -> None:
    ledger = MemoryStore(30_000, 10 * MINUTE, clock)
    for number in range(3):
        remember(ledger, record(f"resp_{number}", size=4000))
    remember(ledger, record("resp_1", tenant="desktop", size=4000))
    assert ledger.get("desktop", "resp_1"), "the newcomer holds less"
    kept = [number for number in range(3) if ledger.get("laptop", f"resp_{number}")]
    assert kept == [1, 2]


def test_too_large_a_response_costs_no_other_tenant_anything(clock: Now) -> None:
    ledger = MemoryStore(30_000, 10 * MINUTE, clock)
    remember(ledger, record("resp_1"), record("resp_1", tenant="desktop", size=20_000))
    assert ledger.get("desktop", "resp_1") is None
    assert ledger.get("laptop", "resp_1") is not None
    remember(ledger, record("resp_2", tenant="desktop"))
    assert ledger.get("desktop", "resp_2") is not None, "a tenant that lost all begins anew"


def test_the_figures_are_of_all_tenants_together(ledger: MemoryStore, clock: Now) -> None:
    assert ledger.figures().longest_unused is None
    remember(ledger, record("resp_1"))
    clock.now += MINUTE
    remember(ledger, record("resp_1", tenant="desktop"))
    clock.now += MINUTE
    figures = ledger.figures()
    assert (figures.responses, figures.conversations) == (2, 2)
    assert figures.longest_unused == 2 * MINUTE, "of tenants that hold equally much, the last"
    remember(ledger, record("resp_2", tenant="desktop"))
    assert ledger.figures().longest_unused == MINUTE, "the one with more gives up its oldest next"
    clock.now += 8 * MINUTE
    ledger.expire()
    assert ledger.get("desktop", "resp_1"), "its lifetime has not passed yet"
    assert ledger.get("laptop", "resp_1") is None
    assert ledger.figures().conversations == 2


def test_a_response_larger_than_the_ledger_is_not_remembered(clock: Now) -> None:
    ledger = MemoryStore(5000, 10 * MINUTE, clock)
    remember(ledger, record("resp_1", size=5000))
    assert ledger.get("laptop", "resp_1") is None
    assert (ledger.figures().responses, ledger.figures().bytes) == (0, 0)


def test_a_conversation_that_was_forgotten_meanwhile_is_taken_in_whole(
    ledger: MemoryStore, clock: Now
) -> None:
    root = record("resp_1")
    parent = record("resp_2", root)
    remember(ledger, root, parent)
    clock.now += 10 * MINUTE
    ledger.expire()
    remember(ledger, record("resp_3", parent))
    assert ledger.get("laptop", "resp_1") is root
    assert (ledger.figures().responses, ledger.figures().conversations) == (3, 1)


def test_forks_of_a_forgotten_conversation_find_together_again(
    ledger: MemoryStore, clock: Now
) -> None:
    root = record("resp_1")
    one, other = record("resp_2", root), record("resp_3", root)
    remember(ledger, root, one, other)
    clock.now += 10 * MINUTE
    ledger.expire()
    remember(ledger, record("resp_4", one), record("resp_5", other))
    assert (ledger.figures().responses, ledger.figures().conversations) == (5, 1)


# --- evicted responses (§6.2) --------------------------------------------------------


def test_an_evicted_response_is_not_found_and_its_children_are(ledger: MemoryStore) -> None:
    root = record("resp_1")
    child = record("resp_2", root)
    remember(ledger, root, child)
    ledger.evict(root)
    ledger.evict(root)
    assert ledger.get("laptop", "resp_1") is None
    assert ledger.get("laptop", "resp_2") is child
    assert [each.id for each in child.ancestry()] == ["resp_2", "resp_1"]


def test_a_conversation_that_cannot_be_continued_is_forgotten(ledger: MemoryStore) -> None:
    root = record("resp_1")
    child = record("resp_2", root)
    remember(ledger, root, child)
    ledger.evict(root)
    ledger.evict(child)
    assert (ledger.figures().responses, ledger.figures().bytes) == (0, 0)


def test_evicted_stays_evicted_though_forgotten_meanwhile(ledger: MemoryStore, clock: Now) -> None:
    root = record("resp_1")
    remember(ledger, root)
    clock.now += 10 * MINUTE
    ledger.expire()
    ledger.evict(root)
    remember(ledger, record("resp_2", root))
    assert ledger.get("laptop", "resp_1") is None
    assert ledger.get("laptop", "resp_2") is not None


# --- upstreams that give an id twice -------------------------------------------------


def test_of_two_responses_of_one_id_the_newer_counts(ledger: MemoryStore) -> None:
    first, second = record("resp_1", size=10), record("resp_1", size=99)
    remember(ledger, first)
    alone = ledger.figures().bytes
    remember(ledger, second)
    assert ledger.get("laptop", "resp_1") is second
    assert (ledger.figures().responses, ledger.figures().conversations) == (1, 1)
    assert ledger.figures().bytes == alone + 2 * 89


def test_a_tenant_holds_no_response_twice(clock: Now) -> None:
    ledger = MemoryStore(30_000, 10 * MINUTE, clock)
    for _ in range(9):
        remember(ledger, record("resp_1", size=4000))
    for number in range(3):
        remember(ledger, record(f"resp_{number}", tenant="desktop", size=4000))
    assert ledger.get("laptop", "resp_1"), "its one response is less than what the other holds"
    assert ledger.get("desktop", "resp_0") is None


def test_a_conversation_whose_responses_share_an_id_goes_on(ledger: MemoryStore) -> None:
    newest = record("resp_1")
    remember(ledger, newest)
    for _ in range(3):
        newest = record("resp_1", newest)
        remember(ledger, newest)
    assert ledger.get("laptop", "resp_1") is newest
    assert len(list(newest.ancestry())) == 4


def test_a_forgotten_conversation_whose_responses_share_an_id_is_still_bounded(
    clock: Now,
) -> None:
    ledger = MemoryStore(5000, 10 * MINUTE, clock)
    newest = record("resp_1", record("resp_1"))
    remember(ledger, newest)
    clock.now += 10 * MINUTE
    ledger.expire()
    newest = record("resp_1", newest)
    remember(ledger, newest)
    assert ledger.get("laptop", "resp_1") is newest
    remember(ledger, record("resp_2", size=1500))
    assert ledger.get("laptop", "resp_1") is None
    assert ledger.get("laptop", "resp_2") is not None


def test_the_older_of_two_responses_of_one_id_goes_without_the_newer(ledger: MemoryStore) -> None:
    first, second = record("resp_1"), record("resp_1")
    remember(ledger, first, second)
    ledger.evict(first)
    assert ledger.get("laptop", "resp_1") is second
    remember(ledger, record("resp_2", first))
    assert ledger.get("laptop", "resp_1") is second


def with_items(name: str, *made: Item, sent: tuple[Item, ...] = ()) -> Transcript:
    return Transcript(msgspec.structs.replace(record(name).record, input=sent, output=made))


def test_an_item_is_found_by_its_id_in_any_conversation(ledger: MemoryStore) -> None:
    thought, said = Item(b"{1}", "reasoning", "rs_1"), Item(b"{2}", "message", "msg_1")
    first = with_items("resp_1", thought, said)
    remember(ledger, first, record("resp_2"))
    assert ledger.find_item("laptop", "rs_1") == (thought, first.record, True)
    assert ledger.find_item("desktop", "rs_1") is None, "another tenant's"
    assert ledger.find_item("laptop", "rs_2") is None


def test_what_a_model_made_is_found_before_what_a_client_repeats_of_it(
    ledger: MemoryStore,
) -> None:
    made, copy = Item(b"{whole}", "reasoning", "rs_1"), Item(b"{}", "reasoning", "rs_1")
    first, second = with_items("resp_1", made), with_items("resp_2", sent=(copy,))
    remember(ledger, first, second)
    assert ledger.find_item("laptop", "rs_1") == (made, first.record, True)
    ledger.forget("laptop", "resp_1")
    assert ledger.find_item("laptop", "rs_1") == (copy, second.record, False)
    ledger.forget("laptop", "resp_2")
    assert ledger.find_item("laptop", "rs_1") is None


def test_of_two_items_of_an_id_the_newer_is_found(ledger: MemoryStore) -> None:
    older, newer = Item(b"{1}", "message", "msg"), Item(b"{2}", "message", "msg")
    first, second = with_items("resp_1", older), with_items("resp_2", newer)
    remember(ledger, first, second)
    assert ledger.find_item("laptop", "msg") == (newer, second.record, True)
    ledger.forget("laptop", "resp_1")
    assert ledger.find_item("laptop", "msg") == (newer, second.record, True)


def test_items_of_an_evicted_response_are_not_found(ledger: MemoryStore) -> None:
    root = with_items("resp_1", Item(b"{1}", "message", "msg_1"))
    remember(ledger, root, record("resp_2", root))
    ledger.evict(root)
    assert ledger.find_item("laptop", "msg_1") is None


def test_finding_an_item_keeps_its_conversation(ledger: MemoryStore, clock: Now) -> None:
    remember(ledger, with_items("resp_1", Item(b"{1}", "message", "msg_1")))
    clock.now += 9 * MINUTE
    assert ledger.find_item("laptop", "msg_1") is not None
    clock.now += 9 * MINUTE
    assert ledger.find_item("laptop", "msg_1") is not None
    clock.now += 10 * MINUTE
    assert ledger.find_item("laptop", "msg_1") is None


@pytest.mark.parametrize("kind", ["reasoning", "item_reference"])
def test_who_took_a_bare_item_first_is_remembered(ledger: MemoryStore, kind: str) -> None:
    thought = Item(b"{}", kind, "rs_1")
    first, second = with_items("resp_1", sent=(thought,)), with_items("resp_2", sent=(thought,))
    remember(ledger, first, second)
    assert ledger.find_item("laptop", "rs_1") == (thought, first.record, False)
