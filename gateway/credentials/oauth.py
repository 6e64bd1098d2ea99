"""OAuth 2 refresh tokens (RFC 6749 §6): an access token that is renewed in time.

Requests share one renewal.  A token near its end is renewed while it is still used.  If the token
has ended or was answered 401, requests wait for the renewal.  A new refresh token is written to
the file before the access token that came with it is used, because the old one may be void from
then on.

The ends of tokens and pauses are valid only after the time at which they were computed: if the
clock is set back to before it, they are ignored.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.config import OAuthSettings
from gateway.credentials.static import AUTHORIZATION, key_header, worth_hiding
from gateway.credentials.token_endpoint import (
    EndpointUnavailable,
    Grant,
    GrantRefused,
    TokenEndpoint,
)
from gateway.credentials.token_store import OAuthTokens, TokenFileError, TokenStore
from gateway.protocol.errors import ApiError

_log = Logger(namespace="gateway.credentials")

#: Error codes when there is no token: the operator must act, or a later try may succeed.
UNAUTHORIZED = "upstream_unauthorized"
UNAVAILABLE = "upstream_token_unavailable"

#: First and longest pause after a failure, in seconds; each one doubles it.  A changed file
#: ends it.
_PAUSES = {UNAUTHORIZED: (60.0, 3600.0), UNAVAILABLE: (1.0, 60.0)}

#: How often the file is checked during a pause, in seconds.
_CHECK_SECONDS = 1.0

#: A token that is younger than this, in seconds, is not renewed after a 401: a new one would be
#: refused, too.
_SETTLED_SECONDS = 10.0

#: How soon tokens that could not be written are written again, in seconds.
_REWRITE_SECONDS = 10.0

#: How long a shutdown waits for a renewal, so that its refresh token is not lost, in seconds.
_CLOSE_SECONDS = 5.0

#: Jitter of renewals ahead of the end, as a share, so that accounts do not renew all at once.
_JITTER = 0.1

_NEVER = float("inf")

#: One for each token file: a reload makes an account anew while it may be renewing its token,
#: and a refresh token that is used twice may end them all (RFC 9700 §4.14.2).
_locks: WeakValueDictionary[str, DeferredLock] = WeakValueDictionary()

#: Runs a function that waits for the disk.
InThread = Callable[[Callable[[], None]], Deferred[None]]


class TokenProblem(NamedTuple):
    """Why there is no new token: an error's message and code."""

    message: str
    code: str


class OAuthCredentials:
    """The access token of one account: when it is renewed, and which requests wait for that.

    :param name: the account's, for the log.
    :param reactor: its clock shows unix seconds.
    :param client: a treq client for the token endpoint.
    :param auth_header: see :func:`~gateway.credentials.static.key_header`.
    :param jitter: 0 to 1.
    """

    def __init__(
        self,
        name: str,
        settings: OAuthSettings,
        reactor: Any,
        client: Any,
        in_thread: InThread,
        auth_header: str = AUTHORIZATION,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._clock = reactor
        self._jitter = jitter
        endpoint = TokenEndpoint(settings, reactor, client)
        self._source = TokenSource(name, settings, endpoint, in_thread, auth_header, jitter)
        self._tried_at = 0.0
        self._fresh_until = 0.0
        self._rejected: str | None = None
        self._renewal: Deferred[None] | None = None
        self._waiters: list[Deferred[None]] = []
        self._problem: TokenProblem | None = None
        self._failures = 0
        self._pause_until = 0.0
        self._next_check = 0.0

    def headers(self) -> Mapping[str, str] | Deferred[Mapping[str, str]]:
        """The header with the access token; a Deferred while none is usable."""
        source, now = self._source, self._clock.seconds()
        if self._tried_at <= now < self._fresh_until:
            return source.headers
        problem = self._standing_problem(now)
        if problem is None:
            self._renew()  # it may be over at once, with the tokens of the file
            problem = self._standing_problem(now)
        token = source.access_token
        if token is not None and token != self._rejected and now < source.ends_at:
            return source.headers  # though its end may be near
        if problem is not None:
            return fail(ApiError.bad_gateway(*problem))
        return self._wait().addCallback(lambda _: source.headers)

    def refused(self, used: Mapping[str, str]) -> bool | Deferred[bool]:
        """Renew the token after a 401, unless there is another one already."""
        source = self._source
        if used != source.headers:
            return True
        now = self._clock.seconds()
        if self._renewal is None:
            if 0 <= now - source.issued_at < _SETTLED_SECONDS:
                return False
            problem = self._standing_problem(now)
            if problem is not None:
                return fail(ApiError.bad_gateway(*problem))
        self._rejected = source.access_token
        self._fresh_until = 0.0
        renewed = self._wait().addCallback(lambda _: source.headers != used)
        self._renew()
        return renewed

    def secrets(self) -> Sequence[str]:
        """All tokens and secrets of the account."""
        return worth_hiding(*self._source.secrets())

    def close(self) -> Deferred[None] | None:
        """Wait for a running renewal, for a bounded time."""
        renewal = self._renewal
        if renewal is None:
            return None
        too_long = self._clock.callLater(_CLOSE_SECONDS, renewal.cancel)

        def ended(_: object) -> None:
            if too_long.active():
                too_long.cancel()

        return self._wait().addBoth(ended)

    def _standing_problem(self, now: float) -> TokenProblem | None:
        """Why the last renewal failed, while there is no reason to try again."""
        if self._problem is None or self._renewal is not None:
            return None
        if not self._tried_at <= now < self._pause_until:
            return None
        if not self._next_check - _CHECK_SECONDS <= now < self._next_check:
            self._next_check = now + _CHECK_SECONDS
            if self._source.store.changed():
                return None
        return self._problem

    def _wait(self) -> Deferred[None]:
        """Wait for the renewal; cancelling the Deferred does not stop it."""
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        return waiter

    def _renew(self) -> None:
        if self._renewal is None:
            self._renewal = Deferred.fromCoroutine(self._source.renew(self._rejected))
            self._renewal.addCallbacks(self._succeeded, self._failed)

    def _succeeded(self, _: None) -> None:
        source = self._source
        self._tried_at = now = self._clock.seconds()
        again = now + _REWRITE_SECONDS if source.unwritten else source.due_at
        self._fresh_until = min(again, source.due_at)
        self._problem = None
        self._failures = 0
        self._ended()

    def _failed(self, failure: Failure) -> None:
        problem = _problem_of(failure)
        if self._problem is None or self._problem.code != problem.code:
            self._failures = 0
        shortest, longest = _PAUSES[problem.code]
        pause = min(longest, shortest * 2.0 ** min(self._failures, 30))
        self._failures += 1
        self._problem = problem
        self._tried_at = self._clock.seconds()
        self._pause_until = self._tried_at + pause * (1 - self._jitter() / 2)
        # Until then the current token is used, if there is one.
        self._fresh_until = min(self._pause_until, self._source.ends_at)
        _log.error(
            "account {name} has no new access token: {problem} (token file: {path})",
            name=self._source.name,
            problem=problem.message,
            path=self._source.store.path,
        )
        self._ended()

    def _ended(self) -> None:
        self._renewal = None
        self._rejected = None
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if self._problem is None:
                waiter.callback(None)
            else:  # errors are not shared
                waiter.errback(ApiError.bad_gateway(*self._problem))


class TokenSource:
    """The tokens of one account, in memory and in the token file, and where new ones come from.

    :param name: the account's, for the log.
    :ivar headers: those of the access token.
    :ivar due_at: when a new access token should be asked for, unix seconds.
    :ivar issued_at: when this process got the access token; long ago if it is from the file.
    :ivar unwritten: whether the tokens could not be written to the file.
    """

    def __init__(
        self,
        name: str,
        settings: OAuthSettings,
        endpoint: TokenEndpoint,
        in_thread: InThread,
        auth_header: str,
        jitter: Callable[[], float],
    ) -> None:
        self.name = name
        self.store = TokenStore(settings.token_file)
        self.headers: Mapping[str, str] = {}
        self.due_at = 0.0
        self.issued_at = -_NEVER
        self.unwritten = False
        self._settings = settings
        self._endpoint = endpoint
        self._in_thread = in_thread
        self._auth_header = auth_header
        self._jitter = jitter
        self._tokens: OAuthTokens | None = None
        self._previous: str | None = None
        self._lock = _locks.setdefault(os.path.realpath(settings.token_file), DeferredLock())

    @property
    def access_token(self) -> str | None:
        """The access token, None until there was one."""
        return None if self._tokens is None else self._tokens.access_token

    @property
    def ends_at(self) -> float:
        """When the access token ends, unix seconds; in the past without one."""
        tokens = self._tokens
        if tokens is None or tokens.access_token is None:
            return -_NEVER
        return _NEVER if tokens.expires_at is None else tokens.expires_at

    def secrets(self) -> list[str | None]:
        """All tokens, the access token before this one, too: answers to it are still read."""
        held = self._tokens or OAuthTokens("")
        return [
            *(held.access_token, held.refresh_token, self._previous),
            *(self._settings.refresh_token, self._settings.client_secret),
        ]

    async def renew(self, rejected: str | None) -> None:
        """Get an access token other than ``rejected``: from the file, else from the endpoint.

        One at a time, of all that share the file.

        :raises GrantRefused: no refresh token is accepted.
        :raises EndpointUnavailable: the endpoint gave no usable answer.
        :raises TokenFileError: the file cannot be read.
        """
        await self._lock.acquire()
        try:
            await self._renew(rejected)
        finally:
            self._lock.release()

    async def _renew(self, rejected: str | None) -> None:
        if self.unwritten and self._tokens is not None and not self.store.changed():
            await self._write(self._tokens)
            if self._is_good(rejected):
                return
        if self._reread() and self._is_good(rejected):
            return
        code = "there is none"
        tried: set[str] = set()
        while True:
            refresh_token = self._candidate(tried)
            if refresh_token is None:
                raise GrantRefused(code)
            tried.add(refresh_token)
            try:
                grant = await self._endpoint.refresh(refresh_token)
            except GrantRefused as error:
                code = str(error)
                if self._reread() and self._is_good(rejected):
                    return
            else:
                await self._take(grant, refresh_token)
                return

    def _is_good(self, rejected: str | None) -> bool:
        return self.access_token != rejected and self._endpoint.clock.seconds() < self.due_at

    def _reread(self) -> bool:
        """Use tokens that other programs wrote into the file; whether there were any."""
        tokens = self.store.read() if self.store.changed() else None
        if tokens is None:
            return False
        self.unwritten = False
        self._use(tokens)
        return True

    def _candidate(self, tried: set[str]) -> str | None:
        """The refresh token of the file; if that is refused, the configuration's.

        The operator may have replaced the latter since the file was made.
        """
        held = self._tokens.refresh_token if self._tokens is not None else None
        for refresh_token in (held, self._settings.refresh_token):
            if refresh_token is not None and refresh_token not in tried:
                return refresh_token
        return None

    async def _take(self, grant: Grant, refresh_token: str) -> None:
        now = self._endpoint.clock.seconds()
        lasts = grant.expires_in
        ends_at = None if lasts is None else now + lasts
        tokens = OAuthTokens(grant.refresh_token or refresh_token, grant.access_token, ends_at)
        await self._write(tokens)
        self.issued_at = now
        self._use(tokens, lasts)
        _log.info(
            "account {name} has a new access token for {lasts}",
            name=self.name,
            lasts="an unknown time" if lasts is None else f"{lasts:.0f} seconds",
        )

    async def _write(self, tokens: OAuthTokens) -> None:
        """Tokens that cannot be written are used all the same: the old ones may be void."""
        try:
            await self._in_thread(partial(self.store.write, tokens))
        except TokenFileError as error:
            self.unwritten = True
            _log.error(
                "account {name}: the token file {path} {problem}; a restart now would lose"
                " the account's tokens",
                name=self.name,
                path=self.store.path,
                problem=str(error),
            )
        else:
            self.unwritten = False

    def _use(self, tokens: OAuthTokens, lasts: float | None = None) -> None:
        if self._tokens is not None and self.access_token != tokens.access_token:
            self._previous = self.access_token
        self._tokens = tokens
        if tokens.access_token is not None:
            self.headers = key_header(tokens.access_token, self._auth_header)
        ahead = self._settings.refresh_before_seconds * (1 + _JITTER * self._jitter())
        # What is good for less than twice that time is renewed at half-time.
        self.due_at = self.ends_at - (ahead if lasts is None else min(ahead, lasts / 2))


def _problem_of(failure: Failure) -> TokenProblem:
    """Why a renewal failed, for the operator."""
    error = failure.value
    if isinstance(error, GrantRefused):
        return TokenProblem(
            f"This account's refresh token was refused ({error}): log in again and put the new"
            " refresh token into its token file.",
            UNAUTHORIZED,
        )
    if isinstance(error, TokenFileError):
        return TokenProblem(f"This account's token file {error}.", UNAUTHORIZED)
    if isinstance(error, EndpointUnavailable):
        return TokenProblem(f"This account's token endpoint {error}.", UNAVAILABLE)
    if not isinstance(error, CancelledError):  # a stop cancels
        _log.failure("the gateway failed while it renewed a token", failure)
    return TokenProblem("This account's access token could not be renewed.", UNAVAILABLE)
