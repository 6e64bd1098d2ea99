"""Conversations, owners and issuers that outlive the process: memory first, the backend behind.

What turns read is in memory.  Each change is given to the write-behind buffer, too.  What memory
lacks is recalled before a turn is resolved (:class:`ConversationRecall`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from gateway.config.settings import Persisted
from gateway.conversations.owners import (
    STORED_SECONDS,
    MemoryIssuers,
    MemoryOwners,
    content_digest,
    item_digest,
    response_digest,
)
from gateway.conversations.store import (
    ConversationStore,
    MemoryStore,
    ResponseRecord,
    Transcript,
)
from gateway.protocol.errors import ApiError
from gateway.protocol.items import Item
from gateway.state.backend import (
    ISSUERS,
    ITEMS,
    OWNERS,
    RECORDS,
    RESPONSES,
    Recall,
    Recalled,
    Row,
    StateError,
)
from gateway.state.serialization import AccountIds, decode_transcript, encode_record
from gateway.state.write_behind import WriteBehind

#: Another process may be about to write what is missing: when to look again, in seconds.
_LOOK_AGAIN = (0.05, 0.25)

#: When to read again what a turn cannot do without and the backend did not give, in seconds: a
#: client of a WebSocket would not try again by itself.
_TRY_AGAIN = (0.5, 1.0, 2.0, 4.0)

#: The losses of a record that was written, and must be written again with what continues it.
_AGAIN = -1

#: Items that one turn may look up by their ids, and as many issuers: the latest ones.
_MAX_ITEMS = 1000


class DurableConversations:
    """Conversations in memory that are written behind.

    :param memory: what turns read.
    :param ids: the accounts as they are written.
    :param persist: which content may be written.
    :param max_age_seconds: how long it is kept.
    :param now: unix seconds.
    """

    def __init__(
        self,
        memory: MemoryStore,
        writes: WriteBehind,
        ids: AccountIds,
        persist: Persisted,
        max_age_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._memory = memory
        self._writes = writes
        self._ids = ids
        self._persist = persist
        self._max_age_seconds = max_age_seconds
        self._now = now
        self.get = memory.get
        self.find_item = memory.find_item
        self.is_evicted = memory.is_evicted
        self.expire = memory.expire
        self.conversation = memory.conversation
        self.figures = memory.figures

    def add(self, transcript: Transcript) -> None:
        """Remember a response, and write it if its content may be written."""
        record = transcript.record
        before = self._memory.get(record.tenant, record.id)
        self._memory.add(transcript)
        if before is not None and before.record.key != record.key and before.written is not None:
            self._write_record(before, True)  # an upstream has used the id again
        unwritten = self._unwritten(transcript)
        for each in reversed(unwritten):
            self._write(each)
            each.written = self._writes.losses

    def evict(self, transcript: Transcript) -> None:
        """Let a response no longer be continued by its id, in any process."""
        record = transcript.record
        found = self._memory.get(record.tenant, record.id)
        is_reused = found is not None and found.record.key != record.key
        if self._memory.is_evicted(transcript) and (found is None or is_reused):
            return
        # Memory may have another copy of it, which was recalled.
        copies = [transcript] if found is None or is_reused else [transcript, found]
        for each in copies:
            self._memory.evict(each)
        if is_reused or all(each.written is None for each in copies):
            return
        self._write_record(transcript)
        digest = response_digest(record.tenant, record.id)
        self._writes.put(Row(RESPONSES, digest, None, 0.0, record.tenant))
        # The backend may forget the conversation with it; a turn that runs may yet continue it.
        for copy in copies:
            for each in copy.path():
                if each.written is not None:
                    each.written = _AGAIN

    def forget(self, tenant: str, response_id: str) -> int:
        """Forget the whole conversation that holds this response, in any process."""
        found = self._memory.conversation(tenant, response_id)
        seen: set[str] = set()
        for each in found:
            # Those whose ids an upstream has used again are in paths only.
            for past in each.path():
                if past.record.key in seen:
                    break
                seen.add(past.record.key)
                past.written = None
        if found:
            self._writes.put(Row(RECORDS, b"", None, 0.0, tenant, found[0].root))
        return self._memory.forget(tenant, response_id)

    def _unwritten(self, transcript: Transcript) -> list[Transcript]:
        """What must be written of it and of what it continued, the latest first.

        Nothing if a part may not be written: nobody could continue the rest.
        """
        found: list[Transcript] = []
        for each in transcript.path():
            if each.written == self._writes.losses:
                break
            if not self._may_write(each.record):
                return []
            found.append(each)
        return found

    def _may_write(self, record: ResponseRecord) -> bool:
        return self._persist == "all" or (self._persist == "stored" and record.store)

    def _write(self, transcript: Transcript) -> None:
        """Write a record, and that its response can be continued, if it can."""
        record = transcript.record
        known = self._memory.get(record.tenant, record.id)
        taken = known is not None and known.record.key != record.key
        self._write_record(transcript, taken)
        if taken or record.foreign or self._memory.is_evicted(transcript):
            return  # an upstream has used the id again, or nobody can name it
        digest = response_digest(record.tenant, record.id)
        until = self._now() + self._max_age_seconds
        self._writes.put(
            Row(
                RESPONSES,
                digest,
                bytes.fromhex(record.key),
                until,
                record.tenant,
                transcript.root,
            )
        )
        for item in record.output:
            if item.id is not None:
                key = item_digest(record.tenant, item.id)
                self._writes.put(Row(ITEMS, key, digest, until, record.tenant))

    def _write_record(self, transcript: Transcript, evicted: bool = False) -> None:
        record = transcript.record
        evicted = evicted or self._memory.is_evicted(transcript)
        self._writes.put(
            Row(
                RECORDS,
                bytes.fromhex(record.key),
                encode_record(record, self._ids, evicted),
                self._now() + self._max_age_seconds,
                record.tenant,
                transcript.root,
                b"" if record.parent is None else bytes.fromhex(record.parent),
            )
        )


class DurableOwners:
    """Response owners in memory that are written behind.

    :param memory: what turns read.
    """

    def __init__(
        self, memory: MemoryOwners, writes: WriteBehind, ids: AccountIds, now: Callable[[], float]
    ) -> None:
        self._memory = memory
        self._writes = writes
        self._ids = ids
        self._now = now
        self.owner_of = memory.owner_of

    @property
    def max_responses(self) -> int:
        """Bound on the count in memory."""
        return self._memory.max_responses

    def __len__(self) -> int:
        return len(self._memory)

    def note(self, tenant: str, response_id: str, account: str) -> None:
        """``account`` keeps this response of ``tenant``."""
        known = self._memory.owner_of(tenant, response_id) == account
        self._memory.note(tenant, response_id, account)
        written = self._ids.id_of(account)
        if not known and written is not None:
            until = self._now() + STORED_SECONDS
            digest = response_digest(tenant, response_id)
            self._writes.put(Row(OWNERS, digest, written.encode(), until, tenant))

    def forget(self, tenant: str, response_id: str) -> None:
        """The response was deleted."""
        self._memory.forget(tenant, response_id)
        digest = response_digest(tenant, response_id)
        self._writes.put(Row(OWNERS, digest, None, 0.0, tenant))


class DurableIssuers:
    """Content issuers in memory that are written behind.

    :param memory: what turns read.
    """

    def __init__(
        self, memory: MemoryIssuers, writes: WriteBehind, ids: AccountIds, now: Callable[[], float]
    ) -> None:
        self._memory = memory
        self._writes = writes
        self._ids = ids
        self._now = now
        self.issuer_of = memory.issuer_of

    @property
    def max_entries(self) -> int:
        """Bound on the count in memory."""
        return self._memory.max_entries

    def __len__(self) -> int:
        return len(self._memory)

    def note(self, raw: bytes, account: str) -> None:
        """``account`` issued the encrypted content of the item ``raw``, if it has any."""
        digest, written = content_digest(raw), self._ids.id_of(account)
        if digest is None:
            return
        self._memory.restore(digest, account)
        if written is not None:
            until = self._now() + STORED_SECONDS
            self._writes.put(Row(ISSUERS, digest, written.encode(), until))


class ConversationRecall:
    """Reads what memory lacks of a conversation, before a turn is resolved.

    :param clock: the reactor.
    :param conversations: memory; what is found is added to it, and to the others.
    :param refuses: whether a turn is refused while the state cannot be reached.
    :param one_tenant: called: whether there is only one tenant, whose unknown responses may be
        asked for at any account.
    """

    def __init__(
        self,
        clock: Any,
        writes: WriteBehind,
        conversations: ConversationStore,
        owners: MemoryOwners,
        issuers: MemoryIssuers,
        ids: AccountIds,
        refuses: bool,
        one_tenant: Callable[[], bool],
    ) -> None:
        self._clock = clock
        self._writes = writes
        self._conversations = conversations
        self._owners = owners
        self._issuers = issuers
        self._ids = ids
        self._refuses = refuses
        self._one_tenant = one_tenant

    def recall(
        self, tenant: str, response_id: str | None, items: Sequence[Item]
    ) -> Deferred[None] | None:
        """Read a response, the issuers of items, and items named by their ids into memory.

        :param response_id: the response that the turn continues, or None.
        :param items: the turn's input; those with encrypted content have their issuers, if known.
        :return: None when memory has all of it, which is the usual case.
        """
        rows, response = [], None
        if response_id is not None and self._conversations.get(tenant, response_id) is None:
            response = response_digest(tenant, response_id)
            if self._owners.owner_of(tenant, response_id) is None:
                rows.append((OWNERS, response))
        awaited = []
        encrypted = [item for item in items if item.encrypted]
        unknown_issuers: dict[tuple[str, bytes], None] = {}
        for item in encrypted[-_MAX_ITEMS:]:
            digest = content_digest(item.raw) if item.issuer is None else None
            if digest is not None:
                unknown_issuers[ISSUERS, digest] = None
                if item is encrypted[-1] and _began_here(encrypted):
                    awaited.append((ISSUERS, digest))
        rows += unknown_issuers
        named = self._lacking(tenant, items)
        rows += [(ITEMS, item_digest(tenant, item.id or "")) for item in named]
        if response is None and not rows:
            return None
        wanted = Recall(rows, response)
        pauses = iter(_LOOK_AGAIN if self._writes.backend.shared else ())
        # Its account may be asked for what only it may know.
        unknown = response is not None and bool(rows) and rows[0][0] == OWNERS
        if named and named[-1].type == "item_reference":
            awaited.append(rows[-1])
        needed = self._refuses or (unknown and not self._one_tenant())
        recalled = Deferred.fromCoroutine(self._recall(tenant, wanted, awaited, pauses, needed))
        return recalled.addErrback(self._unreachable, needed)

    async def _recall(
        self,
        tenant: str,
        wanted: Recall,
        awaited: Sequence[tuple[str, bytes]],
        pauses: Iterator[float],
        needed: bool,
    ) -> None:
        found = await self._read(wanted, needed)
        while not _is_complete(found, wanted, awaited):
            pause = next(pauses, None)
            if pause is None:
                break
            await deferLater(self._clock, pause)  # another process may be about to write it
            found = await self._writes.read(wanted)
        if wanted.response is not None:
            self._remember(found, tenant, wanted.response)
        self._restore_rows(found)
        of_items = {value for (table, _), value in found.rows.items() if table == ITEMS}
        for response in sorted(of_items - {wanted.response}):
            self._remember(await self._writes.read(Recall((), response)), tenant, response)

    async def _read(self, wanted: Recall, needed: bool) -> Recalled:
        for pause in _TRY_AGAIN if needed else ():
            try:
                return await self._writes.read(wanted)
            except StateError:
                await deferLater(self._clock, pause)
        return await self._writes.read(wanted)

    def _lacking(self, tenant: str, items: Sequence[Item]) -> list[Item]:
        """The items that are only ids, without those in memory; the latest ones."""
        lacking: list[Item] = []
        for item in reversed(items):
            if item.id is None or not item.is_reference:
                continue
            if self._conversations.find_item(tenant, item.id) is None:
                lacking.append(item)
                if len(lacking) == _MAX_ITEMS:
                    break
        return lacking[::-1]

    def _restore_rows(self, found: Recalled) -> None:
        for (table, key), value in found.rows.items():
            account = None if table == ITEMS else self._ids.name_of(value.decode(errors="replace"))
            if account is None:
                continue
            if table == ISSUERS:
                self._issuers.restore(key, account)
            else:
                self._owners.restore(key, account)

    def _remember(self, found: Recalled, tenant: str, response: bytes) -> None:
        """Take a conversation into memory, unless another turn was faster."""
        transcript, evicted = decode_transcript(found.records, self._ids, self._conversations.get)
        if transcript is None:
            return
        record = transcript.record
        if record.tenant != tenant or response_digest(tenant, record.id) != response:
            return  # digests are not proofs
        if self._conversations.get(tenant, record.id) is not None:
            return
        for each in transcript.path():
            each.written = self._writes.losses
        self._conversations.add(transcript)
        for each in evicted:
            self._conversations.evict(each)

    def _unreachable(self, failure: Failure, needed: bool) -> None:
        failure.trap(StateError)
        if needed:
            raise ApiError(
                503,
                "server_error",
                "The gateway cannot look up the conversation now; please try again.",
                "state_unavailable",
                headers={"retry-after": "1"},
            )


def _began_here(encrypted: Sequence[Item]) -> bool:
    """Whether a gateway has made the encrypted items before the latest one, as far as is known.

    A history from elsewhere is not waited for in each of its turns.
    """
    return len(encrypted) == 1 or any(item.issuer is not None for item in encrypted)


def _is_complete(found: Recalled, wanted: Recall, awaited: Sequence[tuple[str, bytes]]) -> bool:
    """Whether the response, or at least its owner, was found, and so were the latest items."""
    owner = (OWNERS, wanted.response)
    has_response = wanted.response is None or bool(found.records) or owner in found.rows
    return has_response and all(place in found.rows for place in awaited)


class NoRecall:
    """Without a backend memory has all there is."""

    def recall(
        self, tenant: str, response_id: str | None, items: Sequence[Item]
    ) -> Deferred[None] | None:
        """Nothing can be recalled."""
        return None
