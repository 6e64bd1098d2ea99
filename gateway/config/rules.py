"""What types and ranges cannot say: URLs, headers, names used twice, who may reach what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import msgspec

from gateway.config.endpoints import endpoint_problem, is_loopback, same_place
from gateway.config.errors import MistakeError
from gateway.config.settings import MASK, AccountSettings, Section, Settings

_ENDPOINT_WORDS = "expected a Twisted endpoint such as tcp:8080:interface=127.0.0.1"
_URL_WORDS = "expected an http:// or https:// URL"
_NAME_LIMIT = 128
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_CREDENTIAL = re.compile(r"[\x21-\x7e]+")
# The HTTP client owns the framing of its requests.
_FRAMING_HEADERS = frozenset(
    ["connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"]
)


def apply_rules(settings: Settings) -> Settings:
    """`settings` with base URLs in their plain form; raises MistakeError at the first mistake."""
    _check_names([("keys", key.name) for key in settings.keys])
    _check_names([("accounts", account.name) for account in settings.accounts])
    _check_keys(settings)
    accounts = tuple(
        _check_account(account, f"accounts[{index}]")
        for index, account in enumerate(settings.accounts)
    )
    _check_listeners(settings)
    return msgspec.structs.replace(settings, accounts=accounts)


def _check_names(names: list[tuple[str, str]]) -> None:
    first: dict[str, int] = {}
    for index, (section, name) in enumerate(names):
        path = f"{section}[{index}].name"
        if not name.isprintable() or name != name.strip() or len(name) > _NAME_LIMIT:
            words = f"expected at most {_NAME_LIMIT} printable characters, no space at either end"
            raise MistakeError(path, repr(name[:_NAME_LIMIT]), words)
        if name in first:
            taken = f"{section}[{first[name]}] has this name already"
            raise MistakeError(path, repr(name), f"{taken}; expected each name once")
        first[name] = index


def _check_keys(settings: Settings) -> None:
    first: dict[str, int] = {}
    for path, value in _credentials(settings):
        if not _CREDENTIAL.fullmatch(value):
            words = "expected printable ASCII characters without spaces or line breaks"
            raise MistakeError(path, MASK, words)
    for index, key in enumerate(settings.keys):
        _check_one_of(key, f"keys[{index}]", "key", "key_sha256")
        if key.key is None:
            continue
        if key.key in first:
            taken = f"keys[{first[key.key]}] has this key already"
            raise MistakeError(f"keys[{index}].key", MASK, f"{taken}; expected each key once")
        first[key.key] = index


def _credentials(settings: Settings) -> Iterator[tuple[str, str]]:
    if settings.admin.token is not None:
        yield "admin.token", settings.admin.token
    for index, key in enumerate(settings.keys):
        if key.key is not None:
            yield f"keys[{index}].key", key.key
    for index, account in enumerate(settings.accounts):
        if account.key is not None:
            yield f"accounts[{index}].key", account.key


def _check_one_of(entry: Section, path: str, *names: str) -> None:
    given = [name for name in names if getattr(entry, name) is not None]
    if len(given) != 1:
        words = f"expected one of {', '.join(names)}; got {' and '.join(given) or 'none'}"
        raise MistakeError(path, words)


def _check_account(account: AccountSettings, path: str) -> AccountSettings:
    _check_one_of(account, path, "key", "key_file", "oauth")
    if not account.base_url:
        raise MistakeError(f"{path}.base_url", "missing; every entry without a preset needs it")
    _check_headers(account.headers, f"{path}.headers")
    for index, pattern in enumerate(account.models):
        if not pattern.strip():
            words = "expected a model name or a pattern such as gpt-5*"
            raise MistakeError(f"{path}.models[{index}]", repr(pattern), words)
    base_url = _plain_url(account.base_url, f"{path}.base_url")
    return msgspec.structs.replace(account, base_url=base_url)


def _check_headers(headers: dict[str, str], path: str) -> None:
    seen: set[str] = set()
    for name, value in headers.items():
        here = f"{path}.{name}"
        if not _HEADER_NAME.fullmatch(name):
            raise MistakeError(here, "expected an HTTP header name")
        if name.lower() in _FRAMING_HEADERS:
            raise MistakeError(here, "expected another header; the gateway sets this one itself")
        if name.lower() in seen:
            raise MistakeError(here, "given twice in different case; expected once")
        if not _HEADER_VALUE.fullmatch(value):
            raise MistakeError(here, MASK, "expected printable ASCII without line breaks")
        seen.add(name.lower())


def _plain_url(text: str, path: str) -> str:
    shown = repr(re.sub(r"//[^/]*@", f"//{MASK}@", text).partition("?")[0])
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bad port or a broken IPv6 address
        good = False
    if not good or not re.fullmatch(r"[\x21-\x7e]+", text):
        raise MistakeError(path, shown, _URL_WORDS)
    if parts.username is not None or parts.password is not None:
        raise MistakeError(path, shown, f"{_URL_WORDS} without a user name; the key goes in 'key'")
    if "?" in text or "#" in text:
        raise MistakeError(path, shown, f"{_URL_WORDS} without a query or a fragment")
    return urlunsplit(parts).rstrip("/")


def _check_listeners(settings: Settings) -> None:
    for path, text in (("listen", settings.listen), ("admin.listen", settings.admin.listen)):
        problem = text and endpoint_problem(text)
        if problem:
            raise MistakeError(path, repr(text), f"{_ENDPOINT_WORDS}: {problem}")
    if not settings.keys and not is_loopback(settings.listen):
        raise MistakeError(
            *("keys", "[]"),
            "expected at least one key, because other machines can reach "
            f"listen '{settings.listen}'; without keys listen on 127.0.0.1, ::1 or unix:",
        )
    admin = settings.admin
    if admin.listen is None:
        return
    if same_place(settings.listen, admin.listen):
        raise MistakeError("admin.listen", repr(admin.listen), "expected another place than listen")
    if admin.token is None and not is_loopback(admin.listen):
        raise MistakeError(
            *("admin.token", "null"),
            "expected a token, because other machines can reach "
            f"admin.listen '{admin.listen}'; without one listen on 127.0.0.1, ::1 or unix:",
        )
