"""What the page draws: the chain of a conversation, lines of figures, phases of turns."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.page.charts import (
    PHASES,
    ChainPicture,
    ChainRow,
    Json,
    Sparkline,
    chain_rows,
    column_count,
    phases,
)

forests = st.integers(1, 30).flatmap(
    lambda size: st.tuples(*(st.none() | st.integers(0, max(0, at - 1)) for at in range(size)))
)


def nodes(parents: tuple[int | None, ...]) -> list[Json]:
    return [
        {"id": f"r{at}", "parent": None if parent is None or parent >= at else f"r{parent}"}
        for at, parent in enumerate(parents)
    ]


def columns(*parents: int | None) -> list[int]:
    return [row.column for row in chain_rows(nodes(parents))]


def test_a_chain_stays_in_one_column() -> None:
    assert columns(None, 0, 1, 2) == [0, 0, 0, 0]


def test_a_fork_opens_a_column_and_a_leaf_frees_it() -> None:
    assert columns(None, 0, 0, 1) == [0, 0, 1, 0]
    assert columns(None, 0, 0, 1, None) == [0, 0, 1, 0, 0], "both branches ended before"


def test_a_parent_that_is_not_shown_is_none() -> None:
    (row,) = chain_rows([{"id": "late", "parent": "gone"}])
    assert (row.column, row.above) == (0, False)


def test_a_child_before_its_parent_harms_nobody() -> None:
    laid = chain_rows([{"id": "b", "parent": "a"}, {"id": "a", "parent": None}])
    assert [row.above for row in laid] == [False, False]
    assert chain_rows([{"id": "a", "parent": "a"}])[0].children == 0, "its own parent"


@given(forests)
def test_each_line_leads_from_a_response_to_its_continuation(
    parents: tuple[int | None, ...],
) -> None:
    laid = chain_rows(nodes(parents))
    at = {row.node["id"]: number for number, row in enumerate(laid)}
    drawn = 0
    for number, row in enumerate(laid):
        assert row.column not in row.passing, "a line runs through a dot"
        for column, child in row.forks:
            drawn += 1
            end = at[child["id"]]
            assert laid[end].column == column, "the line ends beside its dot"
            assert laid[end].above, "the dot has no line to it"
            for between in laid[number + 1 : end]:
                assert between.passing.get(column) is child, "the line is interrupted"
    assert drawn == sum(node["parent"] is not None for node in nodes(parents))
    assert column_count(laid) == 1 + max(max([row.column, *row.passing]) for row in laid)


@given(forests)
def test_it_is_no_wider_than_the_branches_that_are_open(parents: tuple[int | None, ...]) -> None:
    laid = chain_rows(nodes(parents))

    def open_at(row: ChainRow) -> int:
        return max(1, len(row.passing) + 1, len(row.passing) + len(row.forks))

    assert column_count(laid) <= max(map(open_at, laid))


def test_a_long_conversation_shows_its_newest_responses_and_says_so() -> None:
    picture = ChainPicture(nodes((None, *range(400))))
    assert len(picture.rows) == 300
    assert picture.rows[-1].node["id"] == "r400"
    assert picture.counts() == "300 responses, 1 root, 0 forks; 101 older ones are not shown"


def test_a_line_breaks_where_nothing_was_measured() -> None:
    line = Sparkline([1.0, None, 4.0, 2.0])
    assert line.peak == 4.0
    assert line.stroke == "M176 25.0M178 1.0L179 17.0"
    assert line.area == "M0 0", "no ground under a line with gaps"
    assert line.points == "1,,4,2"
    assert Sparkline([]).stroke == Sparkline([None]).stroke == "M0 0"


@given(
    st.fixed_dictionaries(
        {
            "attempts": st.lists(
                st.fixed_dictionaries(
                    {
                        name: st.none() | st.floats(0, 1e6)
                        for name in ("chosen_ms", "connected_ms", "first_byte_ms")
                    }
                ),
                max_size=3,
            ),
            "queued_ms": st.none() | st.floats(0, 1e6),
            "duration_ms": st.none() | st.floats(0, 1e6),
        }
    )
)
def test_phases_follow_one_another_without_gaps(turn: Json) -> None:
    found = phases(turn)
    ends = [0.0, *(phase.end for phase in found)]
    assert [phase.begin for phase in found] == ends[:-1], "a gap between two phases"
    assert ends == sorted(ends), "a phase that ends before it begins"
    names = [PHASES.index(phase.name) for phase in found]
    assert names == sorted(names), "phases out of order"
