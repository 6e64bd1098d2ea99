"""The interface to what keeps the state: a database on disk, a Redis server, the supervisor.

The state is a set of rows.  A row has a table, a key and a value; the values are opaque to a
backend.  Rows of the table :data:`RECORDS` are the responses of conversations: each belongs to a
conversation and may name the record that it continued.  Rows of :data:`RESPONSES` lead from the
digest of a response id to the key of its record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred

#: The turn-state secret, and others that gateways share.
SECRETS = "secrets"
#: Which account keeps a stored response.
OWNERS = "owners"
#: Which account issued encrypted content.
ISSUERS = "issuers"
#: The account that a conversation is bound to.
BINDINGS = "bindings"
#: What the operator set of an account: pause, drain.
OPERATOR = "operator"
#: What was learned of an account.
LESSONS = "lessons"
#: The quotas that an account reported.
QUOTAS = "quotas"
#: The cooldowns of an account.
COOLDOWNS = "cooldowns"
#: The turns that run on an account, one row for each process.
IN_FLIGHT = "in_flight"
#: What a client key has used.
KEY_USE = "key_use"
#: Keys of whose limit another process has given back a place; the row says only that.
LIMITS = "limits"
#: The responses of conversations.
RECORDS = "records"
#: From the digest of a response id to the key of its record.
RESPONSES = "responses"
#: From the digest of an output item's id to that of its response.
ITEMS = "items"

#: Tables that are read as a whole at the start, and whose changes other processes follow.
REPLICATED = (SECRETS, BINDINGS, OPERATOR, LESSONS, QUOTAS, COOLDOWNS, IN_FLIGHT, KEY_USE, LIMITS)
#: Tables that only processes which run at the same time need; no backend writes them to disk.
VOLATILE = (COOLDOWNS, IN_FLIGHT, LIMITS)


class StateError(Exception):
    """The backend cannot be read or written now; the text is for the operator."""


class Row(NamedTuple):
    """A row that is written, or deleted.

    :ivar value: None deletes the row.
    :ivar expires_at: when it may be forgotten, unix seconds.
    :ivar tenant: the client key that it belongs to, or "".
    :ivar conversation: of a record: the key of the conversation's first record, or "".  A row
        with a conversation, no key and no value deletes all of its records and their responses.
    :ivar parent: of a record: the key of the record that it continued, or b"".
    """

    table: str
    key: bytes
    value: bytes | None
    expires_at: float
    tenant: str = ""
    conversation: str = ""
    parent: bytes = b""

    @property
    def size(self) -> int:
        """Bytes, for bounds."""
        return len(self.key) + len(self.value or b"") + 100


class Recall(NamedTuple):
    """What one turn needs to read.

    :ivar rows: tables and keys.
    :ivar response: the digest of the response whose conversation is needed, or None.
    :ivar record: the key of the record to begin with in place of a response's, or None.
    :ivar conversation: that of the record.
    """

    rows: Sequence[tuple[str, bytes]] = ()
    response: bytes | None = None
    record: bytes | None = None
    conversation: str = ""


class Recalled(NamedTuple):
    """What was found.

    :ivar rows: the values by table and key, without those that are unknown.
    :ivar records: the keys and values of the records from the response back to the root, the
        latest first; shorter if a part is missing.
    """

    rows: Mapping[tuple[str, bytes], bytes]
    records: Sequence[tuple[bytes, bytes]] = ()


#: Takes rows that another process has changed.
Feed = Callable[[Sequence[Row]], None]


class StateBackend(Protocol):
    """Keeps rows.  All Deferreds fail with :class:`StateError`.

    A disk may hang: who calls it sets the deadlines (:mod:`gateway.state.write_behind`).

    :ivar name: for the operator, without passwords: ``sqlite /path``, ``redis host:6379``.
    :ivar shared: whether other processes change the rows, too.
    """

    name: str
    shared: bool

    def open(self, feed: Feed) -> Deferred[None]:
        """Make it ready.  May be called again after it failed.

        :param feed: called with rows of :data:`REPLICATED` tables that others have changed.
        """

    def scan(self, table: str) -> Deferred[list[Row]]:
        """All rows of a table that have not expired."""

    def read(self, wanted: Recall) -> Deferred[Recalled]:
        """Read some rows, and one conversation."""

    def write(self, rows: Sequence[Row]) -> Deferred[None]:
        """Write rows, in this order.  Writing the same rows again changes nothing.

        The newer value of a record replaces the older one.  A conversation of which no response
        is left may be deleted.
        """

    def close(self) -> Deferred[None]:
        """Finish what was begun, and release everything."""
