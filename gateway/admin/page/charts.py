"""What the page draws: lines of figures, the phases of a turn, the chain of a conversation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gateway.admin.page.formatting import counted

Json = dict[str, Any]

# --- a figure over the last 15 minutes -----------------------------------------------------

#: Points of a line: 15 minutes, one every five seconds.
POINTS = 180


class Sparkline:
    """A line chart without axes; its top is the highest value, which stands beside it.

    :param values: the oldest first; None where nothing was measured.
    :ivar peak: the highest value, or None.
    :ivar stroke: the line, as a path.
    :ivar area: the ground under the line where it has no gaps, as a path.
    :ivar points: the values, for the script that carries the line on.
    """

    WIDTH = POINTS - 1
    HEIGHT = 32

    def __init__(self, values: Sequence[float | None]) -> None:
        shown = list(values)[-POINTS:]
        self.peak = max((each for each in values if each is not None), default=None)
        self.stroke = self._stroke(shown)
        self.area = "M0 0"
        if shown and None not in shown:
            bottom = self.HEIGHT + 1
            ground = f"L{self.WIDTH} {bottom}L{POINTS - len(shown)} {bottom}Z"
            self.area = self.stroke + ground
        self.points = ",".join("" if each is None else f"{each:.4g}" for each in shown)

    def _stroke(self, values: Sequence[float | None]) -> str:
        top = max(max((each for each in values if each is not None), default=0.0), 1e-9)
        first = POINTS - len(values)
        steps = []
        pen = "M"
        for at, value in enumerate(values):
            if value is None:
                pen = "M"
                continue
            steps.append(f"{pen}{first + at} {self.HEIGHT + 1 - value / top * self.HEIGHT:.1f}")
            pen = "L"
        return "".join(steps) or "M0 0"


# --- where the time of a turn went ---------------------------------------------------------

#: In the order a turn goes through them, and what the page calls them.
PHASES = ("queue", "choose", "connect", "first byte", "stream")


class TurnSpan(NamedTuple):
    """A part of a turn's time, in milliseconds from when it was accepted."""

    name: str
    begin: float
    end: float


def phases(turn: Json) -> list[TurnSpan]:
    """Those of a turn record that are known; the attempt that answered is the last one.

    Failed attempts before it count as choosing: the turn had no account yet.
    """
    attempts = turn.get("attempts") or [{}]
    last = attempts[-1]
    ends = (
        turn.get("queued_ms"),
        last.get("chosen_ms"),
        last.get("connected_ms"),
        last.get("first_byte_ms"),
        turn.get("duration_ms"),
    )
    found = []
    begin = 0.0
    reached = 0
    for number, (name, end) in enumerate(zip(PHASES, ends, strict=True)):
        if end is None or end < begin:
            continue
        # A turn that ended early ended in the phase that it had not got through.
        if number == len(PHASES) - 1 and last.get("first_byte_ms") is None:
            name = PHASES[reached]
        found.append(TurnSpan(name, begin, end))
        begin = end
        reached = number + 1
    return found


# --- the chain of a conversation -----------------------------------------------------------

#: Responses of a picture; the newest are shown.
_MOST_RESPONSES = 300

#: Columns that are drawn; forks beyond them meet in the last.
_MOST_COLUMNS = 40

#: Between two columns and between two rows, in pixels.
_COLUMN_WIDTH = 14
_ROW_HEIGHT = 28


@dataclass
class ChainRow:
    """One response, and the lines that pass it.

    The picture is drawn as version control systems draw their histories: a response is a row,
    its first continuation stays in its column, each other one opens a column of its own.

    :ivar column: where its dot is.
    :ivar above: whether a line comes down to its dot.
    :ivar passing: columns with a line from the row above to the row below.
    :ivar forks: columns of its continuations; its own among them when one stays there.
    """

    node: Json
    column: int
    above: bool
    passing: dict[int, Json] = field(default_factory=dict)
    forks: list[tuple[int, Json]] = field(default_factory=list)

    y = _ROW_HEIGHT // 2

    @property
    def x(self) -> int:
        """Where its dot is, in pixels."""
        return _x(self.column)

    @property
    def children(self) -> int:
        """How many responses continue it."""
        return len(self.forks)

    def edges(self) -> Iterator[tuple[str, Json]]:
        """The lines of the row, as paths, each with the response that it leads to."""
        x, y = self.x, self.y
        for column, to in self.passing.items():
            yield f"M{_x(column)} 0V{_ROW_HEIGHT}", to
        if self.above:
            yield f"M{x} 0V{y}", self.node
        for column, to in self.forks:
            end = _x(column)
            curve = f"C{x} {_ROW_HEIGHT} {end} {y} {end} {_ROW_HEIGHT}"
            yield f"M{x} {y}" + (f"V{_ROW_HEIGHT}" if end == x else curve), to


class ChainPicture:
    """The newest responses of a conversation, laid out in rows.

    :param nodes: with ``id`` and ``parent``, the oldest first.
    :ivar left_out: how many older responses are not shown.
    """

    row_height = _ROW_HEIGHT

    def __init__(self, nodes: Sequence[Json]) -> None:
        self.rows = chain_rows(nodes[-_MOST_RESPONSES:])
        self.left_out = len(nodes) - len(self.rows)
        self.roots = sum(1 for row in self.rows if not row.above)
        self.forks = sum(max(0, row.children - 1) for row in self.rows)
        self.width = min(column_count(self.rows), _MOST_COLUMNS) * _COLUMN_WIDTH + 4

    def counts(self) -> str:
        """What is in the picture, in words."""
        shown = (("response", len(self.rows)), ("root", self.roots), ("fork", self.forks))
        said = ", ".join(counted(count, what) for what, count in shown)
        return said + (f"; {self.left_out} older ones are not shown" if self.left_out else "")


def chain_rows(nodes: Sequence[Json]) -> list[ChainRow]:
    """Lay the forest out, roots first.

    :param nodes: with ``id`` and ``parent``, each parent before its children or not here at all.
    """
    children: dict[str, list[Json]] = defaultdict(list)
    known = {node["id"] for node in nodes}
    for node in nodes:
        if node.get("parent") in known:
            children[node["parent"]].append(node)
    laid: list[ChainRow] = []
    drawn: set[str] = set()
    reserved: dict[str, int] = {}
    taken: dict[int, Json] = {}  # the response that a column leads to
    for node in nodes:
        drawn.add(node["id"])
        column = reserved.pop(node["id"], None)
        above = column is not None
        if column is None:
            column = _free(taken)
        taken.pop(column, None)
        row = ChainRow(node, column, above, dict(taken))
        for child in children[node["id"]]:
            # A child that stands before its parent has been drawn as a root.
            if child["id"] in reserved or child["id"] in drawn:
                continue
            own = column if column not in taken else _free(taken)
            taken[own] = child
            reserved[child["id"]] = own
            row.forks.append((own, child))
        laid.append(row)
    return laid


def column_count(laid: Sequence[ChainRow]) -> int:
    """How many columns there are."""
    return 1 + max((max([row.column, *row.passing]) for row in laid), default=0)


def route(node: Json) -> str:
    """How a response continues its parent: ``chained``, ``replayed`` or, not known, ``follows``."""
    return {"chained": "chained", "replayed": "replayed"}.get(str(node["route"]), "follows")


def _free(taken: dict[int, Json]) -> int:
    return next(column for column in range(len(taken) + 1) if column not in taken)


def _x(column: int) -> int:
    return min(column, _MOST_COLUMNS - 1) * _COLUMN_WIDTH + 9
