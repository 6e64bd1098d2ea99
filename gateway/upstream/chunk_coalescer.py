"""Coalesce the chunks of chunked HTTP/1.1 responses: one chunk for each read (sans-IO).

An upstream that streams server-sent events writes one HTTP chunk per event, and a parser that
calls its consumer once per chunk then costs more than the events themselves. A ``ChunkCoalescer``
stands before such a parser: fed the raw bytes of a connection, it returns equivalent bytes, in
which all chunk data of one ``feed`` is a single chunk.

It follows the framing of each response (chunked, of known length, without a body) to know where
the next one starts. Only framing is ever held back: data leaves in the ``feed`` it came in. What
it does not understand (a body that ends with the connection, folded headers, bytes after the end
of a response ...) passes unchanged from there to the end of the connection. Malformed chunk
framing is passed on as malformed framing, for the parser behind to report.

The head of a response is bounded here, since no parser behind it does that: its bytes, its lines,
and the interim responses before it.

It cannot see requests, so it must not serve a connection on which HEAD or CONNECT are sent.
"""

from __future__ import annotations

import enum
import functools
import re

MAX_HEAD = 65536  #: a response head, interim responses included
MAX_LINE = 16000  #: a line of it; Twisted's own parser drops the connection at 16,384
MAX_LINES = 256  #: header lines of it
MAX_INTERIM = 32  #: interim responses (1xx) before a final one
MAX_LENGTH_DIGITS = 18  #: of a content length; Python converts no more than some thousands
MAX_SIZE_LINE = 1024  #: a chunk-size line, extensions included
MAX_TRAILERS = 65536  #: all trailer lines of one response

_MALFORMED = b"malformed chunk framing\r\n"  # to any parser: not a chunk size
_LENGTH = re.compile(rb"[0-9]{1,%d}" % MAX_LENGTH_DIGITS)
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9][0-9])(?: [^\n]*)?")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]+)(?:;[\t\x20-\x7e\x80-\xff]*)?")


class HeadTooLarge(Exception):
    """A response head exceeds a bound; the text says which."""


class _State(enum.Enum):
    HEAD = enum.auto()  # in a response head, or between two responses
    LENGTH = enum.auto()  # in a body of known length
    SIZE = enum.auto()  # chunked: at or in a chunk-size line
    DATA = enum.auto()  # chunked: in the data of a chunk
    DATA_END = enum.auto()  # chunked: at the CR LF after the data
    TRAILERS = enum.auto()  # chunked: after the last chunk
    INTERIM = enum.auto()  # after a 1xx head: another head follows
    OPAQUE = enum.auto()  # no longer looking


class ChunkCoalescer:
    """The reading side of one connection."""

    def __init__(self) -> None:
        self._state = _State.HEAD
        self._pending = b""  # the head seen so far (passed on) or held-back framing (not yet)
        self._missing = 0  # bytes still to come of this body or chunk
        self._trailer_bytes = 0
        self._interim = 0  # responses of 1xx since the last final one
        self._head_bytes = 0  # of their heads

    @property
    def transparent(self) -> bool:
        """Whether everything passes unchanged from now on."""
        return self._state is _State.OPAQUE

    def feed(self, data: bytes) -> bytes:
        """Return what to give to the parser for these received bytes (perhaps nothing).

        :raises HeadTooLarge: the parser is given nothing more, then.
        """
        state = self._state
        if state is _State.SIZE and not self._pending:
            eol = data.find(b"\r\n", 0, 16)
            size = _chunk_size(data[:eol]) if eol > 0 else 0
            if size > 0 and eol + size + 4 == len(data) and data.endswith(b"\r\n"):
                return data  # one whole chunk already: a stream that is not in a hurry
        elif state is _State.OPAQUE:
            return data
        if state is _State.HEAD:
            return self._head(data)
        if state is _State.LENGTH:
            return self._length(data)
        if state is _State.TRAILERS:
            return self._trailers(data)
        return self._chunks(data)

    # Heads and plain bodies pass as they come and are only watched.

    def _head(self, data: bytes) -> bytes:
        seen, start = self._pending + data, max(0, len(self._pending) - 2)
        while True:
            end = _end_of_head(seen, start)
            head = seen if end < 0 else seen[:end]
            if self._head_bytes + len(head) > MAX_HEAD:
                raise HeadTooLarge(f"more than {MAX_HEAD} bytes")
            if end < 0:
                if len(seen) - seen.rfind(b"\n") > MAX_LINE:
                    raise HeadTooLarge(f"a line of more than {MAX_LINE} bytes")
                self._pending = seen
                return data
            state, length = _framing(head)
            seen, start = seen[end:], 0
            if state is not _State.INTERIM:
                break
            self._interim += 1
            self._head_bytes += end
            if self._interim > MAX_INTERIM:
                raise HeadTooLarge(f"more than {MAX_INTERIM} interim responses before it")
        self._pending = b""
        self._interim = self._head_bytes = 0
        self._state, self._missing = state, length
        if not seen:
            return data
        if state is _State.HEAD:
            self._become_opaque()  # bytes after a response without a body
        return data[: len(data) - len(seen)] + self.feed(seen)

    def _length(self, data: bytes) -> bytes:
        self._missing -= len(data)
        if self._missing == 0:
            self._state = _State.HEAD
        elif self._missing < 0:
            self._become_opaque()
        return data

    def _chunks(self, data: bytes) -> bytes:
        if self._pending:
            data = self._pending + data
            self._pending = b""
        parts: list[bytes] = []
        state, position, total = self._state, 0, len(data)
        while position < total:
            if state is _State.SIZE:
                eol = data.find(b"\r\n", position)
                if eol < 0:
                    if total - position > MAX_SIZE_LINE:
                        return self._malformed(parts)
                    self._pending = data[position:]
                    break
                line = data[position:eol]
                size = _chunk_size(line) if len(line) < MAX_SIZE_LINE else -1
                if size < 0:
                    return self._malformed(parts)
                position = eol + 2
                if size == 0:
                    self._state = _State.TRAILERS
                    return _one_chunk(parts) + b"0\r\n" + self._trailers(data[position:])
                end = position + size
                if data[end : end + 2] == b"\r\n":  # all of it is here: the usual case
                    parts.append(data[position:end])
                    position = end + 2
                else:
                    self._missing = size
                    state = _State.DATA
            elif state is _State.DATA:
                part = data[position : position + self._missing]
                parts.append(part)
                position += len(part)
                self._missing -= len(part)
                if not self._missing:
                    state = _State.DATA_END
            elif data[position : position + 2] == b"\r\n":
                position += 2
                state = _State.SIZE
            elif data[position:] == b"\r":
                self._pending = b"\r"
                break
            else:
                return self._malformed(parts)
        self._state = state
        return _one_chunk(parts)

    def _trailers(self, data: bytes) -> bytes:
        """Pass whole trailer lines, up to and including the empty one that ends the response."""
        data = self._pending + data
        position = 0
        while (eol := data.find(b"\r\n", position)) > position:
            position = eol + 2
        if eol < 0:
            self._pending = data[position:]
            self._trailer_bytes += position
            if self._trailer_bytes + len(self._pending) > MAX_TRAILERS:
                self._become_opaque()  # the parser behind decides
                return data
            return data[:position]
        self._pending = b""
        self._trailer_bytes = 0
        self._state = _State.HEAD
        if len(data) > eol + 2:
            self._become_opaque()  # bytes after the end of the response
        return data

    def _malformed(self, parts: list[bytes]) -> bytes:
        self._become_opaque()
        return _one_chunk(parts) + _MALFORMED

    def _become_opaque(self) -> None:
        self._state = _State.OPAQUE
        self._pending = b""


@functools.lru_cache(maxsize=1024)  # streams repeat a few sizes
def _chunk_size(line: bytes) -> int:
    """The size stated by a chunk-size line, -1 if it is malformed."""
    match = _SIZE_LINE.fullmatch(line)
    return int(match[1], 16) if match else -1


def _one_chunk(parts: list[bytes]) -> bytes:
    if not parts:
        return b""
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    return b"%x\r\n%b\r\n" % (len(data), data)


def _end_of_head(seen: bytes, start: int) -> int:
    """The index after the empty line that ends a head, -1 while there is none."""
    ends = [
        found + len(mark) for mark in (b"\n\r\n", b"\n\n") if (found := seen.find(mark, start)) >= 0
    ]
    return min(ends, default=-1)


def _framing(head: bytes) -> tuple[_State, int]:
    """What follows this head, and the length of the body where it is stated.

    :raises HeadTooLarge: for its lines.
    """
    each = head.split(b"\n")
    if len(each) > MAX_LINES + 3:  # the status, the empty line, and what is behind that
        raise HeadTooLarge(f"more than {MAX_LINES} header lines")
    if max(map(len, each)) > MAX_LINE:
        raise HeadTooLarge(f"a line of more than {MAX_LINE} bytes")
    if not head.endswith(b"\r\n\r\n"):
        return _State.OPAQUE, 0
    status, *lines = head[:-4].split(b"\r\n")
    match = _STATUS_LINE.fullmatch(status)
    if match is None:
        return _State.OPAQUE, 0
    code = match[1]
    encodings: list[bytes] = []
    lengths: list[bytes] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or line[0] in b" \t" or b"\n" in line:
            return _State.OPAQUE, 0
        if name.lower() == b"transfer-encoding":
            encodings.append(value.strip().lower())
        elif name.lower() == b"content-length":
            lengths.append(value.strip())
    if code[:1] == b"1":
        return _State.INTERIM, 0  # 101 too: no upgrade was asked for
    if code in (b"204", b"304"):
        return _State.HEAD, 0
    if encodings == [b"chunked"]:
        return _State.SIZE, 0
    if not encodings and len(lengths) == 1 and _LENGTH.fullmatch(lengths[0]):
        length = int(lengths[0])
        return (_State.LENGTH if length else _State.HEAD), length
    return _State.OPAQUE, 0
