"""Which account keeps a response, and which issued encrypted content: bounded, and per tenant."""

from __future__ import annotations

import json
import tracemalloc
from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from gateway.conversations.owners import MemoryIssuers, MemoryOwners


def test_a_response_is_known_to_its_tenant_alone() -> None:
    owners = MemoryOwners(Clock().seconds)
    owners.note("laptop", "resp_1", "a")
    assert owners.owner_of("laptop", "resp_1") == "a"
    assert owners.owner_of("desk", "resp_1") is None
    assert owners.owner_of("laptop", "resp_2") is None


def test_names_cannot_be_cut_another_way() -> None:
    owners = MemoryOwners(Clock().seconds)
    owners.note("a", "bc", "x")
    assert owners.owner_of("ab", "c") is None


def test_a_deleted_response_is_forgotten() -> None:
    owners = MemoryOwners(Clock().seconds)
    owners.note("laptop", "resp_1", "a")
    owners.forget("laptop", "resp_1")
    owners.forget("laptop", "resp_1")
    assert owners.owner_of("laptop", "resp_1") is None


def test_a_response_is_kept_for_its_time_and_not_for_ever() -> None:
    clock = Clock()
    owners = MemoryOwners(clock.seconds, ttl_seconds=100)
    clock.advance(60)
    owners.note("laptop", "resp_1", "a")
    clock.advance(99)
    assert owners.owner_of("laptop", "resp_1") == "a"
    clock.advance(101)
    assert owners.owner_of("laptop", "resp_1") is None
    assert len(owners) == 0


def test_a_long_silence_forgets_everything() -> None:
    clock = Clock()
    owners = MemoryOwners(clock.seconds, ttl_seconds=100)
    owners.note("laptop", "resp_1", "a")
    clock.advance(1000)
    assert owners.owner_of("laptop", "resp_1") is None


@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from("ab")), max_size=60))
def test_the_newest_half_of_the_bound_is_always_known(notes: list[tuple[int, str]]) -> None:
    owners = MemoryOwners(Clock().seconds, max_responses=8)
    newest: OrderedDict[int, str] = OrderedDict()
    for number, account in notes:
        owners.note("laptop", f"resp_{number}", account)
        newest[number] = account
        newest.move_to_end(number)
        assert len(owners) <= 8, "expected the bound to hold"
        for kept in list(newest)[-4:]:
            assert owners.owner_of("laptop", f"resp_{kept}") == newest[kept]


def test_two_hundred_thousand_cost_less_than_32_megabytes() -> None:
    owners = MemoryOwners(Clock().seconds)
    tracemalloc.start()
    try:
        for number in range(300_000):
            owners.note("laptop", f"resp_{number:048x}", "account-1")
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(owners) <= 200_000
    assert size < 32 * 2**20, f"expected a compact register, it takes {size / 2**20:.1f} MB"


# --- issuers of encrypted content (law 9) ----------------------------------------------


def reasoning(seal: str, **members: object) -> bytes:
    return json.dumps({"type": "reasoning", **members, "encrypted_content": seal}).encode()


def test_the_issuer_of_a_seal_is_known() -> None:
    issuers = MemoryIssuers()
    issuers.note(reasoning("gA"), "primary")
    issuers.note(reasoning("gB"), "backup")
    assert issuers.issuer_of(reasoning("gA")) == "primary"
    assert issuers.issuer_of(reasoning("gB")) == "backup"
    assert issuers.issuer_of(reasoning("gC")) is None


def test_a_client_may_dress_a_seal_differently() -> None:
    issuers = MemoryIssuers()
    issuers.note(reasoning("gA", id="rs_1", summary=[], status="completed"), "primary")
    assert issuers.issuer_of(reasoning("gA")) == "primary"
    assert issuers.issuer_of(b'{"encrypted_content" : "gA","type":"reasoning"}') == "primary"


def test_what_is_not_sealed_has_no_issuer() -> None:
    issuers = MemoryIssuers()
    for raw in (b'{"type":"reasoning"}', b'{"encrypted_content":null}', b"nonsense"):
        issuers.note(raw, "primary")
        assert issuers.issuer_of(raw) is None
    assert len(issuers) == 0


def test_the_newest_issuer_counts() -> None:
    issuers = MemoryIssuers()
    issuers.note(reasoning("gA"), "primary")
    issuers.note(reasoning("gA"), "backup")
    assert issuers.issuer_of(reasoning("gA")) == "backup"
    assert len(issuers) == 1


def test_the_oldest_seals_are_forgotten_beyond_the_bound() -> None:
    issuers = MemoryIssuers(max_entries=2)
    for name in ("gA", "gB", "gA", "gC"):
        issuers.note(reasoning(name), "primary")
    assert len(issuers) == 2
    kept = [name for name in ("gA", "gB", "gC") if issuers.issuer_of(reasoning(name))]
    assert kept == ["gA", "gC"]


def test_a_seal_costs_the_same_however_long_it_is() -> None:
    issuers = MemoryIssuers()
    issuers.note(reasoning("g" * 100_000), "primary")
    assert issuers.issuer_of(reasoning("g" * 100_000)) == "primary"
    assert issuers.issuer_of(reasoning("g" * 99_999)) is None
