"""OAuth 2 refresh tokens (RFC 6749 §6): an access token that is renewed in time.

A renewal is one for all who need it.  It starts when a request meets a token near its end,
which goes on being used meanwhile, or one that has ended or was answered 401, and then the
request waits.  A new refresh token is in the file before the access token that came with it
is used: the old one may be void from then on.

The ends of tokens and pauses are counted from a moment; a clock that was set back to before it
makes them worth nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.config import OAuthSettings
from gateway.credentials.static import AUTHORIZATION, worth_hiding
from gateway.credentials.token_endpoint import EndpointUnavailable, GrantRefused
from gateway.credentials.token_keeper import InThread, TokenKeeper
from gateway.credentials.token_store import TokenFileError
from gateway.protocol.errors import ApiError

_log = Logger(namespace="gateway.credentials")

#: Codes of the errors that say why there is no token: the operator must act, or time will do.
UNAUTHORIZED = "upstream_unauthorized"
UNAVAILABLE = "upstream_token_unavailable"

#: First and longest pause after a failure, in seconds; each one doubles it.  A changed file
#: ends it.
_PAUSES = {UNAUTHORIZED: (60.0, 3600.0), UNAVAILABLE: (1.0, 60.0)}

#: How often the file is looked at during a pause, in seconds.
_LOOK_SECONDS = 1.0

#: A token this young that is answered 401 is not too old: another would fare no better.
_SETTLED_SECONDS = 10.0

#: How soon tokens that could not be written are tried to be written again, in seconds.
_REWRITE_SECONDS = 10.0

#: How long a stop waits for a renewal: its refresh token must not get lost.  In seconds.
_CLOSE_SECONDS = 5.0


class Problem(NamedTuple):
    """Why there is no new token: an error's message and code."""

    message: str
    code: str

    def error(self) -> ApiError:
        """One more of it: errors are not shared."""
        return ApiError.bad_gateway(self.message, self.code)


class OAuthCredentials:
    """The access token of one account; see :class:`~gateway.credentials.interface.Credentials`.

    The other parameters are those of :class:`~gateway.credentials.token_keeper.TokenKeeper`.

    :param reactor: its clock shows unix seconds.
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
        self._name = name
        self._path = settings.token_file
        self._clock = reactor
        self._keeper = TokenKeeper(name, settings, reactor, client, in_thread, auth_header, jitter)
        self._jitter = jitter
        self._tried_at = 0.0
        self._carefree_until = 0.0
        self._doubted: str | None = None
        self._renewal: Deferred[None] | None = None
        self._waiters: list[Deferred[None]] = []
        self._problem: Problem | None = None
        self._failures = 0
        self._pause_until = 0.0
        self._next_look = 0.0

    def headers(self) -> Mapping[str, str] | Deferred[Mapping[str, str]]:
        """The access token's; a Deferred while none is usable."""
        now = self._clock.seconds()
        if self._tried_at <= now < self._carefree_until:
            return self._keeper.headers
        problem = self._standing_problem(now)
        if problem is None:
            self._renew()  # it may be over at once, with the tokens of the file
            problem = self._standing_problem(now)
        if self._usable(now):
            return self._keeper.headers
        if problem is not None:
            return fail(problem.error())
        return self._wait().addCallback(lambda _: self._keeper.headers)

    def refused(self, used: Mapping[str, str]) -> bool | Deferred[bool]:
        """A 401: there may be another token already, or there is one soon."""
        if used != self._keeper.headers:
            return True
        now = self._clock.seconds()
        if self._renewal is None:
            if 0 <= now - self._keeper.issued_at < _SETTLED_SECONDS:
                return False
            problem = self._standing_problem(now)
            if problem is not None:
                return fail(problem.error())
        tokens = self._keeper.tokens
        self._doubted = tokens.access_token if tokens is not None else None
        self._carefree_until = 0.0
        renewed = self._wait().addCallback(lambda _: self._keeper.headers != used)
        self._renew()
        return renewed

    def secrets(self) -> Sequence[str]:
        """All that the account has."""
        return worth_hiding(*self._keeper.secrets())

    def close(self) -> Deferred[None] | None:
        """Let a renewal end, within bounds."""
        renewal = self._renewal
        if renewal is None:
            return None
        too_long = self._clock.callLater(_CLOSE_SECONDS, renewal.cancel)

        def ended(_: object) -> None:
            if too_long.active():
                too_long.cancel()

        return self._wait().addBoth(ended)

    def _usable(self, now: float) -> bool:
        """Whether the token can be tried, though its end may be near."""
        tokens = self._keeper.tokens
        if tokens is None or tokens.access_token == self._doubted:
            return False
        return now < self._keeper.ends_at

    def _standing_problem(self, now: float) -> Problem | None:
        """What the last renewal failed of, while there is no reason to try again."""
        if self._problem is None or self._renewal is not None:
            return None
        if not self._tried_at <= now < self._pause_until:
            return None
        if not self._next_look - _LOOK_SECONDS <= now < self._next_look:
            self._next_look = now + _LOOK_SECONDS
            if self._keeper.file_changed():
                return None
        return self._problem

    # --- renewals --------------------------------------------------------------------

    def _wait(self) -> Deferred[None]:
        """For the end of the renewal; whoever cancels it only leaves."""
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        return waiter

    def _renew(self) -> None:
        if self._renewal is None:
            self._renewal = Deferred.fromCoroutine(self._keeper.renew(self._doubted))
            self._renewal.addCallbacks(self._succeeded, self._failed)

    def _succeeded(self, _: None) -> None:
        keeper = self._keeper
        self._tried_at = self._clock.seconds()
        again = self._tried_at + _REWRITE_SECONDS if keeper.unwritten else keeper.due_at
        self._carefree_until = min(again, keeper.due_at)
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
        # Until then the token that is there is used on, if any.
        self._carefree_until = min(self._pause_until, self._keeper.ends_at)
        _log.error(
            "account {name} has no new access token: {problem} (token file: {path})",
            name=self._name,
            problem=problem.message,
            path=self._path,
        )
        self._ended()

    def _ended(self) -> None:
        self._renewal = None
        self._doubted = None
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if self._problem is None:
                waiter.callback(None)
            else:
                waiter.errback(self._problem.error())


def _problem_of(failure: Failure) -> Problem:
    """What a failed renewal is in the words of its operator."""
    error = failure.value
    if isinstance(error, GrantRefused):
        return Problem(
            f"This account's refresh token was refused ({error}): log in again and put the new"
            " refresh token into its token file.",
            UNAUTHORIZED,
        )
    if isinstance(error, TokenFileError):
        return Problem(f"This account's token file {error}.", UNAUTHORIZED)
    if isinstance(error, EndpointUnavailable):
        return Problem(f"This account's token endpoint {error}.", UNAVAILABLE)
    if not isinstance(error, CancelledError):  # a stop cancels
        _log.failure("the gateway failed while it renewed a token", failure)
    return Problem("This account's access token could not be renewed.", UNAVAILABLE)
