"""The models that upstreams list: cached, and served stale when no upstream answers.

Of the accounts of one service one is asked after the other, until one answers well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from gateway.deadline import Deadline
from gateway.protocol.errors import ApiError
from gateway.protocol.headers import may_pass
from gateway.protocol.model_lists import ListedModel, read_model_list
from gateway.routing.account import Account
from gateway.upstream.interface import ForwardedRequest

#: How long an answer is fresh, and how long no upstream is asked after a failure, in seconds.
FRESH_SECONDS = 300.0
RETRY_SECONDS = 30.0

#: Codex versions for which one service is asked within :data:`FRESH_SECONDS`.
_MAX_VERSIONS = 8

#: Catalogues that are remembered: services times versions of Codex.
MAX_CATALOGUES = 64

#: How long a listing may take, in seconds; Codex waits for 5 (protocol.md §7).
ANSWER_SECONDS = 4.0

#: How long an account may be silent, in seconds, before the next one is asked beside it.
SILENCE_SECONDS = 1.0

#: Bound on the accounts that are asked.
MOST_ASKED = 8

_MAX_BYTES = 8 * 1024 * 1024

_log = Logger(namespace="gateway.catalogue")


class AccountModels(NamedTuple):
    """One upstream's answer to ``GET /models``.

    :ivar models: its models by name.
    :ivar etag: the ``ETag`` of the answer, or None.
    :ivar account: the name of the account that gave it.
    """

    models: Mapping[str, ListedModel]
    etag: str | None
    account: str


#: Gets the answer, or None when none came in time.
Callback = Callable[[AccountModels | None], None]


class _Entry:
    """The cached models of one service."""

    __slots__ = ("asked_at", "asking", "failed", "models", "waiting")

    def __init__(self) -> None:
        self.models: AccountModels | None = None
        self.asked_at = float("-inf")
        self.failed = False
        self.asking: ModelListRequest | None = None
        self.waiting: list[Callback] = []


class ModelCatalog:
    """The models of each service.

    :param clock: for deadlines and ages.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str | None], _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def list_models(
        self, accounts: Sequence[Account], client_version: str | None, callback: Callback
    ) -> None:
        """List the models of the service of ``accounts``; at once if they are cached.

        :param accounts: of one service, at least one.
        :param client_version: ask in Codex's shape, for this version of it; None for the
            platform's.
        :param callback: called once, with None when nothing could be learned.
        """
        key = self._key_for(accounts[0].settings.base_url, client_version)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry()
            self._forget()
        self._entries.move_to_end(key)
        holds = RETRY_SECONDS if entry.failed else FRESH_SECONDS
        if entry.asking is None and self._clock.seconds() - entry.asked_at < holds:
            callback(entry.models)
            return
        entry.waiting.append(callback)
        if entry.asking is None:
            self._ask(entry, accounts, client_version)

    def close(self) -> None:
        """Ask no upstream any more; waiting callers get the cached models."""
        for entry in list(self._entries.values()):
            if entry.asking is not None:
                entry.asking.cancel()
                self._answered(entry, None)

    def _key_for(self, service: str, version: str | None) -> tuple[str, str | None]:
        """The entry for ``version``; where there are many, a recent one of another version.

        Clients choose the versions, and must not make the gateway ask all the time.
        """
        key = (service, version)
        known = [each for each in self._entries if each[0] == service and each[1] is not None]
        if version is None or key in self._entries or len(known) < _MAX_VERSIONS:
            return key
        now = self._clock.seconds()
        for each in known:
            entry = self._entries[each]
            if entry.asking is None and now - entry.asked_at >= FRESH_SECONDS:
                del self._entries[each]
                return key
        return known[-1]

    def _ask(self, entry: _Entry, accounts: Sequence[Account], client_version: str | None) -> None:
        """The account that answered last is asked first; those that are not ready come last."""
        known = entry.models
        likeliest = sorted(
            accounts,
            key=lambda each: (
                each.unready() is not None,
                known is None or each.name != known.account,
            ),
        )
        entry.asking = ModelListRequest(
            self._clock, likeliest, client_version, lambda found: self._answered(entry, found)
        )
        entry.asking.start()

    def _answered(self, entry: _Entry, found: AccountModels | None) -> None:
        entry.asking = None
        entry.asked_at = self._clock.seconds()
        entry.failed = found is None
        if found is not None:
            entry.models = found
        waiting, entry.waiting = entry.waiting, []
        for callback in waiting:
            callback(entry.models)

    def _forget(self) -> None:
        """Drop the oldest entries beyond the bound, because clients choose the versions."""
        for key, entry in list(self._entries.items()):
            if len(self._entries) <= MAX_CATALOGUES:
                return
            if entry.asking is None:
                del self._entries[key]


class ModelListRequest:
    """One request to the accounts of a service, one after the other.

    The next one is asked as soon as one fails, and beside one that is silent.

    :param accounts: of one service, the likeliest first.
    :param client_version: ask in Codex's shape, for this version of it; None for the
        platform's.
    :param callback: called once, with None when none of them answered in time.
    """

    def __init__(
        self,
        clock: IReactorTime,
        accounts: Sequence[Account],
        client_version: str | None,
        callback: Callback,
    ) -> None:
        self._left = list(accounts[:MOST_ASKED])
        self._version = client_version
        self._callback = callback
        self._running: list[_ModelListCall] = []
        self._silence = Deadline(clock, self._ask)
        self._deadline = Deadline(clock, self._too_late)

    def start(self) -> None:
        """Ask."""
        self._deadline.start(ANSWER_SECONDS)
        self._ask()

    def cancel(self) -> None:
        """Ask no account any more, and call nothing."""
        self._left.clear()
        self._silence.stop()
        self._deadline.stop()
        running, self._running = self._running, []
        for call in running:
            call.cancel()

    def _ask(self) -> None:
        self._silence.stop()
        if not self._left:
            return
        call = _ModelListCall(self._left.pop(0), self._version, self._answered)
        self._running.append(call)
        if self._left:
            self._silence.start(SILENCE_SECONDS)
        call.start()

    def _answered(self, call: _ModelListCall, found: AccountModels | None) -> None:
        if call not in self._running:
            return
        self._running.remove(call)
        if found is None and self._left:
            self._ask()
        elif found is not None or not self._running:
            self.cancel()
            self._callback(found)

    def _too_late(self) -> None:
        for call in self._running:
            call.log(f"nothing within {ANSWER_SECONDS:g} seconds")
        self.cancel()
        self._callback(None)


class _ModelListCall:
    """One ``GET /models``; receives the answer of its upstream call."""

    def __init__(
        self,
        account: Account,
        client_version: str | None,
        answered: Callable[[_ModelListCall, AccountModels | None], None],
    ) -> None:
        path = "/models"
        if client_version is not None:
            path += f"?client_version={quote(client_version, safe='')}"
        headers = {"accept": "application/json"}
        headers.update((name.lower(), value) for name, value in account.request_headers)
        self._account = account.name
        self._answered = answered
        self._status = 0
        self._etag: str | None = None
        self._body = bytearray()
        self._call = account.upstream.forward(ForwardedRequest("GET", path, headers), self)

    def start(self) -> None:
        self._call.start()

    def cancel(self) -> None:
        self._call.cancel()

    def log(self, why: str) -> None:
        _log.info("the models of {account} cannot be listed: {why}", account=self._account, why=why)

    def upstream_connected(self) -> None:
        """Nothing to do."""

    def upstream_answered(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        etag = headers.get("etag", "")
        self._etag = etag if may_pass("etag", etag) else None

    def upstream_data(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > _MAX_BYTES:
            self.cancel()
            self._fail("it is too long")

    def upstream_ended(self, error: ApiError | None) -> None:
        if error is not None:
            self._fail(error.message)
        elif not 200 <= self._status < 300:
            self._fail(f"the status {self._status}")
        else:
            self._read()

    def _read(self) -> None:
        try:
            models = read_model_list(bytes(self._body))
        except ValueError as error:
            self._fail(str(error))
        else:
            self._answered(self, AccountModels(models, self._etag, self._account))

    def _fail(self, why: str) -> None:
        self.log(why)
        self._answered(self, None)
