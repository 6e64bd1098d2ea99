"""Rows that wait arrive in an order that means the same, whichever batches fail."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.state.backend import RECORDS, RESPONSES, Recall, Row
from gateway.state.database import Database
from gateway.state.pending_rows import PendingRows

FOREVER = 10.0**10

#: A conversation of three responses, each of which continues the one before.
KEYS = [b"a" * 12, b"b" * 12, b"c" * 12]

_step = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 2)),
    st.sampled_from([("delete", 0), ("begin", 0), ("fail", 0), ("succeed", 0)]),
)


def rows_of(step: tuple[str, int], value: int, known: set[int]) -> list[Row]:
    """What one step writes: a response, with those that it continues if they are not known."""
    what, which = step
    conversation = KEYS[0].hex()
    if what == "delete":
        known.clear()
        return [Row(RECORDS, b"", None, 0.0, "laptop", conversation)]
    rows = []
    for each in range(which + 1) if what == "put" else ():
        key, parent = KEYS[each], b"" if each == 0 else KEYS[each - 1]
        if each == which or each not in known:
            text = b"%d" % value
            rows += [
                Row(RECORDS, key, text, FOREVER, "laptop", conversation, parent),
                Row(RESPONSES, b"d" + key, key, FOREVER, "laptop", conversation),
            ]
            known.add(each)
    return rows


def in_memory() -> Database:
    database = Database(None, 2**30, FOREVER, lambda: 0.0)
    database.open()
    return database


@given(st.lists(_step, max_size=25))
def test_failed_batches_change_nothing_of_what_is_kept(steps: list[tuple[str, int]]) -> None:
    pending, behind, at_once = PendingRows(), in_memory(), in_memory()
    known: set[int] = set()
    for value, step in enumerate([*steps, ("fail", 0), ("begin", 0), ("succeed", 0)]):
        for row in rows_of(step, value, known):
            at_once.write([row])
            assert pending.put(row)
        if step[0] == "begin":
            pending.next_batch()
        elif step[0] == "fail":
            assert pending.batch_failed()
        elif step[0] == "succeed" and pending.sent:
            behind.write(list(pending._sent.values()))
            pending.batch_written()
    for key in KEYS:
        wanted = Recall((), b"d" + key)
        assert behind.read(wanted) == at_once.read(wanted)
    assert (pending.bytes, len(pending)) == (0, 0)
