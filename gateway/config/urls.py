"""The URLs of a configuration: are they whole, and do they hold no secret that would be shown?"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote, urlsplit, urlunsplit

import idna

from gateway.config.errors import SettingError
from gateway.config.secrets import MASK, without_credentials

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
# What the gateway itself puts behind a base URL.
_ENDPOINTS = ("/responses", "/chat/completions", "/models")


def base_url(text: str, path: str) -> str:
    """`text` without a trailing slash; the key does not belong in it."""
    plain = checked_url(text, path, "the key goes in 'key'").rstrip("/")
    for endpoint in _ENDPOINTS:
        if plain.endswith(endpoint):
            words = f"expected it without {endpoint}, which the gateway adds"
            raise SettingError(path, repr(plain), words)
    return plain


def checked_url(text: str, path: str, instead: str) -> str:
    """`text` when it is an HTTP URL that may be shown; `instead` says where secrets belong."""
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
    """Nothing of it is shown: any part of a malformed one may be the password."""
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


def _can_be_looked_up(host: str) -> bool:
    """Whether Twisted asks the resolver for it: for no underscore, and no `--` of its own."""
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
