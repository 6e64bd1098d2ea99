"""What upstreams say which models they offer: asked seldom, remembered, stale rather than none.

Accounts of one service are asked as one: the first that answers speaks for all of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..deadline import Deadline
from ..protocol.errors import UNREADABLE, ApiError
from ..protocol.headers import may_pass
from ..upstream.interface import UpstreamCall
from .account import Account

#: How long an answer holds, in seconds, and how long nobody is asked after a failure.
FRESH_SECONDS = 300.0
RETRY_SECONDS = 30.0

#: How long an answer may take, in seconds: Codex waits no longer (protocol.md §7).
ANSWER_SECONDS = 5.0

_MAX_BYTES = 8 * 1024 * 1024

#: Versions of Codex that one service is asked about within :data:`FRESH_SECONDS`.
_MAX_VERSIONS = 8

#: Catalogues that are remembered: services times versions of Codex.
MAX_CATALOGUES = 64

_log = Logger(namespace="gateway.catalogue")


class Catalogue(NamedTuple):
    """One upstream's answer to ``GET /models``.

    :ivar models: the entries by model name, as the upstream wrote them.
    :ivar etag: the ``ETag`` of the answer, or None.
    """

    models: Mapping[str, msgspec.Raw]
    etag: str | None


class _Listed(msgspec.Struct):
    data: list[msgspec.Raw] | None = None
    models: list[msgspec.Raw] | None = None


class _Head(msgspec.Struct):
    id: str | None = None
    slug: str | None = None


_decode = msgspec.json.Decoder(_Listed).decode
_decode_head = msgspec.json.Decoder(_Head).decode


class _Entry:
    """What is known of one service."""

    __slots__ = ("asked_at", "asking", "catalogue", "failed", "turn", "waiting")

    def __init__(self) -> None:
        self.catalogue: Catalogue | None = None
        self.asked_at = float("-inf")
        self.failed = False
        self.asking: _Question | None = None
        self.turn = 0
        self.waiting: list[Callable[[Catalogue | None], None]] = []


class Catalogues:
    """Asks upstreams for their models.

    :param clock: for deadlines and ages.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str | None], _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def of(
        self,
        accounts: Sequence[Account],
        client_version: str | None,
        told: Callable[[Catalogue | None], None],
    ) -> None:
        """Tell what the service of ``accounts`` offers; at once where that is known.

        :param accounts: of one service, at least one.
        :param client_version: ask in Codex's shape, for this version of it; None for the
            platform's.
        :param told: called once, with None when nothing could be learned.
        """
        key = self._known(accounts[0].settings.base_url, client_version)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry()
            self._forget()
        self._entries.move_to_end(key)
        holds = RETRY_SECONDS if entry.failed else FRESH_SECONDS
        if entry.asking is None and self._clock.seconds() - entry.asked_at < holds:
            told(entry.catalogue)
            return
        entry.waiting.append(told)
        if entry.asking is None:
            self._ask(entry, accounts[entry.turn % len(accounts)], client_version)

    def close(self) -> None:
        """Ask nobody any more; who waits gets what is known."""
        for entry in list(self._entries.values()):
            if entry.asking is not None:
                entry.asking.cancel()
                self._answered(entry, None)

    def _known(self, service: str, version: str | None) -> tuple[str, str | None]:
        """Whose answer will do for ``version``: of many, another's which was told of late.

        Versions are the clients' to choose: they must not make the gateway ask all the time.
        """
        key = (service, version)
        told = [each for each in self._entries if each[0] == service and each[1] is not None]
        if version is None or key in self._entries or len(told) < _MAX_VERSIONS:
            return key
        now = self._clock.seconds()
        for each in told:
            entry = self._entries[each]
            if entry.asking is None and now - entry.asked_at >= FRESH_SECONDS:
                del self._entries[each]
                return key
        return told[-1]

    def _ask(self, entry: _Entry, account: Account, client_version: str | None) -> None:
        entry.asking = _Question(
            self._clock, account, client_version, lambda found: self._answered(entry, found)
        )
        entry.asking.start()

    def _answered(self, entry: _Entry, found: Catalogue | None) -> None:
        entry.asking = None
        entry.asked_at = self._clock.seconds()
        entry.failed = found is None
        if found is not None:
            entry.catalogue = found
        else:
            entry.turn += 1  # another account of the service next time
        waiting, entry.waiting = entry.waiting, []
        for told in waiting:
            told(entry.catalogue)

    def _forget(self) -> None:
        """Client versions are the clients' to choose: remember only so many."""
        for key, entry in list(self._entries.items()):
            if len(self._entries) <= MAX_CATALOGUES:
                return
            if entry.asking is None:
                del self._entries[key]


class _Question:
    """One ``GET /models``; a :class:`~gateway.upstream.interface.CallReceiver`."""

    def __init__(
        self,
        clock: IReactorTime,
        account: Account,
        client_version: str | None,
        told: Callable[[Catalogue | None], None],
    ) -> None:
        path = "/models"
        if client_version is not None:
            path += f"?client_version={quote(client_version, safe='')}"
        headers = {"accept": "application/json"}
        headers.update((name.lower(), value) for name, value in account.request_headers)
        self._in_codex_shape = client_version is not None
        self._account = account.name
        self._told = told
        self._status = 0
        self._etag: str | None = None
        self._body = bytearray()
        self._deadline = Deadline(clock, self._too_late)
        self._call = account.upstream.call(UpstreamCall("GET", path, headers), self)

    def start(self) -> None:
        self._deadline.start(ANSWER_SECONDS)
        self._call.start()

    def cancel(self) -> None:
        self._deadline.stop()
        self._call.cancel()

    def call_connected(self) -> None:
        """The answer is what counts."""

    def call_answered(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        etag = headers.get("etag", "")
        self._etag = etag if may_pass("etag", etag) else None

    def call_data(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > _MAX_BYTES:
            self.cancel()
            self._fail("it is too long")

    def call_ended(self, error: ApiError | None) -> None:
        self._deadline.stop()
        if error is not None:
            self._fail(error.message)
        elif self._status != 200:
            self._fail(f"the status {self._status}")
        else:
            self._read()

    def _too_late(self) -> None:
        self._call.cancel()
        self._fail(f"nothing within {ANSWER_SECONDS:g} seconds")

    def _read(self) -> None:
        try:
            listed = _decode(bytes(self._body))
            entries = (listed.models or []) if self._in_codex_shape else (listed.data or [])
            heads = [(_decode_head(entry), entry) for entry in entries]
        except UNREADABLE as error:
            self._fail(str(error))
            return
        named = ((head.slug or head.id, entry) for head, entry in heads)
        self._told(Catalogue({name: raw for name, raw in named if name}, self._etag))

    def _fail(self, why: str) -> None:
        _log.info("the models of {account} cannot be listed: {why}", account=self._account, why=why)
        self._told(None)
