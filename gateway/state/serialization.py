"""The values of the state as bytes, and the digests that they are found by.

An account is written as its name with a digest of its base URL: what is kept of it does not hold
for another service that gets the same name later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec

from gateway.conversations.store import ResponseRecord, Transcript
from gateway.protocol.items import Item

_Value = TypeVar("_Value")

#: Base URLs without a scheme are those of the built-in simulator, which forgets at each start.
_THIS_PROCESS = os.urandom(8).hex()

#: What cannot be read was written by another version, or is damaged.
UNREADABLE_VALUE = (msgspec.DecodeError, msgspec.ValidationError, ValueError)

_encode = msgspec.msgpack.Encoder().encode


class AccountIds:
    """Converts the names of accounts to what is written, and back.

    :param accounts: the names and base URLs of the accounts in service.
    """

    def __init__(self, accounts: Iterable[tuple[str, str]] = ()) -> None:
        self._ids: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self.reconfigure(accounts)

    def reconfigure(self, accounts: Iterable[tuple[str, str]]) -> None:
        """Take these accounts from now on."""
        ids = {name: _account_id(name, base_url) for name, base_url in accounts}
        self._names = {each: name for name, each in ids.items()}
        # What is known of an account that has left may yet be written.
        self._ids.update(ids)

    def id_of(self, name: str) -> str | None:
        """What is written for an account; None when it was never in service."""
        return self._ids.get(name)

    def name_of(self, written: str | None) -> str | None:
        """The account's name; None when no such account is in service."""
        return None if written is None else self._names.get(written)


def _account_id(name: str, base_url: str) -> str:
    place = base_url if "://" in base_url else _THIS_PROCESS
    return f"{name}#{blake2b(place.encode(), digest_size=6).hexdigest()}"


def encode(value: Any) -> bytes:
    """Any value of the state."""
    return _encode(value)


def decode(data: bytes, kind: Callable[..., _Value] | type[_Value]) -> _Value | None:
    """The value, or None when it cannot be read."""
    try:
        value: _Value = msgspec.msgpack.decode(data, type=kind)
    except UNREADABLE_VALUE:
        return None
    return value


# --- records -------------------------------------------------------------------------------


class _WrittenRecord(msgspec.Struct, array_like=True, frozen=True):
    """A record with the ids of its accounts."""

    tenant: str
    id: str
    parent: str | None
    input: tuple[Item, ...]
    output: tuple[Item, ...]
    account: str | None
    store: bool
    held_upstream: bool
    model: str | None
    created_at: float
    pinned_to: str | None
    foreign: bool
    evicted: bool = False


_decode_record = msgspec.msgpack.Decoder(_WrittenRecord).decode


def encode_record(record: ResponseRecord, ids: AccountIds, evicted: bool = False) -> bytes:
    """A record, without its key.

    :param evicted: whether it can no longer be continued by its id.
    """
    return encode(
        _WrittenRecord(
            record.tenant,
            record.id,
            record.parent,
            tuple(_renamed(item, ids.id_of) for item in record.input),
            tuple(_renamed(item, ids.id_of) for item in record.output),
            None if record.account is None else ids.id_of(record.account) or record.account,
            record.store,
            # What lives on a connection does not outlive it.
            record.held_upstream and record.holder is None,
            record.model,
            record.created_at,
            None if record.pinned_to is None else ids.id_of(record.pinned_to) or record.pinned_to,
            record.foreign,
            evicted,
        )
    )


def described(value: bytes) -> dict[str, Any] | None:
    """A written record ready for JSON; None when it cannot be read."""
    try:
        record = _decode_record(value)
        return {
            "tenant": record.tenant,
            "id": record.id,
            "account": record.account,
            "model": record.model,
            "store": record.store,
            "created_at": record.created_at,
            "input": [msgspec.json.decode(item.raw) for item in record.input],
            "output": [msgspec.json.decode(item.raw) for item in record.output],
        }
    except UNREADABLE_VALUE:
        return None


def decode_transcript(
    records: Sequence[tuple[bytes, bytes]],
    ids: AccountIds,
    known: Callable[[str, str], Transcript | None] = lambda tenant, response_id: None,
) -> tuple[Transcript | None, list[Transcript]]:
    """The transcript of records, the latest first; None if a part of it is missing.

    Beside it those parts of it which cannot be continued by their ids.

    An account that is not in service keeps what was written for it as its name, which no account
    has.

    :param known: the transcript of a tenant's response that is in memory: processes that take
        turns would each time make a copy of the whole conversation.
    """
    transcript: Transcript | None = None
    evicted: list[Transcript] = []
    parent: str | None = None
    for key, value in reversed(records):
        try:
            written = _decode_record(value)
        except UNREADABLE_VALUE:
            return None, []
        if written.parent != parent:
            return None, []
        found = known(written.tenant, written.id)
        if found is not None and found.record.key == key.hex():
            transcript = found
        else:
            transcript = Transcript(_record(written, key, ids), transcript)
        parent = transcript.record.key
        if written.evicted:
            evicted.append(transcript)
    return transcript, evicted


def _record(written: _WrittenRecord, key: bytes, ids: AccountIds) -> ResponseRecord:
    return ResponseRecord(
        written.tenant,
        written.id,
        written.parent,
        tuple(_renamed(item, ids.name_of) for item in written.input),
        tuple(_renamed(item, ids.name_of) for item in written.output),
        ids.name_of(written.account) or written.account,
        written.store,
        written.held_upstream,
        written.model,
        written.created_at,
        ids.name_of(written.pinned_to) or written.pinned_to,
        written.foreign,
        key=key.hex(),
    )


def _renamed(item: Item, rename: Callable[[str], str | None]) -> Item:
    if item.issuer is None:
        return item
    return msgspec.structs.replace(item, issuer=rename(item.issuer) or item.issuer)
