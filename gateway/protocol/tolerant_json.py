"""JSON as some services write it, made JSON that every client can read (RFC 8259).

Writers that are less strict leave ``NaN`` and ``Infinity`` where a number is none, and half a
character where they cut a text between the two escapes of one.  Some parsers take that, others
refuse the whole text.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.protocol.errors import UNREADABLE

_LONE = rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
_PAIR = rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ODD = re.compile(rb'(")|' + _PAIR + rb"|(" + _LONE + rb")|\\.|(NaN|-?Infinity)", re.DOTALL)

#: What stands for a character that cannot be known, as an escape of the same length.
_UNKNOWN_CHARACTER = b"\\ufffd"

#: An odd text has one of these; looking for them costs next to nothing.
_SIGNS = (b"NaN", b"Infinity", b"\\ud", b"\\uD")

#: A number with an exponent beyond this is no count of anything, and costs to make an integer of.
_MAX_DIGITS = 18


def mended(data: bytes) -> bytes:
    """The same JSON without what strict parsers refuse.

    Numbers that are none become null, lone surrogates U+FFFD.  Everything else stays as it
    is, byte by byte.
    """
    if not any(sign in data for sign in _SIGNS):
        return data
    in_text = False

    def replacement(found: re.Match[bytes]) -> bytes:
        nonlocal in_text
        if found[1]:
            in_text = not in_text
        elif found[2]:
            return _UNKNOWN_CHARACTER
        elif found[3] and not in_text:
            return b"null"
        return found[0]

    return _ODD.sub(replacement, data)


def is_whole(data: bytes) -> bool:
    """Whether this is one JSON text from its beginning to its end."""
    try:
        _check(mended(data))
    except UNREADABLE:
        return False
    return True


def value_of(raw: bytes | None) -> Any:
    """The value of a member; None where there is none, or one that cannot be read."""
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw)
    except UNREADABLE:
        return None


def text_of(raw: bytes | None) -> str | None:
    """A member that is a text; None where it is anything else."""
    value = value_of(raw)
    return value if isinstance(value, str) else None


def integer_of(raw: bytes | None) -> int | None:
    """A member that is a whole number from 0 on; None where it is anything else."""
    return whole_number(value_of(raw))


def whole_number(value: object) -> int | None:
    """A whole number from 0 on, also where it is written ``"3"`` or ``3.0``."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value) if len(value) <= _MAX_DIGITS else None
    if isinstance(value, float) and value.is_integer() and value < 10**_MAX_DIGITS:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


_check = msgspec.json.Decoder(msgspec.Raw).decode
