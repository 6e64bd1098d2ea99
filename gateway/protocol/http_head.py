"""The head of an HTTP/1.1 answer, and the body of a short one (RFC 9112)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
_LENGTH = re.compile(r"[0-9]{1,15}")
_CHUNK_LENGTH = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")
_LINE_END = b"\r\n"


class HeadUnreadable(Exception):
    """The bytes are no head of an HTTP answer; says what is wrong."""


class HttpHead(NamedTuple):
    """What an answer begins with.

    :ivar headers: names in lower case; of several values the last.
    """

    status: int
    headers: Mapping[str, str]


def read_head(data: bytes) -> HttpHead:
    """Read a head.

    :param data: all of it, without the empty line at its end.
    :raises HeadUnreadable: when it is no head of HTTP.
    """
    first, *lines = data.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise HeadUnreadable("its answer is not HTTP")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not (colon and _NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise HeadUnreadable("a header of its answer is malformed")
        headers[name.decode("ascii").lower()] = value.strip(b" \t").decode("latin-1")
    return HttpHead(int(status[1]), headers)


def body_of(head: HttpHead, data: bytes) -> bytes | None:
    """The body in ``data``, which began after the head; None while it is not complete.

    A body without a length ends with its connection, so it is never complete here.
    """
    if head.status in (204, 304):
        return b""
    if head.headers.get("transfer-encoding", "").lower().endswith("chunked"):
        return _of_chunks(data)
    length = head.headers.get("content-length", "")
    if _LENGTH.fullmatch(length) and len(data) >= int(length):
        return data[: int(length)]
    return None


def _of_chunks(data: bytes) -> bytes | None:
    """The body in chunks (RFC 9112 §7.1), up to one that is malformed."""
    pieces: list[bytes] = []
    at = 0
    while True:
        line = _CHUNK_LENGTH.match(data, at)
        if line is None:
            if data.find(_LINE_END, at) < 0:
                return None
            return b"".join(pieces)
        length, begin = int(line[1], 16), line.end()
        if length == 0:
            return b"".join(pieces)
        at = begin + length + len(_LINE_END)
        if len(data) < at:
            return None
        pieces.append(data[begin : begin + length])
