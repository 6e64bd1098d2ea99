"""Removes secrets from what a request log is given: headers, paths and bodies.

Bodies are read as JSON and written anew.  A secret that a known header carried is then found
wherever else it stands, because it can be written in one way only.  Text that is a JSON document
itself, such as the arguments of a call, is treated alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import translate
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from gateway.config.settings import MASK

#: Headers and fields of a query that carry credentials, by parts of their names.  Names such as
#: ``x-ratelimit-remaining-tokens`` are none.
_SECRET_NAME = re.compile(
    r"auth|cookie|token(?!s)|secret|passw|credential|signature|api[-_]?key|(?:^|[-_])key$",
    re.IGNORECASE,
)

#: Members of bodies that carry credentials when they are texts.
_SECRET_MEMBERS = frozenset(
    [
        *("authorization", "api_key", "api-key", "apikey", "x-api-key", "bearer", "cookie"),
        *("access_token", "refresh_token", "id_token", "client_secret", "password", "secret"),
    ]
)

#: Members of streamed events with a piece of a text.
_PIECES = frozenset(["delta", "arguments"])

#: A shorter value is no secret: it may stand in any text by chance.
SHORTEST_SECRET = 8

#: Nesting of texts that are JSON, and of JSON, that is followed; deeper values are not shown.
_DEEPEST = 100

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class RedactionRules:
    """What the operator wants to be hidden besides the secrets that are known.

    :param names: of headers and JSON members, as shell patterns; their case does not matter.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        patterns = [translate(name.lower()) for name in names]
        self._named = re.compile("|".join(patterns)) if patterns else None

    @property
    def hides_members(self) -> bool:
        """Whether a piece of JSON may have something to hide."""
        return self._named is not None

    def is_named(self, name: str) -> bool:
        """Whether the operator named it."""
        return self._named is not None and self._named.match(name.lower()) is not None

    def is_secret_header(self, name: str) -> bool:
        """Whether a header's value is hidden."""
        return _SECRET_NAME.search(name) is not None or self.is_named(name)


class Redactor:
    """Removes the secrets of one turn.

    :param rules: what is hidden by its name.
    :ivar secrets: what is hidden wherever it stands, the longest first.
    """

    def __init__(self, rules: RedactionRules) -> None:
        self._rules = rules
        self.secrets: tuple[str, ...] = ()
        self._has_digits = False

    def learn(self, values: Iterable[str]) -> None:
        """Hide these values from now on; short ones are left out."""
        known = {*self.secrets, *(each for each in values if len(each) >= SHORTEST_SECRET)}
        self.secrets = tuple(sorted(known, key=len, reverse=True))
        self._has_digits = any(each.isdigit() for each in known)

    def learn_headers(self, headers: Mapping[str, str], own: Iterable[str] = ()) -> None:
        """Hide from now on what the secret headers carry.

        :param own: names of further headers that are secret.
        """
        names = {name.lower() for name in own}
        for name, value in headers.items():
            if name.lower() in names or self._rules.is_secret_header(name):
                self.learn(_secrets_in(value))

    def field(self, name: str, value: Any) -> Any:
        """A value of the gateway's own, such as the name of the model."""
        if self._rules.is_named(name):
            return MASK
        return self.text(value) if isinstance(value, str) else value

    # --- parts of a request --------------------------------------------------------------

    def headers(self, headers: Mapping[str, str], own: Iterable[str] = ()) -> dict[str, str]:
        """Headers as they may be shown; of secret ones only the names.

        :param own: names of further headers that are secret.
        """
        names = {name.lower() for name in own}
        return {
            name: MASK
            if name.lower() in names or self._rules.is_secret_header(name)
            else self.text(value)
            for name, value in headers.items()
        }

    def path(self, path: str) -> str:
        """A path with its query, as it may be shown."""
        place, mark, query = path.partition("?")
        if mark:
            fields = parse_qsl(query, keep_blank_values=True, errors="replace")
            shown = [
                (name, MASK if self._rules.is_secret_header(name) else self.text(value))
                for name, value in fields
            ]
            query = urlencode(shown, safe="<>", quote_via=quote)
        return self.text(place) + mark + query

    def text(self, text: str) -> str:
        """A text without secrets."""
        for secret in self.secrets:
            if secret in text:
                text = text.replace(secret, MASK)
        return text

    def body(self, data: bytes) -> bytes:
        """A body or an event as JSON: as it is, or ``{"text": ...}`` of what is no JSON."""
        try:
            return msgspec.json.encode(self._value(msgspec.json.decode(data), 0))
        except (*_UNREADABLE, ValueError, OverflowError):
            return self._unread(data)

    def _unread(self, data: bytes) -> bytes:
        text = MASK if self._rules.hides_members else self.text(data.decode("utf-8", "replace"))
        return msgspec.json.encode({"text": text})

    # --- values --------------------------------------------------------------------------

    def _value(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._string(value, depth)
        if depth >= _DEEPEST:
            return MASK if isinstance(value, (dict, list)) else value
        if isinstance(value, dict):
            return {
                self.text(name): self._member(name, each, depth + 1) for name, each in value.items()
            }
        if isinstance(value, list):
            return [self._value(each, depth + 1) for each in value]
        if self._has_digits and type(value) in (int, float) and self.text(str(value)) != str(value):
            return MASK
        return value

    def _member(self, name: str, value: Any, depth: int) -> Any:
        lowered = name.lower()
        if self._rules.is_named(name):
            return MASK
        if isinstance(value, str) and lowered in _SECRET_MEMBERS:
            return MASK
        if lowered == "headers" and isinstance(value, dict):  # of a remote tool
            return {each: MASK if isinstance(one, str) else one for each, one in value.items()}
        if lowered in _PIECES and self._rules.hides_members:
            return self._piece(lowered, value, depth)
        return self._value(value, depth)

    def _piece(self, name: str, value: Any, depth: int) -> Any:
        """A text that may be a piece of JSON, in which no member is found; the whole follows."""
        if isinstance(value, str):
            return self._string(value, depth) if name == "arguments" and _is_json(value) else MASK
        if isinstance(value, dict) and isinstance(value.get("content"), str):
            value = {**value, "content": MASK}
        return self._value(value, depth)

    def _string(self, text: str, depth: int) -> str:
        """A text, which may be JSON itself; one without anything to hide stays as it is."""
        shown = self.text(text)
        if text.lstrip()[:1] not in ("{", "["):
            return shown
        unread = MASK if self._rules.hides_members else shown
        if depth >= _DEEPEST:
            return unread
        try:
            value = msgspec.json.decode(text)
            redacted = self._value(value, depth + 1)
            if redacted == value and shown == text and "\\" not in text:
                return text
            return msgspec.json.encode(redacted).decode()
        except (*_UNREADABLE, ValueError, OverflowError):
            return unread


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except _UNREADABLE:
        return False
    return True


def _secrets_in(value: str) -> Sequence[str]:
    """The secrets of a header's value: all of it, and its parts (``Bearer KEY``, cookies)."""
    parts = re.split(r"[\s;,]+", value)
    return [value, *parts, *(part.partition("=")[2] for part in parts)]
