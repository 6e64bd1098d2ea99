"""One account's stored responses: a forest with parent pointers, bounded by count and size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simulator.items import Item

if TYPE_CHECKING:
    from simulator.background import BackgroundRun


@dataclass(frozen=True, eq=False)
class Record:
    """A stored response. It holds its parent, so a chain outlives the eviction of its root."""

    response_id: str
    parent: Record | None
    input: Sequence[Item]
    output: Sequence[Item]
    response: Item = field(repr=False)
    size: int = 0
    #: What makes it, if it is made in the background.
    run: BackgroundRun | None = field(default=None, repr=False)

    def context(self) -> list[Item]:
        """Every item from the root of the chain to this response's output, in order."""
        chain: list[Record] = []
        record: Record | None = self
        while record is not None:
            chain.append(record)
            record = record.parent
        items: list[Item] = []
        for record in reversed(chain):
            items += record.input
            items += record.output
        return items


class ResponseStore:
    """The responses of one account by id, and their items by id; the oldest go first."""

    def __init__(self, max_count: int = 10_000, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._items: dict[str, Item] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def keep(self, record: Record) -> None:
        """Remember a response, in place of an earlier state of the same one."""
        self.forget(record.response_id)
        self._records[record.response_id] = record
        self._bytes += record.size
        for item in (*record.input, *record.output):
            if isinstance(item.get("id"), str):
                self._items[item["id"]] = item
        while len(self._records) > self._max_count or (
            self._bytes > self._max_bytes and len(self._records) > 1
        ):
            self.forget(next(iter(self._records)))

    def get(self, response_id: str) -> Record | None:
        return self._records.get(response_id)

    def item(self, item_id: str) -> Item | None:
        """A stored item, for references to it by id alone."""
        return self._items.get(item_id)

    def forget(self, response_id: str) -> bool:
        """Drop one response; False if it was not there."""
        record = self._records.pop(response_id, None)
        if record is None:
            return False
        self._bytes -= record.size
        for item in (*record.input, *record.output):
            self._items.pop(item.get("id", ""), None)
        return True
