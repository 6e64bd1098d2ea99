"""Frames of clients' connections (RFC 6455 §5.2).

Text frames from server to client are joined for one write (protocol.md §2.5).  A small message of a
client that came whole is read here, because Autobahn's parser costs ten times as much.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from gateway.compat import masked

_FIN_TEXT = b"\x81"
_SHORT = [_FIN_TEXT + bytes([length]) for length in range(126)]
_PREFIX_16 = Struct("!BBH").pack
_PREFIX_64 = Struct("!BBQ").pack

#: Codex's WebSocket library refuses larger frames.
MAX_FRAME_BYTES = 15 * 1024 * 1024

_SMALL_BYTES = 1024


def small_message(data: bytes) -> bytes | None:
    """The text of one small message, if ``data`` is its single frame and nothing else.

    :return: None for everything else, which Autobahn reads.
    """
    size = len(data)
    if not 6 <= size <= _SMALL_BYTES or data[0] != 0x81:
        return None
    start, length = 6, data[1] - 0x80
    if length == 126:
        start, length = 8, data[2] << 8 | data[3]
        if length < 126:
            return None
    elif length > 126:  # 64 bits of length follow
        return None
    if size != start + length:
        return None
    return masked(data[start:], data[start - 4 : start])


def text_frames(payloads: Iterable[bytes]) -> bytes:
    """The frames of ``payloads``, one unmasked, uncompressed text message each.

    A message above :data:`MAX_FRAME_BYTES` goes out in fragments.
    """
    parts: list[bytes] = []
    for payload in payloads:
        length = len(payload)
        if length < 126:
            parts.append(_SHORT[length])
        elif length < 65536:
            parts.append(_PREFIX_16(0x81, 126, length))
        elif length <= MAX_FRAME_BYTES:
            parts.append(_PREFIX_64(0x81, 127, length))
        else:
            parts += _fragments(payload)
            continue
        parts.append(payload)
    return b"".join(parts)


def _fragments(payload: bytes) -> list[bytes]:
    parts: list[bytes] = []
    opcode = 0x01
    for start in range(0, len(payload), MAX_FRAME_BYTES):
        piece = payload[start : start + MAX_FRAME_BYTES]
        final = 0x80 if start + MAX_FRAME_BYTES >= len(payload) else 0
        parts += _header(final | opcode, len(piece)), piece
        opcode = 0x00
    return parts


def _header(first: int, length: int) -> bytes:
    """A frame's head; a length in more bytes than it needs is a protocol error."""
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return _PREFIX_16(first, 126, length)
    return _PREFIX_64(first, 127, length)
