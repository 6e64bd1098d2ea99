"""The output items of one answer: which the client was shown, and which are the same (§4.3).

Upstreams announce an item more than once, and list it in the terminal event under another id.
An item that counted twice would make a client run a command twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from gateway.protocol.items import Item, is_unfinished, item_content, names_of_call, read_item

#: Marks the key of what says that more of it is to come.
_UNFINISHED = "unfinished"


class ListedOutput(NamedTuple):
    """The ``output`` of a terminal event beside what was streamed.

    :ivar missing: ``output_index`` and raw item of each that the client was not shown.
    :ivar items: all items of the answer in their final order, each as the client saw it.
    :ivar is_short: whether it lacks an item that was streamed.
    """

    missing: list[tuple[int, bytes]]
    items: list[bytes]
    is_short: bool = False


class OutputItems:
    """The finished items of one answer, by ``output_index`` (design law 3)."""

    def __init__(self) -> None:
        self._items: dict[int, Item] = {}
        #: Where an item of each key is, or was; see :func:`_keys`.
        self._places: dict[Hashable, int] = {}
        #: Where the search for a free place went on from a taken one.
        self._skips: dict[int, int] = {}
        self._end = 0

    @property
    def raw(self) -> list[bytes]:
        """The items as the client saw them, in order."""
        return [self._items[index].raw for index in sorted(self._items)]

    def add(self, index: int | None, raw: bytes) -> None:
        """Remember an item that the client was shown.

        The newer of two that are the same item counts.  Another one whose place is taken
        gets a free place behind it, and one without a place the last.

        :param index: its ``output_index``, or None where the event has none.
        """
        item = read_item(raw)
        older = self._older(index, item)
        if older is not None:
            del self._items[older]
            index = older if index is None else index
        self._put(self._free_from(self._end if index is None else index), item)

    def _put(self, place: int, item: Item) -> None:
        """Remember an item at a place that is free."""
        self._items[place] = item
        self._end = max(self._end, place + 1)
        for key in _keys(item):
            if self._place_of(key) is None:
                self._places[key] = place

    def settle(self, raw_items: list[bytes]) -> None:
        """Take these for the items of the answer, in this order."""
        if raw_items == self.raw:
            return
        self._items = {}
        self._places = {}
        self._skips = {}
        self._end = 0
        for index, raw in enumerate(raw_items):
            self._put(index, read_item(raw))

    def compare(self, listed: list[bytes]) -> ListedOutput:
        """Find what a terminal event lists and the client was not shown.

        The same ``call_id`` is the same call, of whatever type; else the same ``id`` is the
        same item; else the same content; else the same type at the same place.

        :param listed: the raw items of the event's ``output``.
        """
        known = self.raw
        if listed == known:
            return ListedOutput([], known)
        indexes = sorted(self._items)
        shown = [self._items[index] for index in indexes]
        final = [read_item(raw) for raw in listed]
        pairs = _Pairs(list(zip(indexes, shown, strict=True)), list(enumerate(final)))
        for key in (_bytes, _call, _type_and_id, _id_of_call, _content, _type_and_place):
            pairs.join(key)
        missing: list[tuple[int, bytes]] = []
        taken = set(indexes)
        order: list[int | bytes] = []
        for place, item in enumerate(final):
            which = pairs.shown_as.get(place)
            if which is None:
                index = place if place not in taken else max(taken) + 1
                taken.add(index)
                missing.append((index, item.raw))
                order.append(item.raw)
            else:
                order.append(which)
        listed_ones = set(pairs.shown_as.values())
        for which in range(len(shown)):  # what was shown and is not listed stays where it was
            if which not in listed_ones:
                order.insert(order.index(which - 1) + 1 if which else 0, which)
        items = [each if isinstance(each, bytes) else shown[each].raw for each in order]
        return ListedOutput(missing, items, is_short=len(listed_ones) < len(shown))

    def _older(self, index: int | None, item: Item) -> int | None:
        """The place of the item that ``item`` is a newer state of."""
        at_its_place = self._items.get(index) if index is not None else None
        if at_its_place is not None and _replaces(at_its_place, item):
            return index
        name = _name(item)
        for key in (name, (name, item.raw), (name, _UNFINISHED)):
            other = self._place_of(key)
            if other is None or other == index:
                continue
            if _repeats(self._items[other], item, told_where=index is not None):
                return other
        return None

    def _place_of(self, key: Hashable) -> int | None:
        place = self._places.get(key)
        item = None if place is None else self._items.get(place)
        return place if item is not None and key in _keys(item) else None

    def _free_from(self, index: int) -> int:
        place = index
        while place in self._items:
            place = self._skips.get(place, place + 1)
        self._skips[index] = place + 1
        return place


def _name(item: Item) -> Hashable:
    return item.type, item.id, item.call_id


def _keys(item: Item) -> list[Hashable]:
    """By what an item may be found that another one repeats; see :func:`_repeats`."""
    name = _name(item)
    return [name, (name, item.raw), *([(name, _UNFINISHED)] if is_unfinished(item.raw) else [])]


def _replaces(older: Item, newer: Item) -> bool:
    """Whether two items of one ``output_index`` are one: neither says that it is another."""
    if older.call_id is not None and newer.call_id is not None:
        return older.call_id == newer.call_id and older.is_answer == newer.is_answer
    if older.type != newer.type:
        return False
    return older.id is None or newer.id is None or older.id == newer.id


def _repeats(older: Item, newer: Item, told_where: bool) -> bool:
    """Whether an item of another ``output_index``, or of none, is one that is known.

    An id alone does not say so: some services give several items the same one.
    """
    if older.type != newer.type or older.id != newer.id or older.call_id != newer.call_id:
        return False
    if older.id is None and older.call_id is None:
        return False
    if older.raw == newer.raw or not told_where:
        return True
    return (older.id is not None and older.call_id is not None) or is_unfinished(older.raw)


class _Pairs:
    """Joins shown with listed items, each at most once.

    :ivar shown_as: place in the list -> which of the shown items it is.
    """

    def __init__(
        self, shown: Sequence[tuple[int, Item]], listed: Sequence[tuple[int, Item]]
    ) -> None:
        self._shown = dict(enumerate(shown))
        self._listed = dict(listed)
        self.shown_as: dict[int, int] = {}

    def join(self, key: Callable[[int, Item], Hashable]) -> None:
        """Join what is left and has the same key, in order; None is nobody's key."""
        if not self._shown or not self._listed:
            return
        waiting: dict[Hashable, list[int]] = defaultdict(list)
        for which in reversed(self._shown):
            waiting[key(*self._shown[which])].append(which)
        for place, item in list(self._listed.items()):
            name = key(place, item)
            if name is not None and waiting.get(name):
                which = waiting[name].pop()
                self.shown_as[place] = which
                del self._shown[which], self._listed[place]


def _bytes(place: int, item: Item) -> Hashable:
    return item.raw


def _call(place: int, item: Item) -> Hashable:
    return None if item.call_id is None else (item.is_answer, item.call_id)


def _type_and_id(place: int, item: Item) -> Hashable:
    return None if item.id is None else (item.type, item.id)


def _id_of_call(place: int, item: Item) -> Hashable:
    return item.id if names_of_call(item) else None


def _content(place: int, item: Item) -> Hashable:
    return item.type, item_content(item.raw)


def _type_and_place(place: int, item: Item) -> Hashable:
    return item.type, place
