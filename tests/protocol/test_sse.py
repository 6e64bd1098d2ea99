"""The event-stream parser against the grammar of the standard, however the network cuts it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.sse import EventStreamParser, EventTooLarge
from tests.support.sse import ServerSentEvent


def parse(pieces: Iterable[bytes]) -> list[ServerSentEvent]:
    parser = EventStreamParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def as_the_standard_says(stream: bytes) -> list[ServerSentEvent]:
    """WHATWG HTML 9.2.5 and 9.2.6 by the letter; slow, and needs the whole stream."""
    text = stream.decode(errors="replace").removeprefix("\ufeff")
    events: list[ServerSentEvent] = []
    name, data = "", ""
    *lines, _unfinished = re.split(r"\r\n|\r|\n", text)
    for line in lines:
        if not line:
            if data:
                events.append(ServerSentEvent(name.encode(), data[:-1].encode()))
            name, data = "", ""
            continue
        field, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if field == "event":
            name = value
        elif field == "data":
            data += value + "\n"
    return events


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
NAMES = st.sampled_from([b"response.output_text.delta", b"error", b"", b"x y", b" padded"])
VALUES = st.one_of(
    st.sampled_from([b'{"type":"x"}', b"", b" ", b":", b"data: x", b"\xff\xc3", b"\xef\xbb\xbf"]),
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])).map(str.encode),
    st.binary(max_size=8).map(lambda value: value.translate(None, b"\r\n")),
)
LINES = st.one_of(
    st.builds(lambda colon, name: b"event" + colon + name, st.sampled_from([b":", b": "]), NAMES),
    st.builds(lambda colon, data: b"data" + colon + data, st.sampled_from([b":", b": "]), VALUES),
    st.builds(lambda comment: b":" + comment, VALUES),
    st.sampled_from([b"data", b"event", b"id: 7", b"retry: 1000", b"nonsense", b"Data: no", b""]),
)
STREAMS = st.builds(
    lambda bom, lines, rest: bom + b"".join(line + end for line, end in lines) + rest,
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.tuples(LINES | st.just(b""), ENDS), max_size=30),
    st.sampled_from([b"", b"data: unfinished", b"data: unfinished\n", b"\r", b"event: x\ndata:"]),
)


@given(STREAMS)
def test_a_stream_read_whole_means_what_the_standard_says(stream: bytes) -> None:
    assert parse([stream]) == as_the_standard_says(stream)


@given(STREAMS)
def test_a_stream_read_byte_by_byte_means_the_same(stream: bytes) -> None:
    assert parse(bytes([byte]) for byte in stream) == as_the_standard_says(stream)


@given(STREAMS, st.lists(st.integers(0), max_size=12))
def test_a_stream_cut_anywhere_means_the_same(stream: bytes, places: list[int]) -> None:
    assert parse(cut(stream, places)) == as_the_standard_says(stream)


@given(st.binary(max_size=60), st.lists(st.integers(0), max_size=5))
def test_any_bytes_are_read_as_the_standard_says(junk: bytes, places: list[int]) -> None:
    def data(events: list[ServerSentEvent]) -> list[bytes]:
        return [data for _, data in events]

    assert data(parse(cut(junk, places))) == data(as_the_standard_says(junk))


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"event: a\ndata: 1\n\nevent: b\ndata: 2\n\n", [(b"a", b"1"), (b"b", b"2")]),
        (b"data: 1\n\n", [(b"", b"1")]),
        (b"data:1\n\n", [(b"", b"1")]),
        (b"data:  two spaces\n\n", [(b"", b" two spaces")]),
        (b"data: a\ndata: b\n\n", [(b"", b"a\nb")]),
        (b"event: a\ndata: 1\nid: 4\n\n", [(b"a", b"1")]),
        (b"data: 1\nevent: late\n\n", [(b"late", b"1")]),
        (b": keep-alive\n\n", []),
        (b": note\nevent: a\ndata: 1\n\n", [(b"a", b"1")]),
        (b"event: nothing\n\n", []),
        (b"data\n\n", [(b"", b"")]),
        (b"\xef\xbb\xbfdata: 1\n\n", [(b"", b"1")]),
        (b"data: [DONE]\n\n", [(b"", b"[DONE]")]),
        (b"data: 1\n", []),
        (b"\n\n\ndata: 1\n\n\n\n", [(b"", b"1")]),
        ("data: é\n\n".encode("latin-1"), [(b"", "\ufffd".encode())]),
        ("event: a\ndata: é ✓\n\n".encode(), [(b"a", "é ✓".encode())]),
    ],
)
def test_a_form_that_upstreams_use(stream: bytes, events: list[tuple[bytes, bytes]]) -> None:
    assert parse([stream]) == events


def test_a_line_end_cut_in_two_is_one_line_end() -> None:
    assert parse([b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n"]) == [(b"", b"a\nb")]
    assert parse([b"data: a\r", b"", b"\ndata: b\n\n"]) == [(b"", b"a\nb")]


def test_an_event_is_given_out_as_soon_as_its_blank_line_is_complete() -> None:
    parser = EventStreamParser()
    assert parser.feed(b"data: 1\r\n\r") == [(b"", b"1")]
    assert parser.feed(b"\ndata: 2\n\nda") == [(b"", b"2")]
    assert parser.feed(b"ta: 3\n") == []
    assert parser.feed(b"\n") == [(b"", b"3")]


def test_an_unfinished_event_may_grow_to_its_bound_and_no_further() -> None:
    parser = EventStreamParser(max_event_bytes=10)
    assert parser.feed(b"data: 7890") == []
    with pytest.raises(EventTooLarge, match="10 bytes"):
        parser.feed(b"1")


def test_the_bound_counts_one_event_not_the_stream() -> None:
    parser = EventStreamParser(max_event_bytes=12)
    for _ in range(5):
        assert parser.feed(b"data: 7890") == []
        assert parser.feed(b"\n\nda") == [(b"", b"7890")]
        assert parser.feed(b"ta: 1\n\n") == [(b"", b"1")]


def test_the_bound_holds_for_the_rest_after_a_finished_event() -> None:
    parser = EventStreamParser(max_event_bytes=10)
    with pytest.raises(EventTooLarge):
        parser.feed(b"data: 1\n\ndata: 78901")
