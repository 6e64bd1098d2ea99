"""Who may read and who may act: the token as a Bearer, or a login that was begun with it.

On loopback without a token anybody may read.  To act, and to read at any other address, takes
the token.
"""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest
from typing import NamedTuple

from twisted.web.http import Request

from gateway.admin.errors import AdminError
from gateway.admin.logins import AdminSession, AdminSessions
from gateway.admin.origins import check_host, check_origin, client_address
from gateway.admin.throttle import Throttle

COOKIE = "gateway_admin"

#: How to let somebody act, where nobody can.
_NO_TOKEN = (
    "no admin token is configured, so nobody may act here: set admin.token in the configuration"
    " (token: ${ADMIN_TOKEN} takes it from the environment) and reload or restart"
)


class Visitor(NamedTuple):
    """Who asks.

    :ivar name: for the audit log: ``token``, a login's name, or None for nobody known.
    :ivar address: from where.
    :ivar login: the session, when it came by a cookie.
    :ivar may_read: whether it may see anything.
    :ivar why_not: the sentence that says why it may not act; None when it may.
    :ivar by_bearer: whether it sent the token itself, which no other site's page can.
    :ivar tokens: how many tokens were configured by then.
    """

    name: str | None
    address: str
    login: AdminSession | None
    may_read: bool
    why_not: str | None
    by_bearer: bool = False
    tokens: int = 0


class Access:
    """The rules of entry.

    :param token: the admin token, or None.
    :param loopback: whether only this machine can reach the listener.
    :param hosts: names by which the admin side may be called besides its addresses.
    :param now: seconds.
    """

    def __init__(
        self,
        token: str | None,
        loopback: bool,
        hosts: tuple[str, ...],
        now: Callable[[], float],
    ) -> None:
        self.logins = AdminSessions(now)
        self.bearers = Throttle(now)
        self.forms = Throttle(now)
        self._loopback = loopback
        self._token: bytes | None = None
        self._tokens = 0
        self.reconfigure(token, hosts)

    def reconfigure(self, token: str | None, hosts: tuple[str, ...]) -> None:
        """Take this token and these names from now on; another token ends all logins."""
        wanted = None if token is None else token.encode()
        if wanted != self._token:
            self.logins.end_all()
            self._tokens += 1
        self._token = wanted
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)

    @property
    def has_token(self) -> bool:
        """Whether anybody can log in."""
        return self._token is not None

    def check_host(self, request: Request) -> None:
        """See :func:`~gateway.admin.origins.check_host`."""
        check_host(request, self._hosts)

    def visitor(self, request: Request) -> Visitor:
        """Who sent ``request``.

        :raises AdminError: 401 for a wrong token, 429 for one too many.
        """
        given = _bearer(request)
        if given is None or self._token is None:
            return self.by_cookie(request)
        address = client_address(request)
        self._check(given, address, self.bearers)
        return Visitor("token", address, None, True, None, True, self._tokens)

    def by_cookie(self, request: Request) -> Visitor:
        """Who sent ``request``, as far as a cookie tells."""
        address = client_address(request)
        login = self._login(request)
        if login is not None:
            return Visitor(login.name, address, login, True, None, tokens=self._tokens)
        open_to_all = self._token is None and self._loopback
        return Visitor(
            None,
            address,
            None,
            open_to_all,
            _NO_TOKEN if self._token is None else "log in, or send 'Authorization: Bearer <token>'",
            tokens=self._tokens,
        )

    def check_read(self, visitor: Visitor) -> None:
        """Whether it may see what is shown.

        :raises AdminError: 401.
        """
        if not visitor.may_read:
            raise _unauthorized(visitor.why_not or "")

    def check_post(self, request: Request, visitor: Visitor) -> None:
        """Whether it may change something.

        A cookie comes along with whatever page sends the request; so then the page's origin
        must be known and be our own.

        :raises AdminError: 401 or 403.
        """
        own_page = check_origin(request)
        if self._token is None:
            raise AdminError(403, _NO_TOKEN)
        if visitor.why_not is not None:
            raise _unauthorized(visitor.why_not)
        if not visitor.by_bearer and not own_page:
            raise AdminError(403, "send an Origin header with a cookie, or the token as Bearer")

    def log_in(self, request: Request, given: str) -> tuple[str, AdminSession]:
        """Begin a session for who knows the token; one that the client had is over.

        :raises AdminError: 401 for a wrong token, 429 for one too many, 403 without any.
        """
        check_origin(request)
        if self._token is None:
            raise AdminError(403, _NO_TOKEN)
        self._check(given.encode(errors="surrogatepass"), client_address(request), self.forms)
        self.log_out(request)
        return self.logins.begin()

    def log_out(self, request: Request) -> None:
        """End the session that the client has, if any."""
        session_id = _cookie(request)
        if session_id is not None:
            self.logins.end(session_id)

    def lasts(self, visitor: Visitor) -> bool:
        """Whether who was let in to listen may go on."""
        goes_on = visitor.login is None or self.logins.lasts(visitor.login)
        return goes_on and visitor.tokens == self._tokens

    def _login(self, request: Request) -> AdminSession | None:
        session_id = _cookie(request)
        return None if session_id is None else self.logins.find(session_id)

    def _check(self, given: bytes, address: str, throttle: Throttle) -> None:
        """Whoever has the token is let in: others behind the same address may fail as they like."""
        if self._token is not None and compare_digest(given, self._token):
            return
        throttle.check(address)
        if given:
            throttle.failed(address)
        raise _unauthorized("this is not the admin token")


def cookie(session_id: str, secure: bool) -> str:
    """The ``Set-Cookie`` of a session; an empty id takes it away.

    It has no lifetime of its own and so ends with the browser, or when the gateway says.
    """
    ends = "" if session_id else "; Max-Age=0"
    return f"{COOKIE}={session_id}; Path=/; HttpOnly; SameSite=Strict{ends}" + (
        "; Secure" if secure else ""
    )


def _bearer(request: Request) -> bytes | None:
    """The token in ``Authorization``; empty when there is something else."""
    values = request.requestHeaders.getRawHeaders(b"authorization")
    if not values:
        return None
    scheme, _, token = values[0].partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" and len(values) == 1 else b""


def _cookie(request: Request) -> str | None:
    value = request.getCookie(COOKIE.encode())
    return None if not value else value.decode("latin-1")


def _unauthorized(sentence: str) -> AdminError:
    return AdminError(401, sentence, {"www-authenticate": "Bearer"})
