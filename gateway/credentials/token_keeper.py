"""An account's tokens: what is known of them, and where new ones come from."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from gateway.config import OAuthSettings
from gateway.credentials.static import AUTHORIZATION, key_header
from gateway.credentials.token_endpoint import Grant, GrantRefused, TokenEndpoint
from gateway.credentials.token_store import OAuthTokens, TokenFileError, TokenStore

_log = Logger(namespace="gateway.credentials")

#: Renewals ahead of the end vary by this share, so that accounts do not come all at once.
_JITTER = 0.1

_NEVER = float("inf")

#: One for each token file: a reload makes an account anew while it may be renewing its token,
#: and a refresh token that is used twice may end them all (RFC 9700 §4.14.2).
_locks: WeakValueDictionary[str, DeferredLock] = WeakValueDictionary()

#: Runs a function that waits for the disk.
InThread = Callable[[Callable[[], None]], Deferred[None]]


class TokenKeeper:
    """Keeps the tokens of one account, in memory and in the token file.

    :param name: the account's, for the log.
    :param clock: shows unix seconds.
    :param client: a treq client for the token endpoint.
    :param auth_header: see :func:`~gateway.credentials.static.key_header`.
    :param jitter: 0 to 1.
    :ivar headers: those of the access token.
    :ivar tokens: None until there were any.
    :ivar due_at: when a new access token should be asked for, unix seconds.
    :ivar issued_at: when this process got the access token; long ago if it is from the file.
    :ivar unwritten: whether the file lacks the tokens, because it could not be written.
    """

    def __init__(
        self,
        name: str,
        settings: OAuthSettings,
        clock: Any,
        client: Any,
        in_thread: InThread,
        auth_header: str = AUTHORIZATION,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.headers: Mapping[str, str] = {}
        self.tokens: OAuthTokens | None = None
        self.due_at = 0.0
        self.issued_at = -_NEVER
        self.unwritten = False
        self._name = name
        self._settings = settings
        self._clock = clock
        self._endpoint = TokenEndpoint(settings, clock, client)
        self._store = TokenStore(settings.token_file)
        self._in_thread = in_thread
        self._auth_header = auth_header
        self._jitter = jitter
        self._previous: str | None = None
        self._lock = _locks.setdefault(os.path.realpath(settings.token_file), DeferredLock())

    @property
    def ends_at(self) -> float:
        """When the access token ends, unix seconds; in the past without one."""
        tokens = self.tokens
        if tokens is None or tokens.access_token is None:
            return -_NEVER
        return _NEVER if tokens.expires_at is None else tokens.expires_at

    def file_changed(self) -> bool:
        """Whether somebody else wrote the token file."""
        return self._store.changed()

    def secrets(self) -> list[str | None]:
        """All tokens, the access token before this one, too: answers to it are still read."""
        held = self.tokens or OAuthTokens("")
        return [
            *(held.access_token, held.refresh_token, self._previous),
            *(self._settings.refresh_token, self._settings.client_secret),
        ]

    async def renew(self, refused: str | None) -> None:
        """Get an access token other than ``refused``: from the file, else from the endpoint.

        One at a time, of all that share the file.

        :raises GrantRefused: no refresh token is taken.
        :raises EndpointUnavailable: asking failed.
        :raises TokenFileError: the file cannot be read.
        """
        await self._lock.acquire()
        try:
            await self._renew(refused)
        finally:
            self._lock.release()

    async def _renew(self, refused: str | None) -> None:
        if self.unwritten and self.tokens is not None and not self._store.changed():
            await self._write(self.tokens)
            if self._is_good(refused):
                return
        if self._reread() and self._is_good(refused):
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
                if self._reread() and self._is_good(refused):
                    return
            else:
                await self._take(grant, refresh_token)
                return

    def _is_good(self, refused: str | None) -> bool:
        assert self.tokens is not None
        now = self._clock.seconds()
        return self.tokens.access_token != refused and now < self.due_at

    def _reread(self) -> bool:
        """Take over what somebody else wrote into the file; whether there was anything."""
        if not self._store.changed():
            return False
        tokens = self._store.read()
        if tokens is None:
            return False
        self.unwritten = False
        self._use(tokens)
        return True

    def _candidate(self, tried: set[str]) -> str | None:
        """The refresh token of the file; where that one is refused, the configuration's,
        which the operator may have replaced since the file was made."""
        held = self.tokens.refresh_token if self.tokens is not None else None
        for refresh_token in (held, self._settings.refresh_token):
            if refresh_token is not None and refresh_token not in tried:
                return refresh_token
        return None

    async def _take(self, grant: Grant, refresh_token: str) -> None:
        now = self._clock.seconds()
        lasts = grant.expires_in
        tokens = OAuthTokens(
            grant.refresh_token or refresh_token,
            grant.access_token,
            None if lasts is None else now + lasts,
        )
        await self._write(tokens)
        self.issued_at = now
        self._use(tokens, lasts)
        _log.info(
            "account {name} has a new access token for {lasts}",
            name=self._name,
            lasts="an unknown time" if lasts is None else f"{lasts:.0f} seconds",
        )

    async def _write(self, tokens: OAuthTokens) -> None:
        """Tokens that cannot be written are used all the same: the old ones may be void."""
        try:
            await self._in_thread(partial(self._store.write, tokens))
        except TokenFileError as error:
            self.unwritten = True
            _log.error(
                "account {name}: the token file {path} {problem}; a restart now would lose"
                " the account's tokens",
                name=self._name,
                path=self._store.path,
                problem=str(error),
            )
        else:
            self.unwritten = False

    def _use(self, tokens: OAuthTokens, lasts: float | None = None) -> None:
        if self.tokens is not None and self.tokens.access_token != tokens.access_token:
            self._previous = self.tokens.access_token
        self.tokens = tokens
        if tokens.access_token is not None:
            self.headers = key_header(tokens.access_token, self._auth_header)
        ahead = self._settings.refresh_before_seconds * (1 + _JITTER * self._jitter())
        # What is good for less than twice that time is renewed at half-time.
        self.due_at = self.ends_at - (ahead if lasts is None else min(ahead, lasts / 2))
