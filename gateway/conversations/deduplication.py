"""Deduplication of input: finds the part of the history that a client sends again.

A client that continues a response should send only new items.  Some send the whole history again,
or the last answer (protocol.md §8.3.4, §8.3.5).  Ids cannot identify repeated items: some services
number their calls anew in every round, and some clients give all messages one id.  So items are
compared by content and by their place in the conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from gateway.conversations.store import Transcript
from gateway.protocol.items import Item, item_content

_Key = tuple[str, str | None, bytes]


def without_resent_history(parent: Transcript | None, new: Sequence[Item]) -> Sequence[Item]:
    """The part of an input that the conversation does not contain yet.

    A repeated history begins the input, reaches to the end of the conversation and contains an
    item that a model made.  Reasoning and calls of hosted tools may be missing in it, because
    clients leave them out.  References to items of the conversation are dropped.

    :param parent: the response that the input continues, or None for a new conversation.
    :param new: the input as the client sent it.
    """
    if parent is None or not new:
        return new
    referred = {item.id for item in new if item.type == "item_reference"}
    if not referred:
        return new[_history_length(parent, new) :]
    known: dict[str | None, Item] = {}
    for item in _backwards(parent):
        if item.id in referred:
            known.setdefault(item.id, item)
    full = [known.get(item.id, item) if item.type == "item_reference" else item for item in new]
    cut = _history_length(parent, full)
    return [item for item in new[cut:] if not (item.type == "item_reference" and item.id in known)]


def _history_length(parent: Transcript, new: Sequence[Item]) -> int:
    """How many items at the beginning of ``new`` repeat the end of the conversation."""
    last = next(filter(_counts, _backwards(parent)), None)
    if last is None or not any(_looks_like(last, item) for item in new):
        return 0  # the usual case, and the cheap one
    places = [place for place, item in enumerate(new) if _counts(item)]
    end = list(islice(filter(_counts, _backwards(parent)), len(places)))[::-1]
    length = _overlap([_key(item) for item in end], [_key(new[place]) for place in places])
    if not length:
        return 0
    cut = places[length - 1] + 1
    trailing = set(map(_key, _uncounted_end(parent)))
    while cut < len(new) and not _counts(new[cut]) and _key(new[cut]) in trailing:
        cut += 1
    return cut if any(map(_is_model_made, new[:cut])) else 0


def _backwards(parent: Transcript) -> Iterator[Item]:
    """The items of the conversation, the latest first."""
    for record in parent.ancestry():
        yield from reversed(record.output)
        yield from reversed(record.input)


def _uncounted_end(parent: Transcript) -> Iterator[Item]:
    for item in _backwards(parent):
        if _counts(item):
            return
        yield item


def _counts(item: Item) -> bool:
    """Whether a repeated history must contain it; clients leave the others out."""
    return item.call_id is not None or item.role is not None or not item.is_model_made


def _is_model_made(item: Item) -> bool:
    return item.is_model_made or (item.type == "message" and item.role is None)


def _looks_like(one: Item, other: Item) -> bool:
    return one.type == other.type and one.call_id == other.call_id and one.role == other.role


def _key(item: Item) -> _Key:
    return item.type, item.call_id, item_content(item.raw)


def _overlap(end: list[_Key], beginning: list[_Key]) -> int:
    """The length of the longest suffix of ``end`` that is a prefix of ``beginning``.

    Uses the algorithm of Knuth, Morris and Pratt, which is linear for any input.
    """
    fallback = [0] * len(beginning)
    length = 0
    for place in range(1, len(beginning)):
        while length and beginning[place] != beginning[length]:
            length = fallback[length - 1]
        length += beginning[place] == beginning[length]
        fallback[place] = length
    length = 0
    for key in end:
        if length == len(beginning):
            length = fallback[length - 1]
        while length and key != beginning[length]:
            length = fallback[length - 1]
        length += key == beginning[length]
    return length
