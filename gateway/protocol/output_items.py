"""The output items of one answer, and the terminal event that lists them (protocol.md §4.3).

Upstreams announce an item more than once, and list it in the terminal event under another id.
An item that counted twice would make a client run a command twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import msgspec

from gateway.protocol.errors import UNREADABLE
from gateway.protocol.events import (
    TERMINALS,
    MalformedEvent,
    decode_members,
    raw_list,
    raw_value,
    sequence_number,
    text_of,
    value_of,
)
from gateway.protocol.items import Item, call_ids, item_content, read_item
from gateway.protocol.request import Members
from gateway.protocol.usage import complete_usage

#: Marks the key of an item that says that more of it is to come.
_UNFINISHED = "unfinished"

#: The states of a response that has ended.
_ENDED = frozenset({"completed", "failed", "incomplete", "cancelled"})

_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


class ListedOutput(NamedTuple):
    """The ``output`` of a terminal event beside what was streamed.

    :ivar missing: ``output_index`` and raw item of each that the client was not shown.
    :ivar items: all items of the answer in their final order, each as the client saw it.
    :ivar is_short: whether an item that was streamed is missing in it.
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
        place = first = self._end if index is None else index
        while place in self._items:
            place = self._skips.get(place, place + 1)
        self._skips[first] = place + 1
        self._put(place, item)

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
        shown_as = _pair(list(zip(indexes, shown, strict=True)), list(enumerate(final)))
        missing: list[tuple[int, bytes]] = []
        taken = set(indexes)
        order: list[int | bytes] = []
        for place, item in enumerate(final):
            which = shown_as.get(place)
            if which is None:
                index = place if place not in taken else max(taken) + 1
                taken.add(index)
                missing.append((index, item.raw))
                order.append(item.raw)
            else:
                order.append(which)
        paired = set(shown_as.values())
        for which in range(len(shown)):  # what was shown and is not listed stays where it was
            if which not in paired:
                order.insert(order.index(which - 1) + 1 if which else 0, which)
        items = [each if isinstance(each, bytes) else shown[each].raw for each in order]
        return ListedOutput(missing, items, is_short=len(paired) < len(shown))

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
            if _repeats(self._items[other], item, has_index=index is not None):
                return other
        return None

    def _place_of(self, key: Hashable) -> int | None:
        place = self._places.get(key)
        item = None if place is None else self._items.get(place)
        return place if item is not None and key in _keys(item) else None


def _name(item: Item) -> Hashable:
    return item.type, item.id, item.call_id


def _keys(item: Item) -> list[Hashable]:
    """By what an item may be found that another one repeats; see :func:`_repeats`."""
    name = _name(item)
    keys: list[Hashable] = [name, (name, item.raw)]
    return [*keys, (name, _UNFINISHED)] if item.unfinished else keys


def _replaces(older: Item, newer: Item) -> bool:
    """Whether two items of one ``output_index`` are one: neither says that it is another."""
    if older.call_id is not None and newer.call_id is not None:
        return older.call_id == newer.call_id and older.is_call_output == newer.is_call_output
    if older.type != newer.type:
        return False
    return older.id is None or newer.id is None or older.id == newer.id


def _repeats(older: Item, newer: Item, has_index: bool) -> bool:
    """Whether an item of another ``output_index``, or of none, is one that is known.

    An id alone does not say so: some services give several items the same one.
    """
    if _name(older) != _name(newer) or (older.id is None and older.call_id is None):
        return False
    if older.raw == newer.raw or not has_index:
        return True
    return (older.id is not None and older.call_id is not None) or older.unfinished


#: How shown and listed items are recognised as the same, the surest way first: by their place
#: and what they hold.  None is the key of no item.
_PAIRINGS: tuple[Callable[[int, Item], Hashable], ...] = (
    lambda place, item: item.raw,
    lambda place, item: None if item.call_id is None else (item.is_call_output, item.call_id),
    lambda place, item: None if item.id is None else (item.type, item.id),
    lambda place, item: item.id if call_ids(item) else None,
    lambda place, item: (item.type, item_content(item.raw)),
    lambda place, item: (item.type, place),
)


def _pair(shown: list[tuple[int, Item]], listed: list[tuple[int, Item]]) -> dict[int, int]:
    """Pair shown with listed items, each at most once.

    :return: place in the list -> which of the shown items it is.
    """
    unpaired = dict(enumerate(shown))
    unlisted = dict(listed)
    shown_as: dict[int, int] = {}
    for key in _PAIRINGS:
        if not unpaired or not unlisted:
            break
        waiting: dict[Hashable, list[int]] = defaultdict(list)
        for which in reversed(unpaired):
            waiting[key(*unpaired[which])].append(which)
        for place, item in list(unlisted.items()):
            name = key(place, item)
            if name is not None and waiting.get(name):
                which = waiting[name].pop()
                shown_as[place] = which
                del unpaired[which], unlisted[place]
    return shown_as


# --- the terminal event ------------------------------------------------------------------


class TerminalEvent(NamedTuple):
    """The end of an answer as the client gets it.

    :ivar events: what to relay, the terminal event last.
    :ivar items: all output items of the answer in their order, as the client saw them.
    """

    events: list[bytes]
    items: list[bytes]


def finish_terminal(
    data: bytes, kind: bytes, shown: Mapping[str, msgspec.Raw], items: OutputItems
) -> TerminalEvent:
    """What to send for an upstream's terminal event.

    It is sent verbatim unless that would harm a client.  Items that the client saw are added to an
    ``output`` without them, items that the client did not see are announced first, and ``usage``
    is completed.  The id and similar members are those of ``response.created``, and a type that
    clients do not know is replaced.

    :param kind: the event's type as the upstream named it.
    :param shown: members of the response as the client saw them in ``response.created``.
    :param items: the finished items that the client was shown.
    :raises MalformedEvent: when it has no response.
    """
    try:
        event = decode_members(data)
        response = decode_members(event["response"])
    except (KeyError, *UNREADABLE) as error:
        raise MalformedEvent(f"{kind.decode()} without a response object: {error}") from None
    changes = {**shown, **_repaired_members(response, kind)}
    listed, is_sound = _items_in(bytes(response.get("output", b"null")))
    compared = items.compare(listed)
    if compared.is_short or not is_sound:
        changes["output"] = raw_list(compared.items if compared.is_short else listed)
    number = max(sequence_number(data), 0)
    changed = {name: value for name, value in changes.items() if response.get(name) != value}
    if not changed and not compared.missing and TERMINALS[kind] == kind:
        return TerminalEvent([data], compared.items)
    announced = [
        msgspec.json.encode(
            {
                "type": "response.output_item.done",
                "sequence_number": number + offset,
                "output_index": index,
                "item": msgspec.Raw(raw),
            }
        )
        for offset, (index, raw) in enumerate(compared.missing)
    ]
    event["response"] = raw_value({**response, **changed})
    event["type"] = raw_value(TERMINALS[kind].decode())
    if announced:
        event["sequence_number"] = raw_value(number + len(announced))
    return TerminalEvent([*announced, msgspec.json.encode(event)], compared.items)


def _repaired_members(response: Members, kind: bytes) -> Members:
    """Members that would harm a client, as they should be."""
    changes: Members = {}
    usage = complete_usage(bytes(response.get("usage", b"null")))
    if usage is not None:
        changes["usage"] = msgspec.Raw(usage)
    if kind == b"response.cancelled":
        changes["incomplete_details"] = raw_value({"reason": "interrupted"})
    elif not isinstance(value_of(response.get("incomplete_details")), (dict, type(None))):
        changes["incomplete_details"] = raw_value(None)
    if TERMINALS[kind] != kind or text_of(response.get("status")) not in _ENDED:
        changes["status"] = raw_value(TERMINALS[kind].removeprefix(b"response.").decode())
    return changes


def _items_in(output: bytes) -> tuple[list[bytes], bool]:
    """The items that an ``output`` lists, and whether it is a list of nothing else."""
    try:
        entries = list(map(bytes, _decode_list(output)))
    except UNREADABLE:
        return [], False
    items = [entry for entry in entries if entry.startswith(b"{")]
    return items, len(items) == len(entries)
