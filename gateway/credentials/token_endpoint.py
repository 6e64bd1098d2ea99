"""The OAuth 2 token endpoint, which exchanges refresh tokens (RFC 6749 §6)."""

from __future__ import annotations

import base64
import re
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote_plus, urlencode

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from gateway.config import OAuthSettings
from gateway.credentials.static import can_be_sent

_log = Logger(namespace="gateway.credentials")

#: How long the whole answer may take, in seconds.
_ANSWER_SECONDS = 30.0

#: How large it may be, in bytes.
_MAX_ANSWER_BYTES = 65_536

#: No token is good for longer, in seconds; larger numbers are mistakes.
_MAX_LIFE_SECONDS = 10 * 365 * 24 * 3600

#: Statuses that refuse by themselves (RFC 6749 §5.2).  Others without a code come from
#: another server before the endpoint, such as a firewall, or from a wrong address.
_REFUSALS = (400, 401)

#: Temporary refusals, which say nothing about the refresh token.
_PASSING_STATUSES = (408, 425, 429)
_PASSING_CODES = ("server_error", "slow_down", "temporarily_unavailable")

#: A code that may be shown; anything else that a server sends as one is not.
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,60}")


class GrantRefused(Exception):
    """The endpoint refuses the refresh token or the client; the text is its code."""


class EndpointUnavailable(Exception):
    """The answer is unusable; the text continues "the token endpoint …" and holds no secret."""


class Grant(NamedTuple):
    """What the endpoint issued.

    :ivar expires_in: seconds, None when the endpoint did not say.
    :ivar refresh_token: replaces the one that was used; None when that one stays valid.
    """

    access_token: str
    expires_in: float | None
    refresh_token: str | None

    def __repr__(self) -> str:
        return f"Grant(<hidden>, expires_in={self.expires_in})"


class TokenEndpoint:
    """The token endpoint of one account.

    :param clock: shows unix seconds.
    :param client: a treq client; its connections go the account's way.
    """

    def __init__(self, settings: OAuthSettings, clock: IReactorTime, client: Any) -> None:
        self._settings = settings
        self.clock = clock
        self._client = client

    async def refresh(self, refresh_token: str) -> Grant:
        """Exchange a refresh token for an access token.

        :raises GrantRefused: asking again will not help.
        :raises EndpointUnavailable: it may, later.
        """
        asking: Deferred[tuple[int, bytes]] = Deferred.fromCoroutine(self._ask(refresh_token))
        asking.addTimeout(_ANSWER_SECONDS, self.clock, _too_late)
        try:
            status, body = await asking
        except (CancelledError, EndpointUnavailable):
            raise
        except Exception as error:
            _log.warn(
                "the token endpoint {url} could not be reached: {error}",
                url=self._settings.token_url,
                error=str(error),
            )
            raise EndpointUnavailable("could not be reached") from None
        return _read(status, body)

    async def _ask(self, refresh_token: str) -> tuple[int, bytes]:
        settings = self._settings
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        headers = {
            "accept": "application/json",
            "content-type": "application/x-www-form-urlencoded",
        }
        if settings.scope is not None:
            form["scope"] = settings.scope
        if settings.client_secret is None:
            form["client_id"] = settings.client_id
        else:
            headers["authorization"] = _basic(settings.client_id, settings.client_secret)
        response = await self._client.post(
            settings.token_url,
            headers=headers,
            data=urlencode(form).encode("ascii"),
            allow_redirects=False,
            unbuffered=True,
            reactor=self.clock,
        )
        reader = _BoundedBody()
        response.deliverBody(reader)
        return response.code, await reader.body


def _too_late(_: object, seconds: float) -> NoReturn:
    raise EndpointUnavailable(f"did not answer within {seconds:g} seconds")


def _basic(client_id: str, client_secret: str) -> str:
    """HTTP Basic; both are form-encoded first (RFC 6749 §2.3.1)."""
    pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
    return f"Basic {base64.b64encode(pair.encode('ascii')).decode('ascii')}"


def _read(status: int, body: bytes) -> Grant:
    """A grant (RFC 6749 §5.1), or an error (RFC 6749 §5.2), sometimes with the status 200."""
    try:
        members: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        members = None
    if not isinstance(members, dict):
        members = {}
    code = _code_of(members.get("error"))
    temporary = status in _PASSING_STATUSES or code in _PASSING_CODES
    has_code = code is not None and (status == 200 or 400 <= status < 500)
    if not temporary and (has_code or status in _REFUSALS):
        raise GrantRefused(code or f"status {status}")
    if status != 200:
        raise EndpointUnavailable(f"answered with the status {status}")
    access_token = members.get("access_token")
    if not isinstance(access_token, str) or not can_be_sent(access_token):
        raise EndpointUnavailable("answered without an access token")
    if str(members.get("token_type") or "bearer").lower() != "bearer":
        raise EndpointUnavailable("gave a token that is no bearer token")
    refresh_token = members.get("refresh_token")
    return Grant(
        access_token,
        _seconds(members.get("expires_in")),
        refresh_token if isinstance(refresh_token, str) and refresh_token else None,
    )


def _code_of(error: object) -> str | None:
    """The code in ``error``: text by the RFC, an object where it is the API's."""
    if isinstance(error, dict):
        error = error.get("code") or error.get("type") or "error"
    if error is None:
        return None
    return error if isinstance(error, str) and _CODE.fullmatch(error) else "error"


def _seconds(given: object) -> float | None:
    """``expires_in``; some servers send it as text."""
    if isinstance(given, bool) or not isinstance(given, (int, float, str)):
        return None
    try:
        seconds = float(given)
    except (ValueError, OverflowError):
        return None
    return min(seconds, _MAX_LIFE_SECONDS) if seconds > 0 else None


class _BoundedBody(Protocol):
    """Collects a response's body; cancelling ``body`` closes the connection."""

    def __init__(self) -> None:
        self.body: Deferred[bytes] = Deferred(lambda _: self._drop())
        self._read = bytearray()
        self._over = False

    def dataReceived(self, data: bytes) -> None:
        self._read += data
        if len(self._read) > _MAX_ANSWER_BYTES and not self._over:
            self._drop()
            self.body.errback(EndpointUnavailable("answered with more than can be read"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._over:
            return
        self._over = True
        if reason.check(ResponseDone, PotentialDataLoss):
            self.body.callback(bytes(self._read))
        else:
            self.body.errback(EndpointUnavailable("broke off its answer"))

    def _drop(self) -> None:
        self._over = True
        if self.transport is not None:
            self.transport.loseConnection()
