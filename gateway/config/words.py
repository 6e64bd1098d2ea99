"""Rules for the words of a configuration: names, credentials, headers, model patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from gateway.config.errors import SettingError, SettingErrors
from gateway.config.secrets import MASK
from gateway.config.settings import Section

_NAME_LIMIT = 128
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_CREDENTIAL = re.compile(r"[\x21-\x7e]+")
# Files of variables keep them for some programs (`docker --env-file`), and no key has them.
_QUOTES = "\"'"
# The HTTP client owns the framing of its requests.
_FRAMING_HEADERS = frozenset(
    ["connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"]
)
_OURS = "expected another header; the gateway sets this one itself"


def check_names(names: Iterable[tuple[str, str]], mistakes: SettingErrors) -> None:
    """Every name of a section, given as (section, name), can be shown and is its own."""
    first: dict[str, int] = {}
    for index, (section, name) in enumerate(names):
        path = f"{section}[{index}].name"
        if not name.isprintable() or name != name.strip() or len(name) > _NAME_LIMIT:
            words = f"expected at most {_NAME_LIMIT} printable characters, no space at either end"
            mistakes.append(SettingError(path, repr(name[:_NAME_LIMIT]), words))
        elif name in first:
            taken = f"{section}[{first[name]}] has this name already; expected each name once"
            mistakes.append(SettingError(path, repr(name), taken))
        first.setdefault(name, index)


def check_one_of(entry: Section, path: str, *names: str) -> None:
    """Exactly one of these members is given."""
    given = [name for name in names if getattr(entry, name) is not None]
    if len(given) != 1:
        words = f"expected one of {', '.join(names)}; got {' and '.join(given) or 'none'}"
        raise SettingError(path, words)


def check_credential(value: str, path: str) -> None:
    """It fits into a header."""
    if not _CREDENTIAL.fullmatch(value):
        words = "expected printable ASCII characters without spaces or line breaks"
        raise SettingError(path, MASK, words)
    if len(value) > 1 and value[0] == value[-1] and value[0] in _QUOTES:
        raise SettingError(path, MASK, "expected it without the quotes around it")


def check_models(patterns: Sequence[str], path: str, mistakes: SettingErrors) -> None:
    """None is blank."""
    for index, pattern in enumerate(patterns):
        if not pattern.strip():
            words = "expected a model name or a pattern such as gpt-5*"
            mistakes.append(SettingError(f"{path}[{index}]", repr(pattern), words))


def check_auth_header(name: str, path: str) -> None:
    """It is a name; what is not may be a whole line with the key."""
    if not _HEADER_NAME.fullmatch(name):
        raise SettingError(path, MASK, "expected the name of an HTTP header such as api-key")
    if name.lower() in _FRAMING_HEADERS:
        raise SettingError(path, repr(name), _OURS)


def check_headers(headers: Mapping[str, str], path: str, mistakes: SettingErrors) -> None:
    """They can be sent, and each is given once."""
    seen: set[str] = set()
    for name, value in headers.items():
        with mistakes.noted():
            _check_header(name, value, f"{path}.{name}", seen)
        seen.add(name.lower())


def _check_header(name: str, value: str, here: str, seen: set[str]) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise SettingError(here, "expected an HTTP header name")
    if name.lower() in _FRAMING_HEADERS:
        raise SettingError(here, _OURS)
    if name.lower() in seen:
        raise SettingError(here, "given twice in different case; expected once")
    if not _HEADER_VALUE.fullmatch(value):
        raise SettingError(here, MASK, "expected printable ASCII without line breaks")
