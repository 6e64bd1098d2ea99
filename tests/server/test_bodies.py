"""Decoding request bodies: whole, broken, too large, in parts."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.errors import ApiError
from gateway.server.bodies import check_encoding, decode_body

Pack = Callable[[bytes], bytes]

PACKERS: dict[str, Pack] = {"gzip": gzip.compress, "zstd": zstandard.compress}
each = pytest.mark.parametrize("encoding", PACKERS)
LIMIT = 1_000_000


def refused(body: bytes, encoding: str, limit: int = LIMIT) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode_body(body, encoding, limit)
    return caught.value


@given(
    encoding=st.sampled_from(sorted(PACKERS)),
    body=st.binary(max_size=5000),
    times=st.integers(1, 200),
)
def test_what_was_packed_comes_out(encoding: str, body: bytes, times: int) -> None:
    assert decode_body(PACKERS[encoding](body * times), encoding, LIMIT) == body * times


@pytest.mark.parametrize("name", ["", "identity", " Identity "])
def test_no_encoding_changes_nothing(name: str) -> None:
    assert decode_body(b"as it is", name, LIMIT) == b"as it is"


@pytest.mark.parametrize("name", ["GZIP", "x-gzip", " gzip"])
def test_names_of_gzip(name: str) -> None:
    assert decode_body(gzip.compress(b"x"), name, LIMIT) == b"x"


@pytest.mark.parametrize("name", ["br", "deflate", "gzip, zstd", "compress", "\xe9"])
def test_other_encodings_are_415(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_encoding(name)
    assert caught.value.status == 415
    assert refused(b"", name).status == 415


@each
def test_broken_bodies_are_400(encoding: str) -> None:
    packed = PACKERS[encoding](os.urandom(5000))
    for broken in (packed[:-1], packed[:100], packed + b"rest", b"no such thing", packed[5:]):
        assert refused(broken, encoding).status == 400


@given(
    encoding=st.sampled_from(sorted(PACKERS)),
    garbage=st.binary(min_size=1, max_size=200),
)
def test_garbage_is_refused_or_decoded_and_nothing_else(encoding: str, garbage: bytes) -> None:
    with suppress(ApiError):
        assert isinstance(decode_body(garbage, encoding, LIMIT), bytes)


@each
def test_the_limit_is_exact(encoding: str) -> None:
    packed = PACKERS[encoding](b"x" * LIMIT)
    assert len(decode_body(packed, encoding, LIMIT)) == LIMIT
    assert refused(packed, encoding, LIMIT - 1).status == 413


@each
def test_a_bomb_costs_little_memory(encoding: str) -> None:
    bomb = PACKERS[encoding](bytes(200_000_000))
    assert len(bomb) < LIMIT
    tracemalloc.start()
    try:
        assert refused(bomb, encoding).status == 413
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40_000_000, f"{peak} bytes for a body that may have {LIMIT}"


def test_a_zstd_body_may_not_ask_for_a_huge_window() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert refused(compressor.compress(b"x" * 100) + compressor.flush(), "zstd").status == 400


@each
def test_parts_are_joined_and_bounded(encoding: str) -> None:
    pack = PACKERS[encoding]
    assert decode_body(pack(b"one ") + pack(b"") + pack(b"two"), encoding, LIMIT) == b"one two"
    assert refused(pack(b"x" * LIMIT) + pack(b"x"), encoding).status == 413
    assert refused(pack(b"") * 10_000, encoding).status == 400, "each part costs a copy"
