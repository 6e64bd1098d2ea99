"""The head of an HTTP/1.1 answer, and the body of a short one (RFC 9112)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


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
        if not colon or not _NAME.fullmatch(name):
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
    if length.isascii() and length.isdigit() and len(data) >= int(length):
        return data[: int(length)]
    return None


def _of_chunks(data: bytes) -> bytes | None:
    pieces: list[bytes] = []
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end:
            return None
        try:
            length = int(line.partition(b";")[0], 16)
        except ValueError:
            return b"".join(pieces)
        if length == 0:
            return b"".join(pieces)
        if len(data) < length + 2:
            return None
        pieces.append(data[:length])
        data = data[length + 2 :]
