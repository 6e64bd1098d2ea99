"""Tokens that another process renews: a worker asks its supervisor, which renews them for all.

A refresh token that two processes use at once may end them all (RFC 9700 §4.14.2).  The worker
keeps an answer for a short time, so that it asks seldom, and has a renewed token soon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.config import AccountSettings
from gateway.credentials.interface import Credentials, credentials_for
from gateway.protocol.errors import ApiError
from gateway.worker_link import Link, LinkError

_log = Logger(namespace="gateway.credentials")

#: The methods of the link.
_HEADERS, _REFUSED = "tokens.headers", "tokens.refused"

#: How long a worker uses an answer without asking again, in seconds.
_LEASE_SECONDS = 2.0

#: How long a supervisor that does not answer leaves the last token in use, in seconds.
_GRACE_SECONDS = 60.0

#: How long a renewal may take, in seconds: its own deadlines end it before.
_RENEWAL_SECONDS = 120.0

_UNAVAILABLE = "upstream_token_unavailable"

_encode = msgspec.msgpack.Encoder().encode


class TokenQuestion(msgspec.Struct, array_like=True):
    """What a worker asks.

    :ivar account: its name.
    :ivar used: the headers that an upstream refused.
    """

    account: str
    used: dict[str, str] = msgspec.field(default_factory=dict)


class TokenAnswer(msgspec.Struct, array_like=True):
    """What the supervisor answers.

    :ivar headers: those that authorize a request.
    :ivar secrets: what must never be shown.
    :ivar changed: whether the headers are worth another try after a refusal.
    :ivar problem: message and code of the error in place of headers.
    """

    headers: dict[str, str] = msgspec.field(default_factory=dict)
    secrets: list[str] = msgspec.field(default_factory=list)
    changed: bool = False
    problem: tuple[str, str] | None = None


class LinkedCredentials:
    """A worker's side: the tokens of one account.

    :param account: its name.
    :param link: to the supervisor.
    :param clock: any clock.
    """

    def __init__(self, account: str, link: Link, clock: IReactorTime) -> None:
        self._account = account
        self._link = link
        self._clock = clock
        self._headers: Mapping[str, str] | None = None
        self._secrets: list[str] = []
        self._answered_at = 0.0
        self._waiters: list[Deferred[Mapping[str, str]]] = []

    def headers(self) -> Mapping[str, str] | Deferred[Mapping[str, str]]:
        """The header with the access token; a Deferred when the supervisor is asked."""
        if self._headers is not None and self._age() < _LEASE_SECONDS:
            return self._headers
        waiter: Deferred[Mapping[str, str]] = Deferred()
        self._waiters.append(waiter)
        if len(self._waiters) == 1:
            self._ask(_HEADERS, TokenQuestion(self._account)).addCallbacks(
                lambda answer: self._tell(answer.problem), self._unanswered
            )
        return waiter

    def refused(self, used: Mapping[str, str]) -> bool | Deferred[bool]:
        """Ask for other headers after a 401, unless there are some already."""
        if self._headers is not None and used != self._headers:
            return True
        asked = self._ask(_REFUSED, TokenQuestion(self._account, dict(used)))

        def answered(answer: TokenAnswer) -> bool:
            if answer.problem is not None:
                raise ApiError.bad_gateway(*answer.problem)
            return answer.changed

        def unanswered(failure: Failure) -> bool:
            failure.trap(LinkError)
            return False

        return asked.addCallbacks(answered, unanswered)

    def secrets(self) -> Sequence[str]:
        """All tokens and secrets of the account that the supervisor told of."""
        return self._secrets

    def close(self) -> None:
        """Nothing runs here."""

    def _age(self) -> float:
        return abs(self._clock.seconds() - self._answered_at)

    def _ask(self, method: str, question: TokenQuestion) -> Deferred[TokenAnswer]:
        def answered(payload: bytes) -> TokenAnswer:
            answer = msgspec.msgpack.decode(payload, type=TokenAnswer)
            self._secrets = answer.secrets
            if answer.problem is None:
                self._headers = answer.headers
                self._answered_at = self._clock.seconds()
            return answer

        asked = self._link.call(method, _encode(question), _RENEWAL_SECONDS)
        return asked.addCallback(answered)

    def _unanswered(self, failure: Failure) -> None:
        """A supervisor that is busy or gone: the last token is most likely good."""
        if not failure.check(LinkError):
            _log.failure("the supervisor's answer cannot be read", failure)
        if self._headers is not None and self._age() < _GRACE_SECONDS:
            self._tell(None)
        else:
            self._tell(("This account's access token could not be asked for.", _UNAVAILABLE))

    def _tell(self, problem: tuple[str, str] | None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if problem is not None:
                waiter.errback(ApiError.bad_gateway(*problem))
            elif self._headers is not None:
                waiter.callback(self._headers)


def credentials_in_worker(
    link: Link | None, settings: AccountSettings, reactor: Any, client: HTTPClient
) -> Credentials:
    """The credentials of an account: with a supervisor, its tokens are that one's.

    :param link: to the supervisor, or None without one.
    :param client: reaches a token endpoint the way the account's requests go.
    """
    if link is not None and settings.oauth is not None:
        return LinkedCredentials(settings.name, link, reactor)
    return credentials_for(settings, reactor, client)


class TokenServer:
    """The supervisor's side: the tokens of all accounts.

    :param find: the credentials of an account by its name, None for an unknown one.
    """

    def __init__(self, find: Callable[[str], Credentials | None]) -> None:
        self._find = find

    def serve(self, link: Link) -> None:
        """Answer a worker."""
        link.handle(_HEADERS, self._headers)
        link.handle(_REFUSED, self._refused)

    def _headers(self, payload: bytes) -> Deferred[bytes]:
        question = msgspec.msgpack.decode(payload, type=TokenQuestion)
        return self._answer(question.account, changed=False)

    def _refused(self, payload: bytes) -> Deferred[bytes]:
        question = msgspec.msgpack.decode(payload, type=TokenQuestion)
        credentials = self._find(question.account)
        if credentials is None:
            return self._answer(question.account, changed=False)
        asked: Deferred[Any] = maybeDeferred(credentials.refused, question.used)
        return asked.addCallbacks(
            lambda changed: self._answer(question.account, changed), _as_problem
        )

    def _answer(self, account: str, changed: bool) -> Deferred[bytes]:
        credentials = self._find(account)
        if credentials is None:
            return fail(LinkError(f"there are no tokens of {account}"))
        found: Deferred[Any] = maybeDeferred(credentials.headers)
        return found.addCallbacks(
            lambda headers: _encode(
                TokenAnswer(dict(headers), list(credentials.secrets()), changed)
            ),
            _as_problem,
        )


def _as_problem(failure: Failure) -> bytes:
    """An error that the worker's requests end with."""
    failure.trap(ApiError)
    error: Any = failure.value
    return _encode(TokenAnswer(problem=(error.message, error.code)))
