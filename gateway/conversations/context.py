"""Chain or replay: how one turn's context reaches one account (design law 6, protocol.md §8).

Plain functions over records; nothing here waits or sends.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from gateway.conversations.deduplication import without_resent_history
from gateway.conversations.store import FoundItem, ResponseRecord, Transcript
from gateway.protocol.items import Item

#: Items that not every account can read.
_NOT_FOR_ALL = frozenset({"item_reference", "reasoning"})

#: Finds an item by its id in a tenant's conversations.
FindItem = Callable[[str], FoundItem | None]


class ContextRoute(enum.Enum):
    """How the context of a turn reaches its account."""

    ROOT = "root"
    CHAINED = "chained"
    REPLAYED = "replayed"
    PREWARM = "prewarm"


class ContextPlan(NamedTuple):
    """The context that is sent to an account.

    ``items`` is the whole ``input``, or None for the client's own bytes; ``reason`` is why the
    turn is replayed, for logs and the admin side.
    """

    route: ContextRoute
    previous_response_id: str | None
    items: list[bytes] | None
    reason: str | None


def chain_point(parent: Transcript | None) -> tuple[Transcript | None, list[Transcript]]:
    """The nearest response an upstream can know, and the gateway-made ones after it.

    :return: that response (None when there is none up to the root), and those between it and
        the new turn, oldest first.
    """
    after: list[Transcript] = []
    while parent is not None and not parent.record.held_upstream:
        after.append(parent)
        parent = parent.parent
    return parent, after[::-1]


class TargetAccount(NamedTuple):
    """The account that gets a plan, and what it can read.

    :ivar account: its name.
    :ivar keeps: whether it stores responses, so that it knows items of its own by their ids.
    :ivar store: whether the turn itself is stored there.
    :ivar drops_encrypted: whether encrypted reasoning is left out, because it refused it.
    :ivar find: finds an item by its id in the tenant's conversations.
    :ivar first: whether it is the first account that is tried; it may know ids that the gateway
        does not.
    """

    account: str
    keeps: bool = True
    store: bool = True
    drops_encrypted: bool = False
    find: FindItem = lambda _: None
    first: bool = True

    @property
    def may_know(self) -> bool:
        """Whether it may know an item whose id the gateway does not know."""
        return self.keeps and self.first


def chain_plan(
    previous: Transcript, after: Sequence[Transcript], new: Sequence[Item], to: TargetAccount
) -> ContextPlan:
    """Chain to a previous response, and send only what its account does not know.

    :param after: responses since then; no upstream has them, for example interrupted ones.
    """
    carried: list[bytes] = []
    chained = to._replace(store=previous.record.store, drops_encrypted=False)
    for each in after:
        carried += _carried(each.record, chained)
    own = sendable_items(without_resent_history(after[-1], new) if after else new, to, to.may_know)
    verbatim = not after and _is_verbatim(own, new)
    items = None if verbatim else carried + own
    named = previous.record.upstream_id or previous.record.id
    return ContextPlan(ContextRoute.CHAINED, named, items, None)


def replay_plan(
    parent: Transcript | None, new: Sequence[Item], to: TargetAccount, reason: str | None
) -> ContextPlan:
    """Send everything from the root on, without a previous response.

    :param reason: why a conversation is replayed; not used for a root.
    """
    path = list(parent.ancestry())[::-1] if parent is not None else []
    carried: list[bytes] = []
    for record in path:
        carried += _carried(record, to)
    own = sendable_items(without_resent_history(parent, new), to, to.may_know)
    if not any(record.held_upstream for record in path):
        verbatim = not path and _is_verbatim(own, new)
        return ContextPlan(ContextRoute.ROOT, None, None if verbatim else carried + own, None)
    return ContextPlan(ContextRoute.REPLAYED, None, carried + own, reason)


def sendable_items(items: Iterable[Item], to: TargetAccount, unknown: bool) -> list[bytes]:
    """The items as they may be sent to an account (protocol.md §8.3).

    No id of one account is sent to another.  An item that is only an id is sent as it is to the
    account that keeps it.  For other accounts it is replaced by the remembered item, or left out if
    they cannot read that.

    :param unknown: whether to send ids that the gateway does not know, since the account may.
    """
    sent: list[bytes] = []
    for item in items:
        raw = _as_sent(item, to, unknown) if item.type in _NOT_FOR_ALL else item.raw
        if raw is not None:
            sent.append(raw)
    return sent


def pin_of(
    parent: Transcript | None, items: Iterable[Item], find: FindItem = lambda _: None
) -> str | None:
    """The only account that can read ``items`` after ``parent``; None if any account can."""
    pin = parent.record.pinned_to if parent is not None else None
    for item in items:
        if item.type == "item_reference" and item.id is not None:
            found = find(item.id)
            item = item if found is None else found.item
        if item.needs_issuer and item.issuer is not None:
            pin = item.issuer
    return pin


def maker_of(items: Sequence[Item], find: FindItem) -> str | None:
    """The account that made the latest item of a model in ``items``, if that is remembered.

    Of a conversation that only another process remembers, the latest encrypted item says it.
    """
    latest = next((each for each in reversed(items) if each.is_model_made), None)
    found = None if latest is None or latest.id is None else find(latest.id)
    if found is not None:
        return found.record.account
    return next((each.issuer for each in reversed(items) if each.issuer is not None), None)


def _carried(record: ResponseRecord, to: TargetAccount) -> list[bytes]:
    """The items of a remembered response that may be sent to an account.

    Reasoning without encrypted content is sent only to the account that stores it.
    """
    known = to.keeps and record.account in (None, to.account)
    stored = known and record.store and record.held_upstream
    made = to._replace(find=lambda _: None)  # output items are remembered in full
    return sendable_items(record.input, to, known) + sendable_items(record.output, made, stored)


def _as_sent(item: Item, to: TargetAccount, unknown: bool) -> bytes | None:
    """Reasoning, or a reference, as it is sent to the account; None to leave it out."""
    if item.encrypted:
        return item.raw if _opens(item, to) else None
    readable = to.store or item.type != "reasoning"
    found = None if item.id is None else to.find(item.id)
    if found is None:
        return item.raw if unknown and readable else None
    if to.keeps and readable and found.is_known_to(to.account):
        return item.raw
    whole = found.item
    unreadable = whole.encrypted and whole.type == "reasoning" and not _opens(whole, to)
    if whole.is_reference or unreadable:
        return None
    return whole.raw


def _opens(item: Item, to: TargetAccount) -> bool:
    """Whether the account can read encrypted reasoning."""
    return not to.drops_encrypted and item.issuer in (None, to.account)


def _is_verbatim(own: Sequence[bytes], new: Sequence[Item]) -> bool:
    """Whether the whole input is sent as the client wrote it."""
    return own == [item.raw for item in new]
