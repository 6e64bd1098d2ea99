"""Chain or replay: how one turn's context reaches one account (design law 6, protocol.md §8).

Plain functions over records; nothing here waits or sends.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..protocol.items import Item
from .history import without_history
from .records import Record


class Route(enum.Enum):
    """How the context of a turn gets to its account."""

    ROOT = "root"
    CHAINED = "chained"
    REPLAYED = "replayed"
    PREWARM = "prewarm"


class Plan(NamedTuple):
    """What to send.

    ``items`` is the whole ``input``, or None for the client's own bytes; ``reason`` says
    why the turn is replayed, for logs and the admin side.
    """

    route: Route
    previous_response_id: str | None
    items: list[bytes] | None
    reason: str | None


def anchor_of(parent: Record | None) -> tuple[Record | None, list[Record]]:
    """The nearest response an upstream can know, and the gateway-made ones after it.

    :return: the anchor (None when there is none up to the root), and the records between
        it and the new turn, oldest first.
    """
    after: list[Record] = []
    if parent is not None:
        for record in parent.ancestry():
            if record.held_upstream:
                return record, after[::-1]
            after.append(record)
    return None, after[::-1]


def chain_plan(anchor: Record, after: Sequence[Record], new: Sequence[Item]) -> Plan:
    """Name the anchor and send only what its account does not know.

    Responses after the anchor may be another account's: an interrupted one is held nowhere.
    """
    account = anchor.account or ""
    carried: list[bytes] = []
    for record in after:
        carried += _carried(record, account, anchor.store, False)
    own = carry(without_history(after[-1], new) if after else new, account, True)
    verbatim = not after and len(own) == len(new)
    return Plan(Route.CHAINED, anchor.id, None if verbatim else carried + own, None)


def whole_plan(
    parent: Record | None,
    new: Sequence[Item],
    account: str,
    store: bool,
    reason: str | None,
    unsealed: bool = False,
) -> Plan:
    """Send everything from the root on, without a previous response.

    :param account: who will read it; decides which reasoning may go along.
    :param store: the turn's ``store``.
    :param reason: why a conversation is replayed; not used for a root.
    :param unsealed: leave out all sealed reasoning, whoever issued it.
    """
    path = list(parent.ancestry())[::-1] if parent is not None else []
    carried: list[bytes] = []
    for record in path:
        carried += _carried(record, account, store, unsealed)
    own = carry(without_history(parent, new), account, store, unsealed)
    if not any(record.held_upstream for record in path):
        verbatim = not path and len(own) == len(new)
        return Plan(Route.ROOT, None, None if verbatim else carried + own, None)
    return Plan(Route.REPLAYED, None, carried + own, reason)


def carry(items: Iterable[Item], account: str, store: bool, unsealed: bool = False) -> list[bytes]:
    """The items that may go to ``account``.

    Reasoning sealed by another account stays behind (§10.70), and so does reasoning that
    nothing stored and nothing sealed: its id would be unknown (§10.69).
    """
    return [
        item.raw
        for item in items
        if item.type != "reasoning" or _reasoning_may_go(item, account, store, unsealed)
    ]


def pin_of(parent: Record | None, items: Iterable[Item]) -> str | None:
    """The one account that can read ``items`` after ``parent``, when a seal binds them."""
    pin = parent.pinned_to if parent is not None else None
    for item in items:
        if item.seal_opens_nowhere_else and item.issuer is not None:
            pin = item.issuer
    return pin


def _carried(record: Record, account: str, store: bool, unsealed: bool) -> list[bytes]:
    """What of a remembered response may go to ``account``.

    Unsealed reasoning is found by its id: only where it was stored (§8.3.3, §8.3.9).
    """
    known = store and record.account in (None, account)
    stored = known and record.store and record.held_upstream
    return carry(record.input, account, known, unsealed) + carry(
        record.output, account, stored, unsealed
    )


def _reasoning_may_go(item: Item, account: str, store: bool, unsealed: bool) -> bool:
    if item.sealed:
        return not unsealed and item.issuer in (None, account)
    return store
