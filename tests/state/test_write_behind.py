"""What waits to be written: nothing acknowledged is lost, order, bounds, failures, catching up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from twisted.internet.defer import TimeoutError
from twisted.python.failure import Failure

from gateway.state.backend import (
    BINDINGS,
    OWNERS,
    RECORDS,
    RESPONSES,
    Recall,
    Recalled,
    Row,
    StateError,
)
from gateway.state.pending_rows import MAX_PENDING_BYTES
from gateway.state.write_behind import TRANSITIONS, BackendState
from tests.state.stage import FLUSH, LATER, Behind, disk_full, value_of

FOREVER = 10.0**10


def owner(key: bytes, value: bytes | None = b"a") -> Row:
    return Row(OWNERS, key, value, FOREVER, "laptop")


def record(key: bytes, parent: bytes = b"", root: bytes | None = None, size: int = 10) -> Row:
    return Row(RECORDS, key, b"x" * size, FOREVER, "laptop", (root or key).hex(), parent)


def response(digest: bytes, key: bytes, root: bytes | None = None) -> Row:
    return Row(RESPONSES, digest, key, FOREVER, "laptop", (root or key).hex())


def deletion(root: bytes) -> Row:
    return Row(RECORDS, b"", None, 0.0, "laptop", root.hex())


@pytest.fixture
def behind() -> Behind:
    return Behind().started()


def lines(logged: list[dict[str, Any]]) -> list[str]:
    return [
        each["log_format"].format(**each)
        for each in logged
        if each["log_namespace"] == "gateway.state"
    ]


@pytest.fixture
def log() -> Any:
    """The lines of the state."""
    from twisted.logger import globalLogPublisher

    logged: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(logged.append)
    yield lambda: lines(logged)
    globalLogPublisher.removeObserver(logged.append)


def test_rows_are_collected_for_the_flush_interval(behind: Behind) -> None:
    behind.writes.put(owner(b"1"))
    behind.clock.advance(FLUSH / 2)
    behind.writes.put(owner(b"2"))
    assert behind.backend.written == []
    behind.clock.advance(FLUSH / 2)
    assert behind.backend.written == [owner(b"1"), owner(b"2")]
    assert behind.backend.batches == 1
    assert behind.clock.getDelayedCalls() == [], "nothing is called while nothing waits"


def test_the_newest_value_of_a_key_is_written_once(behind: Behind) -> None:
    behind.writes.put(owner(b"1", b"old"))
    behind.writes.put(owner(b"1", b"new"))
    behind.writes.put_later(BINDINGS, b"2", lambda: Row(BINDINGS, b"2", b"first", FOREVER))
    behind.writes.put_later(BINDINGS, b"2", lambda: Row(BINDINGS, b"2", b"second", FOREVER))
    behind.pass_time(FLUSH)
    assert [row.value for row in behind.backend.written] == [b"new", b"second"]
    assert behind.writes.figures().bytes == 0


def test_a_value_that_changes_often_is_made_when_it_is_written(behind: Behind) -> None:
    made: list[int] = []

    def make() -> Row:
        made.append(1)
        return Row(BINDINGS, b"1", b"v", FOREVER)

    for _ in range(100):
        behind.writes.put_later(BINDINGS, b"1", make)
    assert made == []
    behind.pass_time(FLUSH)
    assert made == [1]


def test_a_value_that_cannot_be_made_keeps_no_other_back(behind: Behind, log: Any) -> None:
    behind.writes.put_later(BINDINGS, b"1", lambda: Row(BINDINGS, b"1", bytes(-1), FOREVER))
    behind.writes.put(owner(b"2"))
    behind.pass_time(FLUSH)
    assert behind.backend.written == [owner(b"2")]
    assert log() == ["a row of the state cannot be made"]


def test_what_waits_is_read_from_the_buffer(behind: Behind) -> None:
    calls = behind.backend.calls
    behind.writes.put(record(b"a" * 12))
    behind.writes.put(response(b"d", b"a" * 12))
    behind.writes.put(owner(b"o"))
    found = behind.read(Recall([(OWNERS, b"o")], b"d"))
    assert found == Recalled({(OWNERS, b"o"): b"a"}, [(b"a" * 12, b"x" * 10)])
    assert behind.backend.calls == calls, "expected no question"


def test_a_conversation_is_read_from_the_buffer_and_the_backend(behind: Behind) -> None:
    root, leaf = b"a" * 12, b"b" * 12
    behind.writes.put(record(root))
    behind.pass_time(FLUSH)
    behind.writes.put(record(leaf, root, root))
    behind.writes.put(response(b"d", leaf, root))
    found = behind.read(Recall((), b"d"))
    assert [key for key, _ in found.records] == [leaf, root]
    behind.writes.put(deletion(root))
    assert behind.read(Recall((), b"d")).records == [(leaf, b"x" * 10)], "incomplete, so unknown"


def test_a_conversation_that_is_about_to_be_deleted_is_not_read(behind: Behind) -> None:
    root = b"a" * 12
    behind.writes.put(record(root))
    behind.writes.put(response(b"d", root))
    behind.pass_time(FLUSH)
    assert behind.read(Recall((), b"d")).records
    behind.writes.put(deletion(root))
    assert not behind.read(Recall((), b"d")).records
    behind.backend.hangs = True
    behind.clock.advance(FLUSH)
    behind.pass_time(0.2)
    assert behind.writes.figures().rows == 1
    behind.backend.go_on()
    assert not behind.read(Recall((), b"d")).records


def test_a_record_that_is_written_again_stays_before_its_children(behind: Behind) -> None:
    root, leaf = b"a" * 12, b"b" * 12
    behind.writes.put(record(root))
    behind.writes.put(record(leaf, root, root))
    behind.writes.put(record(root, size=20))
    behind.pass_time(FLUSH)
    assert [row.key for row in behind.backend.written] == [root, leaf]
    behind.writes.put(record(root))
    behind.writes.put(deletion(root))
    behind.writes.put(record(root))
    behind.pass_time(FLUSH)
    assert [row.value is None for row in behind.backend.written[2:]] == [True, False]


def test_a_record_of_a_failed_batch_stays_before_its_children(behind: Behind) -> None:
    root, leaf = b"a" * 12, b"b" * 12
    behind.backend.hangs = True
    behind.writes.put(record(root))
    behind.writes.put(record(leaf, root, root))
    behind.writes.put(response(b"d" * 16, leaf, root))
    behind.clock.advance(FLUSH)
    behind.writes.put(record(root, size=20))
    behind.pass_time(11.0)
    assert behind.writes.figures().why == "it does not answer in time"
    behind.backend.begin_anew()
    behind.backend.forget_what_hung()
    behind.pass_time(4 * LATER)
    found = behind.backend.database.read(Recall((), b"d" * 16)).records
    assert [(key, len(value)) for key, value in found] == [(leaf, 10), (root, 20)]


# --- failures ------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_what_waited_is_there_afterwards(
    behind: Behind, log: Any
) -> None:
    behind.writes.put(owner(b"before"))
    behind.pass_time(FLUSH)
    behind.backend.write_trouble = disk_full()
    for number in range(50):
        behind.writes.put(owner(b"%d" % number))
        behind.pass_time(3.0)
    why = "/somewhere/state.db cannot be used: database or disk is full"
    said = f"the state cannot be kept in sqlite /somewhere: {why}; turns go on from memory"
    assert log() == [said]
    figures = behind.writes.figures()
    assert (figures.why, figures.rows) == (why, 50)
    assert figures.since == pytest.approx(1_000_000.2 + FLUSH, abs=0.5)
    assert behind.read(Recall([(OWNERS, b"before")])).rows, "a full disk can be read"
    behind.backend.write_trouble = None
    behind.pass_time(LATER)
    assert log() == [said, "the state is kept again in sqlite /somewhere"]
    figures = behind.writes.figures()
    assert (figures.why, figures.since, figures.rows, figures.written) == (None, None, 0, 51)
    assert len(behind.backend.database.read(Recall([(OWNERS, b"7"), (OWNERS, b"49")])).rows) == 2


def test_a_backend_that_cannot_be_opened_is_tried_again(log: Any) -> None:
    behind = Behind()
    behind.backend.trouble = StateError("it is locked")
    behind.started()
    behind.writes.put(owner(b"1"))
    assert isinstance(behind.read(Recall([(OWNERS, b"2")])), Failure)
    behind.pass_time(60.0)
    assert len(log()) == 1, "one line, however often it is tried"
    assert behind.backend.calls < 15, "less and less often"
    behind.backend.trouble = None
    behind.pass_time(LATER)
    assert behind.backend.written == [owner(b"1")]
    assert "bindings" in behind.loaded, "the tables are loaded when it can be reached"


def test_a_backend_that_hangs_stops_no_read_for_long_and_gets_nothing_twice(
    behind: Behind,
) -> None:
    behind.backend.hangs = True
    behind.writes.put(owner(b"1"))
    behind.clock.advance(FLUSH)
    answer = behind.writes.read(Recall([(OWNERS, b"2")]))
    assert value_of(answer) is None
    behind.pass_time(1.1)
    assert behind.read(Recall([(OWNERS, b"3")])).check(StateError), "from now on at once"
    behind.pass_time(60.0)
    assert behind.writes.figures().why == "it does not answer in time"
    assert behind.read(Recall([(OWNERS, b"1")])).rows, "what waits is known"
    behind.backend.go_on()
    behind.pass_time(LATER)
    assert {row.key for row in behind.backend.written} == {b"1"}
    assert behind.writes.figures().rows == 0


def test_a_read_that_comes_as_the_backend_opens_waits_for_it() -> None:
    behind = Behind()
    behind.backend.database.write([owner(b"1")])
    behind.backend.hangs = True
    behind.started()
    answer = behind.writes.read(Recall([(OWNERS, b"1")]))
    assert not answer.called
    behind.backend.go_on()
    assert value_of(answer).rows == {(OWNERS, b"1"): b"a"}


def test_a_bug_of_a_backend_ends_nothing(behind: Behind, log: Any) -> None:
    behind.backend.write_trouble = ZeroDivisionError()
    behind.writes.put(owner(b"1"))
    behind.pass_time(1.0)
    assert log()[0] == "the state failed"
    behind.backend.write_trouble = None
    behind.pass_time(LATER)
    assert behind.writes.figures().rows == 0


# --- bounds --------------------------------------------------------------------------------


def test_at_the_bound_the_tenant_with_the_most_loses_its_oldest_content(log: Any) -> None:
    behind = Behind()
    behind.backend.trouble = StateError("gone")
    behind.started()
    megabyte = 1 << 20
    small = Row(RECORDS, b"small", b"x" * megabyte, FOREVER, "desk", "c1")
    behind.writes.put(small)
    behind.writes.put(deletion(b"r" * 12))
    behind.writes.put(owner(b"o"))
    for number in range(70):
        behind.writes.put(record(b"%012d" % number, size=megabyte))
    figures = behind.writes.figures()
    assert figures.bytes <= MAX_PENDING_BYTES
    assert figures.dropped > 5
    assert log()[1:] == ["the state is written too slowly: some conversations are not written"]
    behind.backend.trouble = None
    losses = behind.writes.losses
    behind.pass_time(LATER)
    written = behind.backend.written
    assert small in written
    assert owner(b"o") in written
    assert deletion(b"r" * 12) in written
    assert written[-1].key == b"%012d" % 69
    assert behind.writes.losses == losses + 1, "conversations are written again as a whole"


def test_what_a_failed_batch_pushes_out_is_written_again(behind: Behind, log: Any) -> None:
    behind.backend.hangs = True
    megabyte = 1 << 20
    for number in range(4):
        behind.writes.put(record(b"%012d" % number, size=megabyte))
    behind.clock.advance(FLUSH)
    for number in range(4, 67):
        behind.writes.put(record(b"%012d" % number, size=megabyte))
    assert behind.writes.figures().dropped == 0
    losses = behind.writes.losses
    behind.pass_time(11.0)
    assert behind.writes.figures().dropped > 0
    assert log()[-1] == "the state is written too slowly: some conversations are not written"
    behind.backend.go_on()
    behind.pass_time(4 * LATER)
    assert behind.writes.losses == losses + 1, "conversations are written again as a whole"


def test_a_huge_record_pushes_nothing_out(behind: Behind) -> None:
    behind.writes.put(owner(b"1"))
    behind.writes.put(record(b"h" * 12, size=MAX_PENDING_BYTES))
    assert behind.writes.figures().dropped == 1
    behind.pass_time(FLUSH)
    assert behind.backend.written == [owner(b"1")]
    assert behind.writes.losses == 0, "it would not be written the next time, either"


# --- stopping ------------------------------------------------------------------------------


def test_a_stop_writes_what_waits(behind: Behind) -> None:
    for number in range(5000):
        behind.writes.put(owner(b"%d" % number))
    stopped = behind.writes.stop()
    assert stopped.called
    assert len(behind.backend.written) == 5000
    assert behind.backend.closed
    assert behind.clock.getDelayedCalls() == []
    assert behind.writes.stop().called, "a second stop does nothing"


@pytest.mark.parametrize("trouble", ["hangs", "fails", "was never there"])
def test_a_stop_takes_a_few_seconds_at_most(trouble: str, log: Any) -> None:
    behind = Behind()
    if trouble == "was never there":
        behind.backend.trouble = StateError("gone")
    behind.started()
    behind.writes.put(owner(b"1"))
    behind.backend.hangs = trouble == "hangs"
    if trouble == "fails":
        behind.backend.write_trouble = disk_full()
    stopped = behind.writes.stop()
    behind.pass_time(11.0)
    assert stopped.called
    assert "the last 1 changes of the state could not be written" in log()
    behind.backend.go_on()
    behind.pass_time(60.0)
    assert behind.clock.getDelayedCalls() == []


def test_each_transition_is_one_of_the_table() -> None:
    assert set(TRANSITIONS) == set(BackendState)
    behind = Behind().started()
    behind.writes.stop()
    with pytest.raises(AssertionError):
        behind.writes.start()


# --- any order of events -------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Rows of few keys, troubles and crashes, against what must be there."""

    def __init__(self) -> None:
        super().__init__()
        self.behind = Behind().started()
        self.now: dict[bytes, bytes | None] = {}
        self.number = 0

    @rule(key=st.sampled_from([b"a", b"b", b"c", b"d"]), deletes=st.booleans(), lazy=st.booleans())
    def put(self, key: bytes, deletes: bool, lazy: bool) -> None:
        self.number += 1
        value = None if deletes else b"%d" % self.number
        self.now[key] = value
        if lazy:
            self.behind.writes.put_later(OWNERS, key, lambda: owner(key, self.now[key]))
        else:
            self.behind.writes.put(owner(key, value))

    @rule(seconds=st.sampled_from([0.05, 0.2, 1.0, 15.0]))
    def wait(self, seconds: float) -> None:
        self.behind.pass_time(seconds)

    @rule(which=st.sampled_from(["all", "writes", "none"]))
    def trouble(self, which: str) -> None:
        backend = self.behind.backend
        backend.trouble = StateError("gone") if which == "all" else None
        backend.write_trouble = disk_full() if which == "writes" else None

    @rule(hangs=st.booleans())
    def hang(self, hangs: bool) -> None:
        if hangs:
            self.behind.backend.hangs = True
        else:
            self.behind.backend.go_on()

    @rule()
    def ask_for_what_waits(self) -> None:
        for key, value in self.now.items():
            if self.behind.writes.waits(OWNERS, key):
                rows = self.behind.read(Recall([(OWNERS, key)])).rows
                assert rows == ({} if value is None else {(OWNERS, key): value})

    @rule()
    def recover(self) -> None:
        """When the trouble is over, everything is there."""
        self.well()
        assert self.behind.writes.figures().rows == 0
        self.compare()

    @rule()
    def crash(self) -> None:
        """What was acknowledged a flush interval before, in good times, is there."""
        self.well()
        self.behind.again().start()
        self.compare()

    def well(self) -> None:
        self.behind.backend.trouble = self.behind.backend.write_trouble = None
        self.behind.backend.go_on()
        self.behind.pass_time(2 * LATER)

    def compare(self) -> None:
        kept = {key: value for key, value in self.now.items() if value is not None}
        places = [(OWNERS, key) for key in self.now]
        found = self.behind.backend.database.read(Recall(places)).rows
        assert {key: value for (_, key), value in found.items()} == kept
        for key, value in kept.items():
            assert self.behind.read(Recall([(OWNERS, key)])).rows == {(OWNERS, key): value}

    @invariant()
    def what_waits_is_counted(self) -> None:
        figures = self.behind.writes.figures()
        assert 0 <= figures.bytes <= figures.rows * 200
        assert figures.dropped == 0


Machine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestAnyOrder = Machine.TestCase


def test_a_timeout_is_told_in_words() -> None:
    behind = Behind()
    behind.backend.trouble = TimeoutError()
    behind.started()
    assert behind.writes.figures().why == "it does not answer in time"
