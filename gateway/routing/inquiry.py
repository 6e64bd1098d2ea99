"""Asking the accounts of one service which models it offers, until one says it."""

from __future__ import annotations

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

#: How long all of it may take, in seconds: Codex waits for 5 (protocol.md §7).
ANSWER_SECONDS = 4.0

#: How long an account may be silent, in seconds, before the next one is asked beside it.
PATIENCE_SECONDS = 1.0

#: Accounts that are asked at most.
MOST_ASKED = 8

_MAX_BYTES = 8 * 1024 * 1024

_log = Logger(namespace="gateway.catalogue")


class AccountModels(NamedTuple):
    """One upstream's answer to ``GET /models``.

    :ivar models: what it says of each, by name.
    :ivar etag: the ``ETag`` of the answer, or None.
    :ivar account: the name of the account that gave it.
    """

    models: Mapping[str, ListedModel]
    etag: str | None
    account: str


class ModelListRequest:
    """One question to the accounts of a service, one after the other.

    The next one is asked as soon as one fails, and beside one that is silent.

    :param accounts: of one service, the likeliest first.
    :param client_version: ask in Codex's shape, for this version of it; None for the
        platform's.
    :param told: called once, with None when none of them could say it in time.
    """

    def __init__(
        self,
        clock: IReactorTime,
        accounts: Sequence[Account],
        client_version: str | None,
        told: Callable[[AccountModels | None], None],
    ) -> None:
        self._left = list(accounts[:MOST_ASKED])
        self._version = client_version
        self._told = told
        self._running: list[_Question] = []
        self._patience = Deadline(clock, self._ask)
        self._deadline = Deadline(clock, self._too_late)

    def start(self) -> None:
        """Ask."""
        self._deadline.start(ANSWER_SECONDS)
        self._ask()

    def cancel(self) -> None:
        """Ask nobody any more, and tell nothing."""
        self._left.clear()
        self._patience.stop()
        self._deadline.stop()
        running, self._running = self._running, []
        for question in running:
            question.cancel()

    def _ask(self) -> None:
        self._patience.stop()
        if not self._left:
            return
        question = _Question(self._left.pop(0), self._version, self._answered)
        self._running.append(question)
        if self._left:
            self._patience.start(PATIENCE_SECONDS)
        question.start()

    def _answered(self, question: _Question, found: AccountModels | None) -> None:
        if question not in self._running:
            return
        self._running.remove(question)
        if found is None and self._left:
            self._ask()
        elif found is not None or not self._running:
            self.cancel()
            self._told(found)

    def _too_late(self) -> None:
        for question in self._running:
            question.log(f"nothing within {ANSWER_SECONDS:g} seconds")
        self.cancel()
        self._told(None)


class _Question:
    """One ``GET /models``; a :class:`~gateway.upstream.interface.BodyReceiver`."""

    def __init__(
        self,
        account: Account,
        client_version: str | None,
        answered: Callable[[_Question, AccountModels | None], None],
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
        """The answer is what counts."""

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
