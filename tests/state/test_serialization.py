"""What is written of a conversation is read again as it was; what is damaged is nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.conversations.store import ResponseRecord, Transcript
from gateway.protocol.items import Item
from gateway.state.serialization import (
    AccountIds,
    decode,
    decode_transcript,
    described,
    encode_record,
)

IDS = AccountIds([("a", "http://a.test/v1"), ("b", "http://b.test/v1")])

_name = st.sampled_from([None, "a", "b"])
_text = st.none() | st.text(max_size=5)
_item = st.builds(
    Item,
    st.binary(max_size=20),
    type=st.text(max_size=5),
    id=_text,
    call_id=_text,
    role=_text,
    encrypted=st.booleans(),
    issuer=_name,
    unfinished=st.booleans(),
)
_items = st.lists(_item, max_size=3).map(tuple)
_record = st.builds(
    ResponseRecord,
    st.text(max_size=5),
    st.text(max_size=5),
    input=_items,
    output=_items,
    account=_name,
    store=st.booleans(),
    held_upstream=st.booleans(),
    model=_text,
    created_at=st.floats(0, 10**10),
    pinned_to=_name,
    foreign=st.booleans(),
)


def written(transcript: Transcript, ids: AccountIds = IDS) -> list[tuple[bytes, bytes]]:
    return [
        (bytes.fromhex(each.record.key), encode_record(each.record, ids))
        for each in transcript.path()
    ]


def joined(records: list[ResponseRecord]) -> Transcript:
    transcript: Transcript | None = None
    for each in records:
        parent = None if transcript is None else transcript.record.key
        transcript = Transcript(msgspec.structs.replace(each, parent=parent), transcript)
    assert transcript is not None
    return transcript


@given(st.lists(_record, min_size=1, max_size=4))
def test_any_transcript_is_read_as_it_was(records: list[ResponseRecord]) -> None:
    transcript = joined(records)
    found, evicted = decode_transcript(written(transcript), IDS)
    assert found is not None
    assert list(found.ancestry()) == list(transcript.ancestry())
    assert (found.root, evicted) == (transcript.root, [])


@given(st.lists(_record, min_size=2, max_size=4), st.data())
def test_a_transcript_with_a_gap_is_none(records: list[ResponseRecord], data: Any) -> None:
    rows = written(joined(records))
    del rows[data.draw(st.integers(1, len(rows) - 1))]
    assert decode_transcript(rows, IDS) == (None, [])


@given(_record, st.binary(max_size=200), st.data())
def test_damage_is_nothing_and_no_error(record: ResponseRecord, noise: bytes, data: Any) -> None:
    ((key, value),) = written(joined([record]))
    at = data.draw(st.integers(0, len(value)))
    for damaged in (noise, value[:at], value[:at] + noise + value[at:]):
        found, _ = decode_transcript([(key, damaged)], IDS)
        assert found is None or found.record.key == record.key
        shown = described(damaged)
        assert shown is None or "tenant" in shown
        decode(damaged, dict[str, int])


def test_what_lives_on_a_connection_does_not_outlive_it() -> None:
    record = ResponseRecord("laptop", "resp_1", holder="connection 1")
    found, _ = decode_transcript(written(Transcript(record)), IDS)
    assert found is not None
    assert not found.record.held_upstream
    assert found.record.holder is None


@pytest.mark.parametrize(
    "later",
    [AccountIds([("a", "http://other.test/v1")]), AccountIds([("c", "http://a.test/v1")])],
    ids=["another service", "renamed"],
)
def test_another_account_is_not_taken_for_the_one_that_made_it(later: AccountIds) -> None:
    item = Item(b"{}", type="reasoning", encrypted=True, issuer="a")
    record = ResponseRecord("laptop", "resp_1", output=(item,), account="a", pinned_to="a")
    found, _ = decode_transcript(written(Transcript(record)), later)
    assert found is not None
    names = {found.record.account, found.record.pinned_to, found.record.output[0].issuer}
    assert names == {IDS.id_of("a")}, "a name that no account has"
    assert later.name_of(IDS.id_of("a")) is None


def test_an_account_that_has_left_is_known_when_it_is_back() -> None:
    ids = AccountIds([("a", "http://a.test/v1")])
    first = ids.id_of("a")
    ids.reconfigure([])
    assert (ids.id_of("a"), ids.name_of(first)) == (first, None)
    ids.reconfigure([("a", "http://a.test/v1")])
    assert ids.name_of(first) == "a"
    assert ids.id_of("never there") is None


def test_a_simulated_account_is_none_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.state import serialization

    here = AccountIds([("simulated-1", "")]).id_of("simulated-1")
    monkeypatch.setattr(serialization, "_THIS_PROCESS", "another")
    there = AccountIds([("simulated-1", "")]).id_of("simulated-1")
    assert here != there
