"""The rows that wait to be written: in order, one of each key, bounded, and readable meanwhile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeGuard

from twisted.logger import Logger

from gateway.state.backend import RECORDS, RESPONSES, Recall, Row

#: Bounds on what waits to be written, and on one batch.
MAX_PENDING_BYTES = 64 * 1024 * 1024
MAX_PENDING_ROWS = 200_000
BATCH_BYTES = 4 * 1024 * 1024
BATCH_ROWS = 2_000

#: A row above this is not kept: it would push out everything else.
MAX_ROW_BYTES = MAX_PENDING_BYTES // 2

#: At a bound so much is left, so that not every row drops others.
_DROP_SHARE = 0.75

_log = Logger(namespace="gateway.state")

#: Makes a row when it is written: only then a value that changes often is encoded.
MakeRow = Callable[[], "Row | None"]

#: A table and a key; of the deletion of a conversation its name is the key.
Place = tuple[str, bytes]


class PendingRows:
    """The rows that wait, and the batch that is on its way.

    :ivar bytes: of the rows that wait; of those that are made later only the count is bounded.
    :ivar dropped: rows that were dropped at a bound.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.dropped = 0
        self._waiting: dict[Place, Row | MakeRow] = {}
        self._sent: dict[Place, Row] = {}
        self._is_too_large_known = False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent)

    @property
    def waiting(self) -> int:
        """Rows that are in no batch yet."""
        return len(self._waiting)

    @property
    def sent(self) -> int:
        """Rows of the batch that is on its way."""
        return len(self._sent)

    # --- adding ------------------------------------------------------------------------

    def put(self, row: Row) -> bool:
        """Add a row; it replaces one of the same key that waits.

        :return: whether no row had to be dropped that could be written another time.
        """
        if row.size > MAX_ROW_BYTES:
            if not self._is_too_large_known:
                self._is_too_large_known = True
                _log.error("a response of {bytes} bytes is too large to be kept", bytes=row.size)
            self.dropped += 1
            return True
        place = place_of(row)
        self._uncount(self._waiting.get(place))
        if not self._keeps_place(row):
            self._waiting.pop(place, None)
        self._waiting[place] = row
        self.bytes += row.size
        return self._shrink()

    def put_later(self, table: str, key: bytes, make: MakeRow) -> bool:
        """Add the row that ``make`` returns when it is written.

        :return: whether no row had to be dropped.
        """
        self._uncount(self._waiting.get((table, key)))
        self._waiting[table, key] = make
        return self._shrink()

    def _keeps_place(self, row: Row) -> bool:
        """Whether it is written where the row that it replaces would be.

        A record must not come after those that continue it, and not before the deletion of its
        conversation.
        """
        if row.table != RECORDS or not row.key:
            return False
        deletion = (RECORDS, row.conversation.encode())
        if deletion not in self._waiting:
            return True
        first = next(each for each in self._waiting if each in (deletion, place_of(row)))
        return first == deletion

    def _uncount(self, row: Row | MakeRow | None) -> None:
        if isinstance(row, Row):
            self.bytes -= row.size

    # --- writing -----------------------------------------------------------------------

    def next_batch(self) -> list[Row]:
        """Begin the next batch, the oldest rows first; nothing while one is on its way."""
        size = 0
        if self._sent:
            return []
        while self._waiting and len(self._sent) < BATCH_ROWS and size < BATCH_BYTES:
            place = next(iter(self._waiting))
            waiting = self._waiting.pop(place)
            self._uncount(waiting)
            row = waiting if isinstance(waiting, Row) else _made(waiting)
            if row is not None:
                self._sent[place] = row
                size += row.size
        return list(self._sent.values())

    def batch_written(self) -> None:
        """The batch need not be kept any longer."""
        self._sent = {}

    def batch_failed(self) -> bool:
        """Keep the rows of the batch for the next one, before newer ones; newer values win.

        :return: whether no row had to be dropped.
        """
        sent, later = self._sent, self._waiting
        self._sent, self._waiting = {}, {}
        deleted: set[str] = {row.conversation for row in later.values() if _is_deletion(row)}
        # Backwards: what is deleted after a record in the batch is known when it comes.
        for place, row in reversed(sent.items()):
            newer = later.get(place)
            if newer is None:
                self._waiting[place] = row
                self.bytes += row.size
            elif row.table == RECORDS and row.key and row.conversation not in deleted:
                self._waiting[place] = newer  # before those that continue it
            if _is_deletion(row):
                deleted.add(row.conversation)
        self._waiting = dict(reversed(self._waiting.items()))
        self._waiting.update(later)
        return self._shrink()

    # --- reading -----------------------------------------------------------------------

    def find(self, place: Place) -> Row | None:
        """The newest row of this place, or None."""
        found = self._waiting.get(place) or self._sent.get(place)
        return _made(found) if callable(found) else found

    def has(self, table: str, key: bytes) -> bool:
        """Whether a row waits, so that what the backend has of it is old."""
        return (table, key) in self._waiting or (table, key) in self._sent

    def deletes(self, root: bytes) -> bool:
        """Whether the conversation of this first record is deleted, but not yet in the backend."""
        return self.has(RECORDS, root.hex().encode())

    def records(self, response: bytes | None) -> tuple[list[tuple[bytes, bytes]], Recall]:
        """The records that wait, and what the backend must be asked for.

        A record is written after its parent, so those that wait are the latest ones.
        """
        index = None if response is None else self.find((RESPONSES, response))
        if index is None:
            return [], Recall((), response)
        records: list[tuple[bytes, bytes]] = []
        key = index.value or b""
        while key:
            row = self.find((RECORDS, key))
            if row is None or row.value is None:
                break
            records.append((row.key, row.value))
            key = row.parent
        return records, Recall((), None, key or None, index.conversation)

    # --- bounds ------------------------------------------------------------------------

    def _shrink(self) -> bool:
        """Drop rows if there are too many; whether there were not.

        The oldest content of the tenants with the most goes first: the small rows say more per
        byte, and what is deleted must not come back.
        """
        if self.bytes <= MAX_PENDING_BYTES and len(self._waiting) <= MAX_PENDING_ROWS:
            return True
        contents: dict[str, list[tuple[Place, int]]] = defaultdict(list)
        for place, row in self._waiting.items():
            if place[0] in (RECORDS, RESPONSES) and isinstance(row, Row) and row.value is not None:
                contents[row.tenant].append((place, row.size))
        sizes = {tenant: sum(size for _, size in of) for tenant, of in contents.items()}
        others = self.bytes - sum(sizes.values())
        level = _level(list(sizes.values()), MAX_PENDING_BYTES * _DROP_SHARE - others)
        for tenant, places in contents.items():
            left = sizes[tenant]
            for place, size in places:
                if left <= level:
                    break
                left -= size
                self._drop(place)
        if self.bytes > MAX_PENDING_BYTES or len(self._waiting) > MAX_PENDING_ROWS:
            surplus = len(self._waiting) - int(MAX_PENDING_ROWS * _DROP_SHARE)
            for place in list(self._waiting)[: max(1, surplus)]:
                self._drop(place)
        return False

    def _drop(self, place: Place) -> None:
        self._uncount(self._waiting.pop(place))
        self.dropped += 1


def place_of(row: Row) -> Place:
    """Where a row is kept."""
    return row.table, row.key or row.conversation.encode()


def _is_deletion(row: Row | MakeRow) -> TypeGuard[Row]:
    """Whether it deletes a conversation."""
    return isinstance(row, Row) and row.table == RECORDS and not row.key


def _made(make: MakeRow) -> Row | None:
    """The row; one that cannot be made keeps no other from being written."""
    try:
        return make()
    except Exception:
        _log.failure("a row of the state cannot be made")
        return None


def _level(sizes: Sequence[float], room: float) -> float:
    """What each may keep of its size, so that all together fit: as much as possible, and equal."""
    room = max(0.0, room)
    for index, size in enumerate(sorted(sizes)):
        share = room / (len(sizes) - index)
        if size > share:
            return share
        room -= size
    return max(sizes, default=0.0)
