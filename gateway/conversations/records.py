"""What is remembered of a response, and the interface of the places that remember.

The ledger is a forest: a record points to the record it continued.  Clients fork, undo,
restart and compact on one connection, so a list per socket would lie (design law 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import msgspec

from gateway.protocol.items import Item


class ResponseRecord(msgspec.Struct, eq=False):
    """One response.

    :ivar tenant: the client key that may continue it (design law 14).
    :ivar parent: the response it continued, or None for a root.
    :ivar input: the items the client sent with it, without a history that it sent again.
    :ivar output: the finished items the client saw, in ``output_index`` order.
    :ivar account: the account that made it; None for one the gateway made.
    :ivar store: whether the upstream was allowed to keep it.
    :ivar held_upstream: whether its account can know it under this id; false for prewarms
        and interrupted responses.
    :ivar created_at: unix seconds.
    :ivar pinned_to: the one account that can read the transcript up to here, when a sealed
        item binds it (protocol.md §8.3.9).
    :ivar evicted: no longer to be continued by its id; its descendants live on (§6.2).
    :ivar foreign: not ours: a client named it, and only an upstream may know what it holds.
    """

    tenant: str
    id: str
    parent: ResponseRecord | None
    input: tuple[Item, ...]
    output: tuple[Item, ...]
    account: str | None
    store: bool
    held_upstream: bool
    model: str | None
    created_at: float
    pinned_to: str | None = None
    evicted: bool = False
    foreign: bool = False

    def ancestry(self) -> Iterator[ResponseRecord]:
        """This record, its parent, and so on to the root."""
        record: ResponseRecord | None = self
        while record is not None:
            yield record
            record = record.parent

    def items(self) -> tuple[Item, ...]:
        """What it adds to a transcript: its input, then its output."""
        return self.input + self.output


class FoundItem(NamedTuple):
    """An item that is remembered, and the response that brought it.

    :ivar made: it is of the response's output; otherwise the client sent it.
    """

    item: Item
    record: ResponseRecord
    made: bool

    def is_kept_by(self, account: str) -> bool:
        """Whether ``account`` made it and was asked to keep it."""
        record = self.record
        return self.made and record.account == account and record.store and record.held_upstream

    def is_known_to(self, account: str) -> bool:
        """Whether ``account`` may know it by its id: it keeps it, or took it by that before."""
        if self.made or not self.item.by_id:
            return self.is_kept_by(account)
        return self.record.store and self.record.account in (None, account)


def foreign_record(tenant: str, response_id: str, owner: str | None) -> ResponseRecord:
    """Stands for a response that an upstream may know and we do not.

    :param owner: the account that keeps it; None where any may.
    """
    return ResponseRecord(
        tenant=tenant,
        id=response_id,
        parent=None,
        input=(),
        output=(),
        account=owner,
        store=True,
        held_upstream=True,
        model=None,
        created_at=0.0,
        pinned_to=owner,
        foreign=True,
    )


class StoreFigures(msgspec.Struct, frozen=True):
    """The size of a ledger against its bound, for the admin side.

    :ivar longest_unused: seconds since the last use of the conversation that is forgotten next.
    """

    responses: int
    conversations: int
    bytes: int
    max_bytes: int
    evicted_conversations: int
    longest_unused: float | None = None


class ConversationStore(Protocol):
    """Remembers responses per tenant.  Reads come from memory and never wait (law 10)."""

    def get(self, tenant: str, response_id: str) -> ResponseRecord | None:
        """The record, or None when this tenant has none of that id (any more), or a foreign one."""

    def find_item(self, tenant: str, item_id: str) -> FoundItem | None:
        """The newest item of this id in any conversation of the tenant's, or None."""

    def add(self, record: ResponseRecord) -> None:
        """Remember a response; its parent, when it has one, came from :meth:`get`."""

    def evict(self, record: ResponseRecord) -> None:
        """Let ``record`` no longer be continued."""

    def expire(self) -> None:
        """Forget what is too old."""

    def conversation(self, tenant: str, response_id: str) -> list[ResponseRecord]:
        """All of the conversation that holds this response, the earliest first.

        For one who only looks: nothing is kept alive by it.
        """

    def forget(self, tenant: str, response_id: str) -> int:
        """Forget the whole conversation that holds this response.

        :return: how many responses are forgotten.
        """

    def figures(self) -> StoreFigures:
        """How much is remembered."""
