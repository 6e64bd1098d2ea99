"""Frames to and from an upstream: any messages, cut anywhere, beside anything else."""

from __future__ import annotations

import itertools
import os
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from gateway.upstream.websocket_client import (
    ClosedSocket,
    SocketPhase,
    UpstreamSocket,
    dial,
)
from gateway.upstream.websocket_frames import (
    FRAGMENT_BYTES,
    cut_text_messages,
    masked_fragments,
    may_complete,
)
from gateway.upstream.websocket_upgrade import Handshake
from tests.upstream.websocket_wire import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    MemoryEndpoint,
    Peer,
    frame,
    messages,
    read_frames,
)

# --- out -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [0, 1, 125, 126, 127, 300, 32_767, 32_768, 32_769, 65_535, 65_536, 98_304, 200_001],
)
def test_a_message_is_read_back_by_another_decoder(size: int) -> None:
    payload = os.urandom(size)
    sent = [list(read_frames(piece)) for piece in masked_fragments(payload)]
    assert all(len(each) == 1 for each in sent), "each piece is one frame"
    frames = [each for (each,) in sent]
    assert messages(frames) == [payload]
    assert all(len(each.payload) <= FRAGMENT_BYTES for each in frames)
    assert len(frames) == max(1, -(-size // FRAGMENT_BYTES)), "no fragment is empty"
    assert [each.fin for each in frames] == [False] * (len(frames) - 1) + [True]


def test_every_frame_has_a_mask_of_its_own() -> None:
    masks = [each.mask for piece in masked_fragments(bytes(500_000)) for each in read_frames(piece)]
    assert len(set(masks)) == len(masks) == 16


def test_a_fragment_is_made_when_it_is_asked_for() -> None:
    made = masked_fragments(bytes(100_000))
    assert sum(1 for _ in made) == 4
    assert next(made, None) is None


# --- in ------------------------------------------------------------------------------------

SIZES = [0, 1, 124, 125, 126, 127, 255, 256, 16_383, 16_384, 16_385, 65_535, 65_536, 70_000]


class Sent(NamedTuple):
    """What an upstream sends: its bytes, and the messages in them that are text."""

    data: bytes
    texts: list[bytes]


def text_of(size: int, letter: str) -> bytes:
    return (letter * (size // len(letter.encode()) + 1)).encode()[:size]


letters = st.sampled_from("ax{")
short_texts = st.text(max_size=60).map(str.encode)
texts = st.one_of(short_texts, st.builds(text_of, st.sampled_from(SIZES), letters))
controls = st.builds(frame, st.binary(max_size=125), st.sampled_from([PING, PONG]))


@st.composite
def whole_messages(draw: st.DrawFn) -> Sent:
    payload = draw(texts)
    return Sent(frame(payload), [payload])


@st.composite
def fragmented_messages(draw: st.DrawFn) -> Sent:
    """One message in fragments, with control frames between them."""
    payload = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), min_size=1, max_size=4)))
    pieces = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    data = b""
    for number, piece in enumerate(pieces):
        opcode = CONTINUATION if number else TEXT
        data += frame(piece, opcode, fin=number == len(pieces) - 1)
        if number < len(pieces) - 1:
            data += draw(st.one_of(st.just(b""), controls))
    return Sent(data, [payload])


others = controls.map(lambda data: Sent(data, []))
streams = st.lists(st.one_of(whole_messages(), fragmented_messages(), others), max_size=8)


class Kept:
    """A listener that writes down."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.batches: list[int] = []
        self.ends: list[ClosedSocket] = []

    def socket_messages(self, payloads: list[bytes]) -> None:
        assert not self.ends, "messages after the end"
        assert payloads, "an empty batch"
        self.texts += payloads
        self.batches.append(len(payloads))

    def socket_closed(self, closed: ClosedSocket) -> None:
        self.ends.append(closed)

    def socket_is_silent(self) -> None:
        raise AssertionError("nobody waited")


def opened() -> tuple[UpstreamSocket, Peer, Kept]:
    endpoint = MemoryEndpoint()
    opening: Deferred[UpstreamSocket] = dial(Clock(), endpoint, Handshake("http://u/r", {}), 25)
    peer = endpoint.connects()
    peer.accepts()
    found: list[UpstreamSocket] = []
    opening.addCallback(found.append)
    kept = Kept()
    found[0].listener = kept
    return found[0], peer, kept


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(at) if a < b]


@given(streams, st.lists(st.integers(0, 2**20), max_size=12))
def test_what_was_sent_is_delivered_however_it_is_cut(sent: list[Sent], cuts: list[int]) -> None:
    _, peer, kept = opened()
    peer.sends(*pieces_of(b"".join(each.data for each in sent), cuts))
    assert kept.texts == [text for each in sent for text in each.texts]
    assert kept.ends == []
    assert not peer.closed


@given(st.lists(st.one_of(whole_messages(), fragmented_messages(), others), max_size=3))
def test_what_was_sent_is_delivered_byte_by_byte(sent: list[Sent]) -> None:
    data = b"".join(each.data for each in sent)[:3000]
    _, peer, kept = opened()
    peer.sends(*(data[at : at + 1] for at in range(len(data))))
    expected = [text for each in sent for text in each.texts]
    assert kept.texts == expected[: len(kept.texts)]
    if data == b"".join(each.data for each in sent):
        assert kept.texts == expected


@st.composite
def violations(draw: st.DrawFn) -> bytes:
    """One frame that no upstream may send."""
    payload = draw(st.binary(max_size=100))
    return draw(
        st.sampled_from(
            [
                frame(payload, width=2),  # RFC 6455 §5.2: the shortest form must be used
                frame(payload, width=8),
                frame(bytes(65_535), width=8),
                frame(payload, mask=b"abcd"),  # §5.1: a server's frames are not masked
                frame(b"", mask=b"abcd"),
                frame(payload, PING, mask=b"abcd"),
                frame(payload, CONTINUATION),  # §5.4: nothing to continue
                frame(payload, opcode=3),  # §5.2: reserved
                frame(payload, opcode=11),
                frame(payload, rsv=4),  # §5.2: no extension was negotiated
                frame(payload, PING, fin=False),  # §5.5
                frame(bytes(126), PING),
                frame(payload, BINARY),
                frame(b"\xff" + payload),  # §8.1: text is UTF-8
                frame(b"x", fin=False) + frame(payload, TEXT),  # §5.4
            ]
        )
    )


@given(streams, violations(), streams, st.lists(st.integers(0, 2**20), max_size=12))
def test_a_violation_ends_the_socket_after_what_came_before(
    sent: list[Sent], violation: bytes, after: list[Sent], cuts: list[int]
) -> None:
    socket, peer, kept = opened()
    data = b"".join(each.data for each in sent) + violation + b"".join(each.data for each in after)
    peer.sends(*pieces_of(data, cuts))
    assert kept.texts == [text for each in sent for text in each.texts]
    assert len(kept.ends) == 1
    assert peer.closed
    assert socket._phase is SocketPhase.CLOSED


# --- the lean reading itself ---------------------------------------------------------------


@given(st.lists(texts, max_size=6), st.binary(max_size=20))
def test_whole_messages_are_cut_and_the_rest_is_left(found: list[bytes], rest: bytes) -> None:
    data = b"".join(map(frame, found))
    payloads: list[bytes] = []
    at = cut_text_messages(data + rest, payloads)
    assert payloads[: len(found)] == found
    assert at >= len(data)
    again: list[bytes] = []
    assert cut_text_messages((data + rest)[at:], again) == 0
    assert again == []


@pytest.mark.parametrize("size", [s for s in SIZES if s])
def test_no_incomplete_message_is_cut(size: int) -> None:
    data = frame(bytes(size))
    for end in {1, 2, 3, 4, 9, 10, 11, len(data) - 1}:
        if end < len(data):
            assert cut_text_messages(data[:end], []) == 0


def test_an_incomplete_message_is_kept_only_while_it_is_short() -> None:
    for size in (1, 125, 126, 1000):
        data = frame(bytes(size))
        assert all(may_complete(data[:end], 1000) for end in range(1, len(data)))
    long = frame(bytes(1001))
    assert [may_complete(long[:end], 1000) for end in (1, 2, 3, 4, 5)] == [True] * 3 + [False] * 2
    assert not may_complete(frame(bytes(65_536))[:2], 1000)
    assert not may_complete(b"", 1000)
    for other in (frame(b"", PING), frame(b"x", fin=False), frame(b"x", mask=b"abcd"), b"\x81\x7f"):
        assert not may_complete(other[:2], 1000)


def test_a_large_message_in_small_reads_is_copied_once() -> None:
    """A parser that starts anew with each read would copy 2 GiB of 16 MiB."""
    _, peer, kept = opened()
    whole = frame(bytes(16 * 1024 * 1024))
    view = memoryview(whole)
    for at in range(0, len(whole), 65_536):
        peer.protocol.dataReceived(bytes(view[at : at + 65_536]))
        assert len(peer.protocol.data) == 0, "what was read is not kept twice"
    assert [len(text) for text in kept.texts] == [16 * 1024 * 1024]
