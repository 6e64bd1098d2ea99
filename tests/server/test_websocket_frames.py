"""A strict WebSocket client reads what is written, and what it writes is read."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, Event, Ping, TextMessage

from gateway.server import websocket_frames as frames
from gateway.server.websocket_frames import small_message, text_frames

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


# --- messages of clients ---------------------------------------------------------------------


def sent(*events: Event) -> bytes:
    """What a client sends."""
    client = Connection(ConnectionType.CLIENT)
    return b"".join(map(client.send, events))


@pytest.mark.parametrize("length", [0, 1, 3, 124, 125, 126, 127, 128, 1000])
def test_a_small_message_is_read_from_its_one_frame(length: int) -> None:
    text = "é" * (length // 2) + "x" * (length % 2)
    assert small_message(sent(TextMessage(text))) == text.encode()


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 128, 300])
@pytest.mark.parametrize("more", [-1, 1, 5])
def test_a_piece_of_a_frame_or_more_than_one_is_left(length: int, more: int) -> None:
    data = sent(TextMessage("x" * length), Ping(b"more"))
    end = len(sent(TextMessage("x" * length)))
    assert small_message(data[: end + more]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        sent(BytesMessage(b"binary")),
        sent(Ping(b"ping")),
        sent(TextMessage("a piece", message_finished=False)),
        sent(TextMessage("x" * 5000)),
        b"\x81\x06nobody",  # without a mask
        b"\xc1\x80mask",  # compressed
        b"\x81\xfe\x00\x04mask" + b"long",  # a length in more bytes than it needs
        b"\x81\xff" + bytes(131),  # a length of 64 bits, as long as one of 127 would be
    ],
    ids=(
        "nothing",
        "binary",
        "ping",
        "piece",
        "long",
        "no mask",
        "compressed",
        "16 bits",
        "64 bits",
    ),
)
def test_everything_else_is_left(data: bytes) -> None:
    assert small_message(data) is None


@given(st.binary(max_size=200))
@example(b"\x81\xff" + bytes(131))
def test_what_is_read_is_what_a_strict_server_reads(data: bytes) -> None:
    for each in (data, b"\x81" + bytes([0x80 + len(data) % 128]) + b"mask" + data):
        message = small_message(each)
        if message is None:
            continue
        server = Connection(ConnectionType.SERVER)
        server.receive_data(each)
        try:
            text = message.decode()
        except UnicodeDecodeError:
            continue
        assert list(server.events()) == [TextMessage(text)]
