"""Authorization of operators: by the token as a Bearer, or by a login session.

On loopback without a configured token every client may read.  Acting, and reading at any other
address, requires the token.

A page of another site can make an operator's browser send requests here, also under a name of
that site that resolves to this address (DNS rebinding).  The browser then sends that name in
``Host``, and the site in ``Origin`` and ``Sec-Fetch-Site`` (Fetch Metadata Request Headers, W3C);
so all three are checked.
"""

from __future__ import annotations

import ipaddress
import math
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection
from hashlib import sha256
from hmac import compare_digest
from typing import NamedTuple
from urllib.parse import urlsplit

from gateway.admin.requests import AdminError, AdminRequest, bad_request

COOKIE = "gateway_admin"

#: Sessions at the same time; the least recently used ends first.
MAX_LOGINS = 64

#: How long a session lasts at most, and how long without any use, in seconds.
_LONGEST_SECONDS = 12 * 3_600.0
_IDLE_SECONDS = 3_600.0

#: For how long, in seconds, a page shows the result of an action, and its longest text.
_SAID_SECONDS = 15.0
_LONGEST_SAID = 1000

_ID_BYTES = 32

#: Longest session id that is accepted.
_MAX_ID = 100

#: The first wait after a wrong token and the longest, in seconds.
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 60.0

#: How long an address is remembered after its last wrong token, in seconds, and how many are.
_REMEMBERED_SECONDS = 3_600.0
MAX_ADDRESSES = 1024

#: Wrong tokens a minute, of all addresses, that are checked.
MAX_FAILURES = 60
_MINUTE = 60.0

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?\Z")

#: Values of ``Sec-Fetch-Site`` that may send a change; ``none`` is direct input of the operator.
_FRIENDLY_SITES = frozenset({"same-origin", "none"})

_DEFAULT_PORTS = {"http": 80, "https": 443}

#: The advice where no token is configured.
_NO_TOKEN = (
    "no admin token is configured, so no action is allowed: set admin.token in the configuration"
    " (token: ${ADMIN_TOKEN} takes it from the environment) and reload or restart"
)


class Caller(NamedTuple):
    """The sender of a request, and its rights.

    :ivar name: for the audit log: ``token``, a login's name, or None when it is not known.
    :ivar address: its address.
    :ivar login: the session, if it sent a cookie.
    :ivar may_read: whether it may read.
    :ivar why_not: a sentence why it may not act; None if it may.
    :ivar by_bearer: whether it sent the token itself, which pages of other sites cannot.
    :ivar tokens: how many tokens had been configured.
    """

    name: str | None
    address: str
    login: AdminSession | None
    may_read: bool
    why_not: str | None
    by_bearer: bool = False
    tokens: int = 0


class AccessControl:
    """The access rules of the admin side.

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
        """Use this token and these names from now on; a changed token ends all sessions."""
        wanted = None if token is None else token.encode()
        if wanted != self._token:
            self.logins.end_all()
            self._tokens += 1
        self._token = wanted
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)

    @property
    def has_token(self) -> bool:
        """Whether a token is configured."""
        return self._token is not None

    def check_host(self, request: AdminRequest) -> None:
        """Refuse a request that is meant for another server."""
        check_host(request, self._hosts)

    def caller(self, request: AdminRequest) -> Caller:
        """The sender of ``request``.

        :raises AdminError: 401 for a wrong token, 429 for one too many.
        """
        given = _bearer(request)
        if given is None or self._token is None:
            return self.by_cookie(request)
        address = request.peer
        self._check(given, address, self.bearers)
        return Caller("token", address, None, True, None, True, self._tokens)

    def by_cookie(self, request: AdminRequest) -> Caller:
        """The sender of ``request`` by its cookie alone."""
        address = request.peer
        login = self._login(request)
        if login is not None:
            return Caller(login.name, address, login, True, None, tokens=self._tokens)
        open_to_all = self._token is None and self._loopback
        return Caller(
            None,
            address,
            None,
            open_to_all,
            _NO_TOKEN if self._token is None else "log in, or send 'Authorization: Bearer <token>'",
            tokens=self._tokens,
        )

    def check_read(self, caller: Caller) -> None:
        """Refuse a caller that may not read.

        :raises AdminError: 401.
        """
        if not caller.may_read:
            raise _unauthorized(caller.why_not or "")

    def check_content(self, request: AdminRequest, caller: Caller) -> None:
        """Refuse a caller that may not see what clients and models said: those who may act see it.

        :raises AdminError: 401 or 403.
        """
        check_origin(request)
        if self._token is None:
            raise AdminError(403, _NO_TOKEN)
        if caller.why_not is not None:
            raise _unauthorized(caller.why_not)

    def check_post(self, request: AdminRequest, caller: Caller) -> None:
        """Refuse a caller that may not change anything.

        Browsers send the cookie with requests of any page, so with a cookie the page's origin must
        be known and be the admin side's own.

        :raises AdminError: 401 or 403.
        """
        own_page = check_origin(request)
        if self._token is None:
            raise AdminError(403, _NO_TOKEN)
        if caller.why_not is not None:
            raise _unauthorized(caller.why_not)
        if not caller.by_bearer and not own_page:
            raise AdminError(403, "send an Origin header with a cookie, or the token as Bearer")

    def log_in(self, request: AdminRequest, given: str) -> tuple[str, AdminSession]:
        """Begin a session with the token; a session that the client had ends.

        :raises AdminError: 401 for a wrong token, 429 for one too many, 403 without any.
        """
        check_origin(request)
        if self._token is None:
            raise AdminError(403, _NO_TOKEN)
        self._check(given.encode(errors="surrogatepass"), request.peer, self.forms)
        self.log_out(request)
        return self.logins.begin()

    def log_out(self, request: AdminRequest) -> None:
        """End the session that the client has, if any."""
        session_id = _cookie(request)
        if session_id is not None:
            self.logins.end(session_id)

    def lasts(self, caller: Caller) -> bool:
        """Whether a caller that listens to events may go on."""
        goes_on = caller.login is None or self.logins.lasts(caller.login)
        return goes_on and caller.tokens == self._tokens

    def _login(self, request: AdminRequest) -> AdminSession | None:
        session_id = _cookie(request)
        return None if session_id is None else self.logins.find(session_id)

    def _check(self, given: bytes, address: str, throttle: Throttle) -> None:
        """The right token is always accepted, however often the address sent wrong ones."""
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


def _bearer(request: AdminRequest) -> bytes | None:
    """The token in ``Authorization``; empty when there is something else, or more than one."""
    value = request.http.headers.get("authorization")
    if value is None:
        return None
    scheme, _, token = value.partition(" ")
    token = token.strip()  # no token has a space in it
    return token.encode("latin-1") if scheme.lower() == "bearer" and " " not in token else b""


def _cookie(request: AdminRequest) -> str | None:
    pairs = (pair.partition("=") for pair in request.header("cookie").split(";"))
    values = [value.strip() for name, _, value in pairs if name.strip() == COOKIE]
    return values[-1] or None if values else None


def _unauthorized(sentence: str) -> AdminError:
    return AdminError(401, sentence, {"www-authenticate": "Bearer"})


# --- sessions ------------------------------------------------------------------------------


class AdminSession:
    """A login.

    :ivar name: its name in logs; its id cannot be derived from that.
    """

    __slots__ = ("_said", "_said_at", "began_at", "name", "used_at")

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.began_at = now
        self.used_at = now
        self._said: str | None = None
        self._said_at = now

    def tell(self, what: str, now: float) -> None:
        """Keep the result of an action for the page that the browser is redirected to."""
        self._said, self._said_at = what[:_LONGEST_SAID], now

    def said(self, now: float) -> str | None:
        """The result of an action just now; a page may be asked for more than once."""
        return self._said if 0 <= now - self._said_at < _SAID_SECONDS else None


class AdminSessions:
    """All sessions, bounded in count and age; only hashes of their ids are kept.

    :param now: seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._logins: OrderedDict[bytes, AdminSession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._logins)

    def begin(self) -> tuple[str, AdminSession]:
        """A new session and its id, which is never one that a client sent."""
        session_id = secrets.token_urlsafe(_ID_BYTES)
        digest = _digest(session_id)
        login = self._logins[digest] = AdminSession(f"login {digest.hex()[:8]}", self._now())
        while len(self._logins) > MAX_LOGINS:
            self._logins.popitem(last=False)
        return session_id, login

    def find(self, session_id: str) -> AdminSession | None:
        """The session of that id, used now; None when there is none (any more)."""
        if len(session_id) > _MAX_ID:
            return None
        digest = _digest(session_id)
        login = self._logins.get(digest)
        if login is None:
            return None
        now = self._now()
        if now - login.began_at >= _LONGEST_SECONDS or now - login.used_at >= _IDLE_SECONDS:
            del self._logins[digest]
            return None
        login.used_at = now
        self._logins.move_to_end(digest)
        return login

    def lasts(self, login: AdminSession) -> bool:
        """Whether a session is still valid; checking does not count as use."""
        return login in self._logins.values() and self._now() - login.began_at < _LONGEST_SECONDS

    def end(self, session_id: str) -> None:
        """End the session of that id, if there is one."""
        if len(session_id) <= _MAX_ID:
            self._logins.pop(_digest(session_id), None)

    def end_all(self) -> None:
        """End all sessions, because the token changed."""
        self._logins.clear()


def _digest(session_id: str) -> bytes:
    return sha256(session_id.encode(errors="surrogatepass")).digest()


# --- wrong tokens --------------------------------------------------------------------------


class _Failures(NamedTuple):
    times: int
    last: float
    barred_until: float


class Throttle:
    """Slows down guessing: each wrong token of an address makes it wait twice as long.

    The right token is never throttled.  What keeps a token from being guessed is its length.

    :param now: seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failures: OrderedDict[str, _Failures] = OrderedDict()
        self._minute = 0.0
        self._in_minute = 0

    def __len__(self) -> int:
        return len(self._failures)

    def check(self, address: str) -> None:
        """Refuse an address that has to wait.

        :raises AdminError: 429.
        """
        now = self._now()
        network = _network(address)
        failures = self._failures.get(network)
        if failures is not None and failures.barred_until > now:
            raise _wait(failures.barred_until - now)
        if now - self._minute < _MINUTE and self._in_minute >= MAX_FAILURES:
            raise _wait(self._minute + _MINUTE - now)

    def failed(self, address: str) -> None:
        """Count a wrong token of ``address``."""
        now = self._now()
        network = _network(address)
        known = self._failures.pop(network, None)
        count = 1
        if known is not None and now - known.last < _REMEMBERED_SECONDS:
            count += known.times
        wait = min(_FIRST_WAIT * 2 ** min(count - 1, 16), _LONGEST_WAIT)
        self._failures[network] = _Failures(count, now, now + wait)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
        if now - self._minute >= _MINUTE:
            self._minute, self._in_minute = now, 0
        self._in_minute += 1


def _wait(seconds: float) -> AdminError:
    whole = max(1, math.ceil(seconds))
    return AdminError(
        429,
        f"too many wrong tokens; wait {whole} seconds before the next try",
        {"retry-after": str(whole)},
    )


def _network(address: str) -> str:
    """An IPv6 address counts as its /64 network, which one client has for itself."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False))


# --- hosts and origins ---------------------------------------------------------------------


def check_host(request: AdminRequest, names: Collection[str]) -> None:
    """Refuse a request that is meant for another server.

    :param names: host names by which the admin side may be called besides its addresses.
    :raises AdminError: 400 or 421 (RFC 9110 §15.5.20).
    """
    name, _ = _split(request.header("host"))
    if name in names or name == "localhost" or name.endswith(".localhost"):
        return
    address = _address(name)
    if address is not None and (address.is_loopback or address == _address(request.local)):
        return
    raise AdminError(421, "this host is not served here; admin.hosts lists the names that are")


def check_origin(request: AdminRequest) -> bool:
    """Refuse a request that a page of another site sends.

    :return: whether the request shows that it comes from a page of our own.
    :raises AdminError: 403.
    """
    site, origin = (request.http.headers.get(name) for name in ("sec-fetch-site", "origin"))
    if site is not None and site not in _FRIENDLY_SITES:
        raise AdminError(403, "another site sent this; nothing was done")
    if origin is not None and not _is_own(origin, request):
        raise AdminError(403, "a page of another origin sent this; nothing was done")
    return origin is not None or site == "same-origin"


def _is_own(origin: str, request: AdminRequest) -> bool:
    """Whether an origin is the address that this request was sent to.

    A proxy in front of the admin side may speak TLS where the gateway does not.
    """
    try:
        parts = urlsplit(origin)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return False
    if parts.scheme not in _DEFAULT_PORTS or (request.is_secure and parts.scheme != "https"):
        return False
    name, own_port = _split(request.header("host"))
    own = own_port or _DEFAULT_PORTS[parts.scheme]
    return (parts.hostname or "").rstrip(".") == name and port == own


def _split(host: str) -> tuple[str, int | None]:
    """Name and port of a ``Host``, the name without brackets and in lower case."""
    found = _HOST.match(host)
    if found is None:
        raise bad_request("send one Host header, with a name or an address")
    name = found[1].strip("[]").lower().rstrip(".")
    return name, int(found[2]) if found[2] else None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped
