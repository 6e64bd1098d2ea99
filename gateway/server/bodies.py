"""Decoding request bodies by ``Content-Encoding``, within a bound (protocol.md §10.84)."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import zstandard

from gateway.protocol.errors import ApiError

#: Windows that need more memory are refused (RFC 8878 §3.1.1.1.2 recommends 8 MB).
_MAX_WINDOW_BYTES = 8 * 1024 * 1024

_GZIP = 16 + zlib.MAX_WBITS

#: A zstd block of four bytes stands for up to 128 KiB (RFC 8878 §3.1.1.2).
_ZSTD_GROWTH = 128 * 1024 // 4
_SMALLEST_PIECE = 512

#: Members or frames of one body; each costs a copy of the rest.
_MAX_PARTS = 32

#: Decodes a body to at most so many bytes.
Decode = Callable[[bytes, int], bytes]

#: Decodes the first part of a body; returns it and the rest of the body.
DecodeOne = Callable[[bytes, int], tuple[bytes, bytes]]


class _Broken(Exception):
    """The bytes are not in the encoding that the header names."""


class _TooLong(Exception):
    """The decoded body exceeds its bound."""


def check_encoding(encoding: str) -> None:
    """Refuse an encoding before its body is read.

    :param encoding: the value of ``Content-Encoding``; empty when there is none.
    :raises ApiError: 415 for one that is not read here.
    """
    _decoder(encoding)


def decode_body(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decode a body.

    :raises ApiError: 415 for an unknown encoding, 400 for broken bytes, 413 for a body
        that is longer than ``max_bytes`` when decoded.
    """
    decode = _decoder(encoding)
    if decode is None:
        return body
    try:
        return decode(body, max_bytes)
    except _TooLong:
        raise body_too_long(max_bytes) from None
    except (_Broken, zlib.error, zstandard.ZstdError) as error:
        raise ApiError.invalid_request(f"The {encoding} body cannot be decoded: {error}.") from None


def body_too_long(max_bytes: int) -> ApiError:
    """413: more than ``session.max_message_bytes``."""
    return ApiError(
        413,
        "invalid_request_error",
        f"The body is longer than {max_bytes} bytes.",
        "request_too_large",
    )


def _parts(decode_one: DecodeOne) -> Decode:
    """Decode the parts of a body, one after the other (RFC 1952 §2.2, RFC 8878 §3)."""

    def decode(body: bytes, max_bytes: int) -> bytes:
        pieces: list[bytes] = []
        for _ in range(_MAX_PARTS):
            if not body:
                return b"".join(pieces)
            part, body = decode_one(body, max_bytes)
            pieces.append(part)
            max_bytes -= len(part)
        raise _Broken("it has too many parts")

    return decode


def _gzip_member(body: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    member = zlib.decompressobj(_GZIP)
    part = member.decompress(body, max_bytes + 1)
    if len(part) > max_bytes:
        raise _TooLong
    if not member.eof:
        raise _Broken("it ends too early")
    return part, member.unused_data


def _zstd_frame(body: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    """Decode a frame in small steps: the decoder returns all that a step of input stands for."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    frame = decompressor.decompressobj(read_across_frames=False)
    view = memoryview(body)
    at = 0
    pieces: list[bytes] = []
    while not frame.eof:
        if at >= len(view):
            raise _Broken("it ends too early")
        step = max(_SMALLEST_PIECE, max_bytes // _ZSTD_GROWTH)
        piece = frame.decompress(view[at : at + step])
        at += step
        max_bytes -= len(piece)
        if max_bytes < 0:
            raise _TooLong
        pieces.append(piece)
    return b"".join(pieces), frame.unused_data + bytes(view[at:])


_DECODERS: dict[str, Decode] = {
    "gzip": _parts(_gzip_member),
    "x-gzip": _parts(_gzip_member),
    "zstd": _parts(_zstd_frame),
}


def _decoder(encoding: str) -> Decode | None:
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in _DECODERS:
        raise ApiError(
            415,
            "invalid_request_error",
            f"Bodies in the encoding '{encoding[:50]}' are not read; send zstd, gzip or none.",
            "unsupported_encoding",
            headers={"accept-encoding": "zstd, gzip"},  # RFC 9110 §15.5.16
        )
    return _DECODERS[name]
