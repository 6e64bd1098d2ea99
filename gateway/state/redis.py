"""The state on a Redis or Valkey server, which several gateways share.

All keys begin with :data:`PREFIX`:

* ``rg1:TABLE:KEY`` – a row: the tenant behind its length, then the value.  It expires by itself.
* ``rg1:index:TABLE`` – the keys of a replicated table by the time at which they expire.
* ``rg1:conversation:ID`` – a hash: the records of a conversation (``k`` and the record's key: the
  parent's key behind its length, then the value), and its responses (``r`` and the digest).
* ``rg1:responses:DIGEST`` – a record's key behind its length, then its conversation.

Changes of replicated tables are also published, with the name of the process that made them.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, gatherResults, inlineCallbacks, succeed
from twisted.logger import Logger

from gateway.config import StateSettings
from gateway.state.backend import (
    RECORDS,
    REPLICATED,
    RESPONSES,
    Feed,
    Recall,
    Recalled,
    Row,
    StateError,
)
from gateway.state.redis_connection import Command, RedisConnection, RedisRefusal, checked
from gateway.state.redis_servers import RedisServers

#: What all keys begin with, and the version of their layout.
PREFIX = b"rg1:"

#: How long Redis may owe a reply, in seconds: to a turn, to a batch of rows.
_REPLY_SECONDS = 0.9
_WRITE_SECONDS = 8.0

#: Bounds on one page of a table, on a table, on a conversation, on one message of the feed.
_PAGE_ROWS = 500
_MOST_ROWS = 500_000
_MOST_RECORDS = 20_000
_MESSAGE_ROWS = 200

#: Entries of an index that are dropped at once.
_TRIM_AT_ONCE = 1_000

#: A conversation's last use is written at most so often, in milliseconds.
_TOUCH_MS = 600_000

_DAY_MS = 86_400_000

_log = Logger(namespace="gateway.state")

_encode = msgspec.msgpack.Encoder().encode


class RedisScript:
    """A Lua script that Redis runs as one step.

    :param text: its source.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()


def _script(name: str) -> RedisScript:
    return RedisScript((files("gateway.state") / "scripts" / f"{name}.lua").read_text("utf-8"))


_RECALL, _FORGET, _TRIM = map(_script, ("recall", "forget", "trim"))


class _Message(msgspec.Struct, array_like=True, frozen=True):
    """Changed rows, and the process that changed them.

    :ivar rows: table, key, tenant and value packed, whether there is a value, expiry.
    """

    origin: bytes
    rows: list[tuple[str, bytes, bytes, bool, float]]


_decode_message = msgspec.msgpack.Decoder(_Message).decode


class RedisBackend:
    """The state on a Redis server.

    Turns' reads, batches of rows and the feed each have a connection, so that none waits behind
    another.  When one of them ends, all do, and :meth:`open` makes them anew.

    :param reactor: clock and network.
    """

    shared = True

    def __init__(self, reactor: Any, settings: StateSettings) -> None:
        self._reactor = reactor
        self._servers = RedisServers(reactor, settings.store)
        self.name = self._servers.name
        self._lifetime = int(settings.max_age_days * _DAY_MS)
        self._origin = os.urandom(8)
        # Databases share the names of channels.
        self._channel = PREFIX + b"feed:%d" % self._servers.database
        self._feed: Feed = lambda rows: None
        self._connections: list[RedisConnection] = []
        self._why = StateError("the connection to Redis is not open")

    # --- opening -----------------------------------------------------------------------

    @inlineCallbacks
    def open(self, feed: Feed) -> Generator[Any, Any, None]:
        """Connect, and follow what others change."""
        self._disconnect(StateError("the connection to Redis is made anew"))
        self._feed = feed
        connections = yield self._servers.connect(_REPLY_SECONDS, _WRITE_SECONDS, _REPLY_SECONDS)
        self._connections = connections
        for each in connections:
            each.lost = self._disconnect
        connections[2].received = self._published
        yield connections[2].command("SUBSCRIBE", self._channel)

    def close(self) -> Deferred[None]:
        """End the connections."""
        self._disconnect(StateError("the state is closed"))
        return succeed(None)

    def _disconnect(self, why: StateError) -> None:
        """One connection has ended: end the others, too."""
        self._why = why
        connections, self._connections = self._connections, []
        for each in connections:
            each.close(why)

    def _send(self, which: int, commands: Sequence[Command]) -> Deferred[list[Any]]:
        """Send commands on one of the connections; the Deferred has their replies."""
        if not self._connections:
            return fail(self._why)
        return self._connections[which].commands(commands).addCallback(self._checked)

    def _checked(self, replies: list[Any]) -> list[Any]:
        try:
            return checked(replies)
        except RedisRefusal as refusal:
            if refusal.code == "READONLY":  # it was the master before
                self._disconnect(refusal)
            raise

    # --- reading -----------------------------------------------------------------------

    @inlineCallbacks
    def scan(self, table: str) -> Generator[Any, Any, list[Row]]:
        """All rows of a table that have not expired, read in pages."""
        rows: dict[bytes, Row] = {}
        cursor = b"0"
        while True:
            ((cursor, found),) = yield self._send(
                0, [("ZSCAN", _index(table), cursor, "COUNT", _PAGE_ROWS)]
            )
            keys, until = found[::2], found[1::2]
            if keys:
                (values,) = yield self._send(0, [("MGET", *(_place(table, key) for key in keys))])
                for key, value, milliseconds in zip(keys, values, until, strict=True):
                    if value is not None:
                        tenant, content = _unpacked(value)
                        rows[key] = Row(table, key, content, float(milliseconds) / 1000, tenant)
            if cursor == b"0":
                break
            if len(rows) > _MOST_ROWS:
                _log.error("the state has more rows in {table} than are read", table=table)
                break
        return list(rows.values())

    def read(self, wanted: Recall) -> Deferred[Recalled]:
        """Read some rows, and one conversation, in one round trip.

        When nothing is wanted, only the connections are tried.
        """
        commands: list[Command] = []
        if wanted.rows:
            commands.append(("MGET", *(_place(*each) for each in wanted.rows)))
        if wanted.response is None and wanted.record is None:
            if commands:
                return self._send(0, commands).addCallback(_recalled, wanted)
            return gatherResults(
                [self._send(each, [("PING",)]) for each in (0, 2)], consumeErrors=True
            ).addCallbacks(lambda _: Recalled({}), _first_failure)
        arguments = (
            PREFIX,
            wanted.response or b"",
            wanted.record or b"",
            wanted.conversation,
            _MOST_RECORDS,
            self._lifetime,
            _TOUCH_MS,
        )
        read = self._with_script(0, commands, _RECALL, (), arguments)
        return read.addCallback(_recalled, wanted)

    def evaluate(
        self,
        script: RedisScript,
        keys: Sequence[str | bytes],
        arguments: Sequence[bytes | str | int | float],
    ) -> Deferred[Any]:
        """Run a script on the master.

        :param keys: without :data:`PREFIX`, which is put before each.
        :return: what the script returns; fails with :class:`StateError`.
        """
        places = [PREFIX + (each.encode() if isinstance(each, str) else each) for each in keys]
        return self._with_script(0, [], script, places, arguments).addCallback(
            lambda replies: replies[0]
        )

    def _with_script(
        self,
        which: int,
        commands: Sequence[Command],
        script: RedisScript,
        keys: Sequence[bytes],
        arguments: Sequence[bytes | str | int | float],
    ) -> Deferred[list[Any]]:
        """Send commands, and a script that Redis usually knows."""
        rest = (len(keys), *keys, *arguments)
        sent = self._send(which, [*commands, ("EVALSHA", script.digest, *rest)])

        def unknown(failure: Any) -> Deferred[list[Any]]:
            failure.trap(RedisRefusal)
            if failure.value.code != "NOSCRIPT":
                failure.raiseException()
            return self._send(which, [*commands, ("EVAL", script.text, *rest)])

        return sent.addErrback(unknown)

    # --- writing -----------------------------------------------------------------------

    def write(self, rows: Sequence[Row]) -> Deferred[None]:
        """Write rows, and publish those of replicated tables, in one round trip."""
        batch = _Batch(self._reactor.seconds())
        for row in rows:
            batch.add(row)
        commands = [*batch.finish(), *self._messages(batch.changed)]
        written = self._send(1, commands) if commands else succeed([])
        return written.addCallback(lambda _: None)

    # --- the feed ----------------------------------------------------------------------

    def _messages(self, rows: Sequence[Row]) -> list[Command]:
        changed = [
            (row.table, row.key, _packed(row), row.value is not None, row.expires_at)
            for row in rows
        ]
        return [
            (
                "PUBLISH",
                self._channel,
                _encode(_Message(self._origin, changed[first : first + _MESSAGE_ROWS])),
            )
            for first in range(0, len(changed), _MESSAGE_ROWS)
        ]

    def _published(self, content: bytes) -> None:
        try:
            message = _decode_message(content)
        except (msgspec.MsgspecError, ValueError):
            return  # of another version
        if message.origin == self._origin:
            return
        rows = []
        for table, key, packed, kept, until in message.rows:
            tenant, value = _unpacked(packed)
            rows.append(Row(table, key, value if kept else None, until, tenant))
        self._feed(rows)


class _Batch:
    """The commands that write rows, in an order in which no reader finds a part alone.

    :ivar changed: the rows that others must hear of.
    """

    def __init__(self, now: float) -> None:
        self._now = now
        self._commands: list[Command] = []
        #: Fields of conversations, the longest life of each, and what leads to the records.
        self._fields: dict[str, list[bytes]] = {}
        self._lives: dict[str, int] = {}
        self._responses: list[Command] = []
        self._indexes: set[str] = set()
        self.changed: list[Row] = []

    def add(self, row: Row) -> None:
        """Write this row, too."""
        life = int((row.expires_at - self._now) * 1000)
        kept = row.value is not None and life > 0
        if row.table == RECORDS and not row.key:
            self._flush()
            self._commands.append(("EVAL", _FORGET.text, 0, PREFIX, row.conversation))
        elif row.table == RECORDS:
            if kept:
                value = _behind(row.parent) + (row.value or b"")
                self._to_conversation(row, life, b"k" + row.key, value)
        elif row.table == RESPONSES and kept:
            value = _behind(row.value or b"") + row.conversation.encode()
            self._responses.append(("SET", _place(row.table, row.key), value, "PX", life))
            self._to_conversation(row, life, b"r" + row.key, b"")
        elif row.table == RESPONSES:
            self._responses.append(("UNLINK", _place(row.table, row.key)))
        else:
            self._add_entry(row, life, kept)

    def _to_conversation(self, row: Row, life: int, field: bytes, value: bytes) -> None:
        name = row.conversation
        self._fields.setdefault(name, []).extend((field, value))
        self._lives[name] = max(life, self._lives.get(name, 0))

    def _add_entry(self, row: Row, life: int, kept: bool) -> None:
        place, replicated = _place(row.table, row.key), row.table in REPLICATED
        if kept:
            self._commands.append(("SET", place, _packed(row), "PX", life))
        else:
            self._commands.append(("UNLINK", place))
        if not replicated:
            return
        if kept:
            score = int(row.expires_at * 1000)
            self._commands.append(("ZADD", _index(row.table), score, row.key))
        else:
            self._commands.append(("ZREM", _index(row.table), row.key))
        self._indexes.add(row.table)
        self.changed.append(row if kept else row._replace(value=None))

    def _flush(self) -> None:
        for name, fields in self._fields.items():
            place = _conversation(name)
            self._commands.append(("HSET", place, *fields))
            self._commands.append(("PEXPIRE", place, self._lives[name]))
        self._commands += self._responses
        self._fields, self._lives, self._responses = {}, {}, []

    def finish(self) -> list[Command]:
        """All commands."""
        self._flush()
        for table in sorted(self._indexes):
            now = int(self._now * 1000)
            self._commands.append(("EVAL", _TRIM.text, 1, _index(table), now, _TRIM_AT_ONCE))
        return self._commands


# --- keys and values -----------------------------------------------------------------------


def _place(table: str, key: bytes) -> bytes:
    return PREFIX + table.encode() + b":" + key


def _index(table: str) -> bytes:
    return PREFIX + b"index:" + table.encode()


def _conversation(name: str) -> bytes:
    return PREFIX + b"conversation:" + name.encode()


def _behind(key: bytes) -> bytes:
    """A key behind its length."""
    return bytes([len(key)]) + key


def _packed(row: Row) -> bytes:
    tenant = row.tenant.encode(errors="surrogatepass")
    return len(tenant).to_bytes(2, "big") + tenant + (row.value or b"")


def _unpacked(value: bytes) -> tuple[str, bytes]:
    """Tenant and value of a row."""
    end = 2 + int.from_bytes(value[:2], "big")
    return value[2:end].decode(errors="surrogatepass"), value[end:]


def _recalled(replies: list[Any], wanted: Recall) -> Recalled:
    rows = {}
    if wanted.rows:
        for place, value in zip(wanted.rows, replies[0], strict=True):
            if value is not None:
                rows[place] = _unpacked(value)[1]
    if wanted.response is None and wanted.record is None:
        return Recalled(rows)
    found = replies[-1]
    return Recalled(rows, list(zip(found[::2], found[1::2], strict=True)))


def _first_failure(failure: Any) -> Any:
    """What :func:`gatherResults` wraps."""
    return failure.value.subFailure
