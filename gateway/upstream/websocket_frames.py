"""Frames between the gateway and an upstream's WebSocket (RFC 6455 §5.2).

Events come as many small text frames.  Whole ones are cut out of a read here, because Autobahn's
parser costs forty times as much for each; it gets everything else.  What is sent is masked, and a
large message leaves in fragments, so that a pong can go out between two of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from struct import Struct

from gateway.compat import masked

#: The longest frame that is sent, in bytes of its payload.
FRAGMENT_BYTES = 32_768

_WHOLE_TEXT = 0x81
_FIN = 0x80
_TEXT = 0x01
_CONTINUATION = 0x00
_MASKED = 0x80

#: A whole text frame with a length of 16 bits, which the last two bytes are.
_USUAL = 0x817E_0000

_unpack_32 = Struct("!I").unpack_from
_MASKED_16 = Struct("!BBH").pack


def cut_text_messages(data: bytes, payloads: list[bytes]) -> int:
    """Cut the whole, unfragmented text messages that ``data`` begins with.

    :param payloads: gets what they carry.
    :return: where the first other or incomplete frame begins.
    """
    at, end = 0, len(data)
    while end - at >= 2:
        # The usual event, of 126 to 65,535 bytes: the whole head is one number.
        length = _unpack_32(data, at)[0] - _USUAL if end - at >= 4 else 0
        start = at + 4
        if not 126 <= length < 65_536:
            start, length = _other_head(data, at)
        stop = start + length
        if not start or stop > end:
            break
        payloads.append(data[start:stop])
        at = stop
    return at


def _other_head(data: bytes, at: int) -> tuple[int, int]:
    """Where the payload begins and how long it is; 0 if this is no whole head of a text message.

    RFC 6455 §5.2: the shortest form of the length must be used, and servers do not mask.
    """
    if data[at] != _WHOLE_TEXT:
        return 0, 0
    length = data[at + 1]
    if length < 126:
        return at + 2, length
    start = at + 10
    if length != 127 or len(data) < start:
        return 0, 0
    length = int.from_bytes(data[at + 2 : start], "big")
    return (start, length) if length >= 65_536 else (0, 0)


def readable_messages(payloads: list[bytes]) -> list[bytes]:
    """The messages before the first that is no UTF-8 (RFC 6455 §8.1)."""
    if all(map(bytes.isascii, payloads)):
        return payloads
    for number, payload in enumerate(payloads):
        try:
            payload.decode()
        except UnicodeDecodeError:
            return payloads[:number]
    return payloads


def may_complete(rest: bytes, max_bytes: int) -> bool:
    """Whether ``rest`` is the beginning of a short, whole text message.

    :param rest: what :func:`cut_text_messages` left.
    :param max_bytes: how long the message may be.
    """
    if not rest or rest[0] != _WHOLE_TEXT:
        return False
    if len(rest) < 2:
        return True
    length = rest[1]
    if length < 126:
        return True
    if length == 126:
        return len(rest) < 4 or 126 <= rest[2] << 8 | rest[3] <= max_bytes
    return False


def masked_text(payload: bytes) -> bytes:
    """One text message of at most :data:`FRAGMENT_BYTES` as a masked frame."""
    return _masked(_FIN | _TEXT, payload)


def masked_fragments(payload: bytes) -> Iterator[bytes]:
    """One text message as masked frames, none with more than :data:`FRAGMENT_BYTES`.

    A frame is made when it is asked for: a large message is not copied at once.
    """
    opcode = _TEXT
    for start in range(0, max(1, len(payload)), FRAGMENT_BYTES):
        piece = payload[start : start + FRAGMENT_BYTES]
        fin = _FIN if start + FRAGMENT_BYTES >= len(payload) else 0
        yield _masked(fin | opcode, piece)
        opcode = _CONTINUATION


def _masked(first: int, payload: bytes) -> bytes:
    length, mask = len(payload), os.urandom(4)
    if length < 126:
        head = bytes((first, _MASKED | length))
    else:  # never above FRAGMENT_BYTES
        head = _MASKED_16(first, _MASKED | 126, length)
    return b"".join((head, mask, masked(payload, mask)))
