"""Checks of Twisted endpoint strings and URLs, and whether an endpoint is on loopback only.

Nothing listens here and no reactor is installed. URLs with secrets are refused or masked, because
errors show them.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

import idna
from twisted.internet.endpoints import serverFromString

from gateway.config.errors import SettingError
from gateway.config.settings import MASK, without_credentials

_PORT_KINDS = ("tcp", "tcp6", "ssl")
# The parameters of each kind, in the order in which they may be given without names.
_PARAMETERS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "interface", "backlog"),
    "ssl": (
        *("port", "privateKey", "certKey", "sslmethod", "interface"),
        *("backlog", "extraCertChain", "dhParameters"),
    ),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}
_WRAPPER = "haproxy:"

_HTTP = ("http", "https")
_PROXIES = ("http", "socks5", "socks5h")
_HTTP_WORDS = "expected an http:// or https:// URL"
_EXAMPLES = "such as https://api.openai.com/v1 or http://[::1]:8000/v1"
_PROXY_WORDS = (
    "expected http://[user:password@]host:port or socks5://[user:password@]host:port; "
    "%40 stands for an @ in a password"
)
_GRAPHIC = re.compile(r"[\x21-\x7e]+")
_HOST_WORDS = "whose host is an address, or a name of letters, digits and hyphens (no underscore)"
# The gateway adds these to a base URL.
_ENDPOINTS = ("/responses", "/chat/completions", "/models")


class _Endpoint(NamedTuple):
    kind: str
    parameters: dict[str, str]
    surplus: list[str]


def endpoint_problem(text: str) -> str | None:
    """Why Twisted cannot listen on an endpoint, in a few words; None when it can."""
    kind, parameters, surplus = _parse(text)
    known = _PARAMETERS.get(kind)
    if known:
        unknown = [*surplus, *(name for name in parameters if name not in known)]
        if unknown:
            hint = r"; a colon inside a value is written \:" if surplus else ""
            return f"'{unknown[0]}' is not one of its parameters {', '.join(known)}{hint}"
        if known[0] not in parameters:
            return f"its {known[0]} is missing"
    if kind in _PORT_KINDS and not _is_port(parameters["port"]):
        return f"'{parameters['port']}' is not a port between 0 and 65535"
    if kind == "systemd":
        # The sockets exist only in the service itself, not in a --check beforehand.
        one = ("index" in parameters) != ("name" in parameters)
        return None if one else "it takes either an index or a name"
    try:
        # The parsers only keep the reactor for later; without one nothing can be opened.
        serverFromString(None, text)
    except OSError as error:  # the certificate files of ssl:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except Exception as error:
        # Parsers of installed plugins and OpenSSL raise anything.
        words = str(error).splitlines()
        return words[0] if words else type(error).__name__
    return None


#: Words and schemes of ``state.store``.
_STORES = ("sqlite", "memory")
_REDIS = ("redis", "rediss", "redis+sentinel", "rediss+sentinel")
_STORE_WORDS = (
    "expected sqlite, memory, redis://HOST:6379/0, rediss://HOST:6379/0,"
    " or redis+sentinel://HOST:26379,HOST:26379/SERVICE/0"
)


def is_loopback(text: str) -> bool:
    """Whether only this machine can connect; an unknown kind of endpoint counts as reachable."""
    kind, parameters, _ = _parse(text)
    if kind == "unix":
        return True
    if kind == "systemd":
        return parameters.get("domain") == "UNIX"
    interface = parameters.get("interface", "") if kind in _PORT_KINDS else ""
    if interface == "localhost":
        return True
    try:
        return ipaddress.ip_address(interface).is_loopback
    except ValueError:
        return False


def is_inherited(text: str) -> bool:
    """Whether the socket belongs to the service manager, which keeps it open over a restart."""
    return _parse(text).kind == "systemd"


def same_place(one: str, other: str) -> bool:
    """Whether two endpoints cannot listen at the same time."""
    first, second = _parse(one), _parse(other)
    if first.kind not in _PORT_KINDS or second.kind not in _PORT_KINDS:
        return first == second
    ports = [endpoint.parameters.get("port", "") for endpoint in (first, second)]
    if int(ports[0]) != int(ports[1]) or int(ports[0]) == 0:
        return False
    return _overlap(_interface(first), _interface(second))


def _interface(endpoint: _Endpoint) -> str:
    """The address it listens on; "" is all of them, in IPv4."""
    given = endpoint.parameters.get("interface", "")
    everywhere = "::" if endpoint.kind == "tcp6" else ""
    return {"": everywhere, "0.0.0.0": "", "localhost": "127.0.0.1"}.get(given, given)


def _overlap(one: str, other: str) -> bool:
    """Whether two addresses overlap; ``::`` includes IPv4 on the usual systems."""
    if one == other or "::" in (one, other):
        return True
    return "" in (one, other) and ":" not in one + other


def _parse(text: str) -> _Endpoint:
    """The parts of the string, looking through a PROXY-protocol wrapper."""
    inner = text[len(_WRAPPER) :] if text.startswith(_WRAPPER) else text
    kind, *parts = re.split(r"(?<!\\):", inner)
    known = list(_PARAMETERS.get(kind, ()))
    parameters, surplus = {}, []
    for part in parts:
        name, equals, value = part.partition("=")
        if equals:
            parameters[name] = _unescape(value)
        elif known and known[0] not in parameters:
            parameters[known.pop(0)] = _unescape(name)
        else:
            surplus.append(_unescape(name))
    return _Endpoint(kind, parameters, surplus)


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text[:6]) <= 65535


# --- URLs -----------------------------------------------------------------------------------


def base_url(text: str, path: str) -> str:
    """A base URL without its trailing slash.

    :param path: the setting, for errors.
    :raises SettingError: when it is no URL, holds a key, or names an endpoint of the API.
    """
    plain = checked_url(text, path, "the key goes in 'key'").rstrip("/")
    for endpoint in _ENDPOINTS:
        if plain.endswith(endpoint):
            words = f"expected it without {endpoint}, which the gateway adds"
            raise SettingError(path, repr(plain), words)
    return plain


def checked_url(text: str, path: str, instead: str) -> str:
    """The text, when it is an HTTP URL that may be shown.

    :param path: the setting, for errors.
    :param instead: where a user name and a password belong, for the error.
    :raises SettingError: when it is not.
    """
    shown = repr(without_credentials(text).partition("?")[0])
    try:
        parts = urlsplit(text)
        good = parts.scheme in _HTTP and bool(parts.hostname) and parts.port != 0
        good = good and not parts.netloc.endswith(":")
    except ValueError:  # a bad port or a broken IPv6 address
        good = False
    if not good or not _GRAPHIC.fullmatch(text):
        raise SettingError(path, shown, f"{_HTTP_WORDS} {_EXAMPLES}")
    if parts.username is not None or parts.password is not None:
        raise SettingError(path, shown, f"{_HTTP_WORDS} without a user name; {instead}")
    if "?" in text or "#" in text:
        raise SettingError(path, shown, f"{_HTTP_WORDS} without a query or a fragment")
    if not _can_be_looked_up(parts.hostname or ""):
        raise SettingError(path, shown, f"{_HTTP_WORDS} {_HOST_WORDS}")
    return urlunsplit(parts)


def check_proxy(text: str, path: str) -> None:
    """Check the URL of a proxy. Errors show nothing of it: any part may be the password.

    :param path: the setting, for errors.
    :raises SettingError: when it is not right.
    """
    try:
        parts = urlsplit(text)
        good = parts.scheme in _PROXIES and bool(parts.hostname) and bool(parts.port)
    except ValueError:
        good = False
    if not good or parts.path.strip("/") or re.search("[?#]", text) or not _GRAPHIC.fullmatch(text):
        raise SettingError(path, MASK, _PROXY_WORDS)
    if not _can_be_looked_up(parts.hostname or ""):
        raise SettingError(path, MASK, f"expected a proxy {_HOST_WORDS}")
    if parts.username is None:
        return
    user, password = unquote(parts.username), unquote(parts.password or "")
    if parts.scheme == "http" and ":" in user:  # RFC 7617 §2
        words = "expected a user name without a colon for an http:// proxy"
        raise SettingError(path, MASK, words)
    lengths = [len(word.encode()) for word in (user, password)]
    if parts.scheme != "http" and not all(0 < length <= 255 for length in lengths):  # RFC 1929 §2
        words = "expected a user name and a password of 1 to 255 bytes for a socks5:// proxy"
        raise SettingError(path, MASK, words)


def check_store(text: str, path: str) -> None:
    """Check ``state.store``: a word, or the URL of Redis servers.  Errors show no password.

    :param path: the setting, for errors.
    :raises SettingError: when it is not right.
    """
    if text in _STORES:
        return
    shown = repr(without_credentials(text).partition("?")[0]) if "://" in text else repr(text)
    try:
        parts = urlsplit(text)
        places = [_place(each) for each in parts.netloc.rpartition("@")[2].split(",")]
    except ValueError:
        raise SettingError(path, MASK, _STORE_WORDS) from None
    if parts.scheme not in _REDIS or not all(places) or parts.query or parts.fragment:
        raise SettingError(
            path, shown if parts.scheme in _REDIS else repr(parts.scheme or text[:40]), _STORE_WORDS
        )
    sentinel = "sentinel" in parts.scheme
    name, _, database = parts.path.strip("/").rpartition("/")
    several = not sentinel and len(places) > 1
    if bool(name) != sentinel or several or not (database or "0").isdecimal():
        raise SettingError(path, shown, _STORE_WORDS)


def _place(text: str) -> bool:
    """Whether it is a host, with or without a port."""
    parts = urlsplit(f"//{text}")
    return bool(parts.hostname) and (parts.port is None or parts.port > 0)


def _can_be_looked_up(host: str) -> bool:
    """Whether Twisted resolves the name: it refuses underscores and what IDNA does not allow."""
    if ":" in host:
        return "%" not in host and _is_address(host)
    try:
        idna.encode(host)
    except idna.IDNAError:
        return False
    return True


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
