"""Request bodies as JSON values: content types, content encodings, and what does not parse."""

from __future__ import annotations

import io
import zlib
from collections.abc import Collection
from typing import Any

import msgspec
import zstandard

from simulator.refusals import Refusal

#: No request is larger when it is unpacked.
_LONGEST = 256 * 1024 * 1024


def decoded(raw: bytes, content_type: str, encoding: str | None, taken: Collection[str]) -> Any:
    """The value of a body; Refusal of one that is no JSON, or compressed for who takes none."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        message = (
            f"Unsupported content type: '{content_type}'."
            " This API method only accepts 'application/json' requests."
        )
        raise Refusal(400, message, code="unsupported_content_type")
    name = (encoding or "identity").strip().lower()
    try:
        # An encoding that is not taken is not looked at: the body is no JSON as it stands.
        plain = _unpacked(raw, name) if name in taken else raw
        return msgspec.json.decode(plain)
    except (ValueError, RecursionError) as error:
        message = "We could not parse the JSON body of your request."
        raise Refusal(400, message) from error


def _unpacked(raw: bytes, encoding: str) -> bytes:
    """The plain bytes; ValueError for what is damaged, cut short or too long."""
    if encoding == "gzip":
        return _gunzipped(raw)
    if encoding == "zstd":
        return _unzstd(raw)
    raise ValueError(f"no decoder for {encoding}")


def _gunzipped(raw: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        plain = unpacker.decompress(raw, _LONGEST)
    except zlib.error as error:
        raise ValueError("damaged") from error
    if not unpacker.eof or unpacker.unconsumed_tail or unpacker.unused_data:
        raise ValueError("cut short or too long")
    return plain


def _unzstd(raw: bytes) -> bytes:
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw)) as reader:
            plain = reader.read(_LONGEST + 1)
    except zstandard.ZstdError as error:
        raise ValueError("damaged") from error
    if len(plain) > _LONGEST:
        raise ValueError("too long")
    return plain
