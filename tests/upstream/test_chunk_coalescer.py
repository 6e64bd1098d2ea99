"""The chunk coalescer against Twisted's own HTTP parser: the same bodies, fewer deliveries."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol, Request
from twisted.web.client import ResponseDone
from twisted.web.http import _ChunkedTransferDecoder
from twisted.web.http_headers import Headers

from gateway.upstream.chunk_coalescer import (
    MAX_HEAD,
    MAX_INTERIM,
    MAX_LINE,
    MAX_LINES,
    MAX_SIZE_LINE,
    MAX_TRAILERS,
    ChunkCoalescer,
    HeadTooLarge,
)
from tests.upstream.body import Body

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def cut(data: bytes, lengths: Iterable[int]) -> list[bytes]:
    """The data in pieces of these lengths, which are repeated until it is used up."""
    pieces, position = [], 0
    while position < len(data):
        for length in lengths:
            if position < len(data):
                pieces.append(data[position : position + length])
                position += length
    return pieces


def in_chunks(pieces: Iterable[bytes], extension: bytes = b"") -> bytes:
    return b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)


def parsed(responses: Iterable[Iterable[bytes]], *, coalesce: bool) -> list[object]:
    """What Twisted's client makes of these responses on one connection, then of its loss.

    One entry per response: its status, body, and whether it is whole; or why there is none.
    """
    http, transport = HTTP11ClientProtocol(), StringTransport()
    http.makeConnection(transport)
    feed = ChunkCoalescer().feed if coalesce else bytes
    results: list[object] = []
    for reads in responses:
        if http.state != "QUIESCENT" or transport.disconnecting:
            results.append("connection not usable")
            break
        outcome: list[object] = []
        body = Body()

        def deliver(response, outcome=outcome, body=body):  # type: ignore[no-untyped-def]
            outcome.append(response.code)
            response.deliverBody(body)

        request = Request(b"POST", b"/", Headers({b"host": [b"h"]}), None, persistent=True)
        http.request(request).addCallbacks(deliver, lambda f, o=outcome: o.append(f.type.__name__))
        for read in reads:
            if transport.disconnecting or http._parser is None:
                break
            data = feed(read)
            if data:
                http.dataReceived(data)
        if http._parser is not None and reads and not transport.disconnecting:
            http.connectionLost(Failure(ConnectionDone()))
        whole = body.end is not None and body.end.check(ResponseDone) is not None
        results.append((*outcome, b"".join(body.received), whole))
    return results


def assert_same(responses: list[list[bytes]]) -> None:
    expected = parsed(responses, coalesce=False)
    assert parsed(responses, coalesce=True) == expected


BODIES = st.lists(st.binary(min_size=1, max_size=40), max_size=8)
EXTENSIONS = st.sampled_from([b"", b";a=b", b';name="quoted value"', b"; x"])
TRAILERS = st.sampled_from([b"", b"Expires: 0\r\n", b"A: 1\r\nB: 2\r\n"])
CUTS = st.lists(st.integers(min_value=1, max_value=60), min_size=1, max_size=8)
INTERIM = st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"])


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    pieces = in_chunks(draw(BODIES), draw(EXTENSIONS))
    return (
        draw(INTERIM) + HEAD + pieces + b"0" + draw(EXTENSIONS) + b"\r\n" + draw(TRAILERS) + b"\r\n"
    )


@st.composite
def plain(draw: st.DrawFn) -> bytes:
    body = draw(st.binary(max_size=80))
    return b"HTTP/1.1 429 No\r\ncontent-length: %d\r\nX: y\r\n\r\n%b" % (len(body), body)


EMPTY = st.just(b"HTTP/1.1 204 No Content\r\n\r\n")
RESPONSES = st.one_of(chunked(), plain(), EMPTY)


@given(st.lists(RESPONSES, min_size=1, max_size=4), CUTS)
def test_well_formed_responses_of_one_connection_mean_the_same(
    responses: list[bytes], cuts: list[int]
) -> None:
    for lengths in (cuts, [1], [1 << 20]):
        reads = [cut(response, lengths) for response in responses]
        expected = parsed(reads, coalesce=False)
        assert parsed(reads, coalesce=True) == expected
        assert len(expected) == len(responses), "a reference that gave up proves nothing"


@given(chunked(), CUTS, st.data())
def test_a_damaged_response_fails_after_the_same_body(
    response: bytes, cuts: list[int], data: st.DataObject
) -> None:
    at = data.draw(st.integers(min_value=0, max_value=len(response)))
    removed = data.draw(st.integers(min_value=0, max_value=3))
    added = data.draw(
        st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"0", b"x", b"5\r\nhello", b" "])
    )
    damaged = response[:at] + added + response[at + removed :]
    for lengths in (cuts, [1], [1 << 20]):
        assert_same([cut(damaged, lengths), cut(HEAD + b"2\r\nhi\r\n0\r\n\r\n", lengths)])


@given(st.text("0123456789af\r\n;x ", max_size=60), CUTS)
@example("5\r\nabcde5\r\nabcde\r\n0\r\n\r\n", [1 << 20])
@example("0x1\r\na\r\n0\r\n\r\n", [1 << 20])
@example("1_0\r\n" + "a" * 16 + "\r\n0\r\n\r\n", [1 << 20])
@example("+1\r\na\r\n0\r\n\r\n", [1 << 20])
@example("1 \r\na\r\n0\r\n\r\n", [1 << 20])
@example("\r\n", [1])
def test_arbitrary_chunk_framing_means_the_same(text: str, cuts: list[int]) -> None:
    for lengths in (cuts, [1], [1 << 20]):
        assert_same([cut(HEAD + text.encode(), lengths)])


@given(st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=30), CUTS)
def test_one_delivery_per_read_and_nothing_held_back(pieces: list[bytes], cuts: list[int]) -> None:
    coalescer, delivered = ChunkCoalescer(), []
    decoder = _ChunkedTransferDecoder(delivered.append, lambda rest: None)
    raw: list[bytes] = []
    plain_decoder = _ChunkedTransferDecoder(raw.append, lambda rest: None)
    assert coalescer.feed(HEAD) == HEAD
    for read in cut(in_chunks(pieces) + b"0\r\n\r\n", cuts):
        before = len(delivered)
        data = coalescer.feed(read)
        if data:
            decoder.dataReceived(data)
        plain_decoder.dataReceived(read)
        assert len(delivered) - before <= 1
        assert b"".join(delivered) == b"".join(raw)
    assert not coalescer.transparent


HEADS = [
    b"HTTP/1.1 200 OK\r\n\r\n",  # the body ends with the connection
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno colon\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"ICY 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_what_is_not_understood_passes_unchanged(head: bytes, size: int) -> None:
    coalescer = ChunkCoalescer()
    stream = (
        head + b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n" + HEAD + b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"
    )
    assert b"".join(coalescer.feed(read) for read in cut(stream, [size])) == stream
    assert coalescer.transparent


def test_bytes_after_the_end_of_a_response_end_the_analysis() -> None:
    for response in (HEAD + b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"):
        coalescer = ChunkCoalescer()
        assert coalescer.feed(response + b"surplus") == response + b"surplus"
        assert coalescer.transparent


STATUS = b"HTTP/1.1 200 OK\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\n"
LARGE_HEADS = {
    "a head without end": STATUS + (b"X: " + b"y" * 1000 + b"\r\n") * 100,
    "too many bytes": STATUS + (b"X: " + b"y" * 1000 + b"\r\n") * 66 + b"\r\n",
    "a line without end": STATUS + b"X: " + b"y" * (MAX_LINE + 1),
    "a line too long": STATUS + b"X: " + b"y" * MAX_LINE + b"\r\n\r\n",
    "a status without end": b"HTTP/1.1 200 " + b"y" * (MAX_LINE + 1),
    "too many lines": STATUS + b"X: y\r\n" * (MAX_LINES + 1) + b"\r\n",
    "too many interim responses": (EARLY + b"\r\n") * (MAX_INTERIM + 1) + HEAD,
    "interim responses of many bytes": (EARLY + b"X: " + b"y" * 3000 + b"\r\n\r\n") * 30,
    "upgrades nobody asked for": b"HTTP/1.1 101 Switching\r\n\r\n" * (MAX_INTERIM + 1),
}


@pytest.mark.parametrize("head", LARGE_HEADS.values(), ids=LARGE_HEADS.keys())
@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_a_head_has_bounds(head: bytes, size: int) -> None:
    coalescer = ChunkCoalescer()
    passed: list[bytes] = []
    with pytest.raises(HeadTooLarge):
        passed += (coalescer.feed(read) for read in cut(head, [size]))
    assert sum(map(len, passed)) <= MAX_HEAD


def test_heads_up_to_the_bounds_pass_one_response_after_the_other() -> None:
    interim = (EARLY + b"\r\n") * MAX_INTERIM
    head = HEAD[:-2] + b"X: y\r\n" * (MAX_LINES - HEAD.count(b"\n") + 2) + b"\r\n"
    response = interim + head + b"1\r\na\r\n0\r\n\r\n"
    coalescer = ChunkCoalescer()
    for _ in range(3):
        assert coalescer.feed(response) == response
    assert not coalescer.transparent


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
@pytest.mark.parametrize("over", [-2, -1, 0, 1, 2])
def test_limits_are_those_of_the_parser_behind(size: int, over: int) -> None:
    long_line = b"1;" + b"x" * (MAX_SIZE_LINE + over - 2)
    assert_same([cut(HEAD + long_line + b"\r\na\r\n0\r\n\r\n", [size])])
    trailer = b"X: " + b"y" * (MAX_TRAILERS + over - 5) + b"\r\n"
    if size > 1:
        assert_same([cut(HEAD + b"1\r\na\r\n0\r\n" + trailer + b"\r\n", [size])])


def test_several_interim_responses_in_one_read() -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\n" * MAX_INTERIM
    coalescer = ChunkCoalescer()
    out = coalescer.feed(interim + HEAD + b"1\r\na\r\n1\r\nb\r\n")
    assert out == interim + HEAD + b"2\r\nab\r\n"
