"""The head of an HTTP answer, and the body of a short one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.http_head import HeadUnreadable, HttpHead, body_of, read_head


def test_names_are_in_lower_case_and_values_are_stripped() -> None:
    head = read_head(
        b"HTTP/1.1 429 No\r\nRetry-After:  7 \r\nX-Empty:\r\nx-name: J\xfcrgen: a\tb\t"
    )
    assert head == HttpHead(429, {"retry-after": "7", "x-empty": "", "x-name": "J\xfcrgen: a\tb"})


@pytest.mark.parametrize("line", [b"HTTP/1.1 403 ", b"HTTP/1.1 403", b"HTTP/1.0 403 \xe4\xb8\xad"])
def test_a_status_line_may_have_any_reason(line: bytes) -> None:
    assert read_head(line) == HttpHead(403, {})


def test_of_several_values_the_last_counts() -> None:
    assert read_head(b"HTTP/1.1 200 OK\r\na: 1\r\nA: 2").headers == {"a": "2"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 600 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/2 200",
        b"HTTP/1.1 200OK",
        b" HTTP/1.1 200 OK",
        b"HTTP/1.1 200 O\rK",
        b"HTTP/1.1 200 O\nK",
        b"HTTP/1.1 \xd9\xa2\xd9\xa0\xd9\xa0 OK",
    ],
)
def test_what_is_no_http_is_refused(data: bytes) -> None:
    with pytest.raises(HeadUnreadable, match="not HTTP"):
        read_head(data)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no colon",
        b": no name",
        b"space before : x",
        b" folded: x",
        b"\tfolded",
        b"na\x00me: x",
        b"n\xe4me: x",
        b"bare: a\rb",
        b"bare: a\nset-cookie: b",
        b"zero: a\x00b",
        b"delete: a\x7fb",
    ],
)
def test_a_malformed_header_is_refused(line: bytes) -> None:
    with pytest.raises(HeadUnreadable, match="malformed"):
        read_head(b"HTTP/1.1 200 OK\r\na: b\r\n" + line)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_none(data: bytes) -> None:
    for each in (data, b"HTTP/1.1 200 OK\r\n" + data):
        try:
            head = read_head(each)
        except HeadUnreadable:
            continue
        assert 100 <= head.status <= 599
        for name, value in head.headers.items():
            assert name == name.lower()
            assert not {"\r", "\n", "\0"} & set(name + value)


# --- bodies --------------------------------------------------------------------------------

CHUNKED = HttpHead(400, {"transfer-encoding": "gzip, Chunked"})


def of_length(length: str) -> HttpHead:
    return HttpHead(400, {"content-length": length})


def test_a_body_with_a_length_is_complete_with_its_last_byte() -> None:
    for size in (0, 1, 10):
        whole = bytes(range(size))
        for end in range(size):
            assert body_of(of_length(str(size)), whole[:end]) is None
        assert body_of(of_length(str(size)), whole + b"more") == whole


@pytest.mark.parametrize("length", ["", "x", "-1", "+1", "1_0", " 1", "1, 1", "٣", "²", "9" * 5000])
def test_a_length_that_is_none_ends_with_the_connection(length: str) -> None:
    assert body_of(of_length(length), b"x" * 10) is None


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    assert body_of(HttpHead(400, {}), b"anything") is None


@pytest.mark.parametrize("status", [204, 304])
def test_some_answers_have_no_body(status: int) -> None:
    assert body_of(HttpHead(status, {"content-length": "5"}), b"") == b""


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.booleans())
def test_chunks_are_joined_once_they_are_complete(pieces: list[bytes], extends: bool) -> None:
    more = b" ;x=y" if extends else b""
    data = b"".join(b"%X%s\r\n%s\r\n" % (len(piece), more, piece) for piece in pieces)
    whole = data + b"0\r\nx-trailer: y\r\n\r\n"
    assert body_of(CHUNKED, whole) == b"".join(pieces)
    for end in range(len(data) + 2):
        assert body_of(CHUNKED, whole[:end]) is None


@pytest.mark.parametrize("line", [b"", b"x", b"-5", b"+5", b"0x5", b"1_0", b" 5", b"5 5", b"f" * 9])
def test_chunks_end_at_a_malformed_one(line: bytes) -> None:
    assert body_of(CHUNKED, b"2\r\nab\r\n" + line + b"\r\nabcdefgh\r\n0\r\n\r\n") == b"ab"
