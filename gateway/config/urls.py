"""The URLs of a configuration: are they whole, and do they hold no secret that would be shown?"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

from gateway.config.errors import MistakeError
from gateway.config.secrets import MASK, without_credentials

_HTTP = ("http", "https")
_PROXIES = ("http", "socks5", "socks5h")
_HTTP_WORDS = "expected an http:// or https:// URL"
_PROXY_WORDS = (
    "expected http://[user:password@]host:port or socks5://[user:password@]host:port; "
    "%40 stands for an @ in a password"
)
_GRAPHIC = re.compile(r"[\x21-\x7e]+")


def base_url(text: str, path: str) -> str:
    """`text` without a trailing slash; the key does not belong in it."""
    return checked_url(text, path, "the key goes in 'key'").rstrip("/")


def checked_url(text: str, path: str, instead: str) -> str:
    """`text` when it is an HTTP URL that may be shown; `instead` says where secrets belong."""
    shown = repr(without_credentials(text).partition("?")[0])
    try:
        parts = urlsplit(text)
        good = parts.scheme in _HTTP and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bad port or a broken IPv6 address
        good = False
    if not good or not _GRAPHIC.fullmatch(text):
        raise MistakeError(path, shown, _HTTP_WORDS)
    if parts.username is not None or parts.password is not None:
        raise MistakeError(path, shown, f"{_HTTP_WORDS} without a user name; {instead}")
    if "?" in text or "#" in text:
        raise MistakeError(path, shown, f"{_HTTP_WORDS} without a query or a fragment")
    return urlunsplit(parts)


def check_proxy(text: str, path: str) -> None:
    """Nothing of it is shown: any part of a malformed one may be the password."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in _PROXIES and bool(parts.hostname) and bool(parts.port)
    except ValueError:
        good = False
    if not good or parts.path.strip("/") or re.search("[?#]", text) or not _GRAPHIC.fullmatch(text):
        raise MistakeError(path, MASK, _PROXY_WORDS)
    if parts.username is None:
        return
    user, password = unquote(parts.username), unquote(parts.password or "")
    if parts.scheme == "http" and ":" in user:  # RFC 7617 §2
        words = "expected a user name without a colon for an http:// proxy"
        raise MistakeError(path, MASK, words)
    lengths = [len(word.encode()) for word in (user, password)]
    if parts.scheme != "http" and not all(0 < length <= 255 for length in lengths):  # RFC 1929 §2
        words = "expected a user name and a password of 1 to 255 bytes for a socks5:// proxy"
        raise MistakeError(path, MASK, words)
