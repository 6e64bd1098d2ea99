"""What ``text_frames`` writes is what a strict WebSocket client reads."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

from gateway.server import websocket_frames as frames
from gateway.server.websocket_frames import text_frames

EDGES = [0, 1, 124, 125, 126, 127, 65534, 65535, 65536, 65537]


def read(data: bytes, step: int | None = None) -> list[bytes]:
    """The messages in ``data``, received in reads of ``step`` bytes."""
    client = Connection(ConnectionType.CLIENT)
    messages: list[bytes] = []
    message = ""
    step = step or max(len(data), 1)
    for start in range(0, len(data), step):
        client.receive_data(data[start : start + step])
        for event in client.events():
            assert isinstance(event, TextMessage), f"expected text, got {event}"
            message += event.data
            if event.message_finished:
                messages.append(message.encode())
                message = ""
    assert message == "", "the last message was never finished"
    return messages


def frame_sizes(data: bytes) -> list[int]:
    """Payload lengths as the frames' heads give them."""
    sizes: list[int] = []
    while data:
        size, head = data[1], 2
        if size > 125:
            head += 2 if size == 126 else 8
            size = int.from_bytes(data[2:head], "big")
        sizes.append(size)
        data = data[head + size :]
    return sizes


@pytest.mark.parametrize("length", EDGES)
def test_every_length_class(length: int) -> None:
    payload = b"x" * length
    assert read(text_frames([payload])) == [payload]


@given(st.lists(st.text(max_size=300).map(str.encode)))
@example([b"x" * length for length in EDGES])
def test_many_messages_in_one_write(payloads: list[bytes]) -> None:
    assert read(text_frames(payloads)) == payloads


#: The smallest bound at which ``text_frames`` cuts.
BOUND = 65_536


@settings(max_examples=30)
@given(
    extra=st.lists(st.integers(0, 2 * BOUND), min_size=1, max_size=3),
    step=st.integers(997, 100_000),
    letter=st.sampled_from(["x", "é", "€", "🜨"]),
)
@example(extra=[0, 1, 125, 126, BOUND - 1, BOUND, BOUND + 1], step=1000, letter="x")
def test_messages_beyond_the_bound_go_out_in_pieces(
    extra: list[int], step: int, letter: str
) -> None:
    payloads = [(letter * (BOUND + more))[: BOUND + more].encode() for more in extra]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "MAX_FRAME_BYTES", BOUND)
        data = text_frames(payloads)
    assert max(frame_sizes(data)) <= BOUND
    assert read(data, step) == payloads


def test_codex_takes_the_largest_frame() -> None:
    """Its WebSocket library refuses frames above 16 MiB (protocol.md §2.5)."""
    assert frames.MAX_FRAME_BYTES < 16 * 1024 * 1024
