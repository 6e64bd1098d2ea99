"""Where the responses of a conversation stand in its picture: rows by time, columns by fork.

The picture is drawn as version control systems draw their histories: a response is a row, the
first continuation of a response stays in its column, each other one opens a column of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.admin.page.source import Json


@dataclass
class Row:
    """One response, and the lines that pass it.

    :ivar column: where its dot is.
    :ivar passing: columns whose lines run from the row above to the row below.
    :ivar above: whether a line comes down to its dot.
    :ivar forks: columns of its continuations; its own among them when one stays there.
    :ivar children: how many responses continue it.
    """

    node: Json
    column: int
    above: bool
    passing: dict[int, Json] = field(default_factory=dict)
    forks: list[tuple[int, Json]] = field(default_factory=list)

    @property
    def children(self) -> int:
        """How many responses continue it."""
        return len(self.forks)


def rows(nodes: Sequence[Json]) -> list[Row]:
    """Lay the forest out, roots first.

    :param nodes: with ``id`` and ``parent``, each parent before its children or not here at all.
    """
    children: dict[str, list[Json]] = defaultdict(list)
    known = {node["id"] for node in nodes}
    for node in nodes:
        if node.get("parent") in known:
            children[node["parent"]].append(node)
    laid: list[Row] = []
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
        row = Row(node, column, above, dict(taken))
        for child in children[node["id"]]:
            # a child that stands before its parent has been drawn as a root
            if child["id"] in reserved or child["id"] in drawn:
                continue
            own = column if column not in taken else _free(taken)
            taken[own] = child
            reserved[child["id"]] = own
            row.forks.append((own, child))
        laid.append(row)
    return laid


def width(laid: Sequence[Row]) -> int:
    """How many columns there are."""
    return 1 + max((max([row.column, *row.passing]) for row in laid), default=0)


def _free(taken: dict[int, Json]) -> int:
    return next(column for column in range(len(taken) + 1) if column not in taken)
