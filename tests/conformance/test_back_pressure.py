"""Back-pressure from a slow client reaches its own upstream, and nobody else's (law 12)."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from tests.conformance.conftest import Stage
from tests.support.checks import completed, note, output_text
from tests.support.events import numbered, text_item
from tests.support.gateway import account
from tests.support.upstream import Exchange, Recorded, sse_bytes

pytestmark = pytest.mark.conformance

MIB = 1024 * 1024
TOTAL = 96 * MIB
# What the kernel may take on two loopback hops (4 MiB to send, some 6 MiB to receive, each)
# plus the gateway's own buffers; far less than TOTAL.
BOUND = 48 * MIB


def flood(exchange: Exchange) -> None:
    """A turn of many large deltas, far more than all buffers hold."""
    events = exchange.turn([text_item("x")])
    delta = next(event for event in events if event["type"] == "response.output_text.delta")
    exchange.sse(*events[:4])
    large = sse_bytes(numbered([{**delta, "delta": "z" * 64000}])[0])
    for _ in range(TOTAL // len(large)):
        exchange.chunks(large)
    exchange.sse(*events[5:])
    exchange.end()


def settled(request: Recorded) -> int:
    """Wait until the upstream's bytes stop moving; how many went out."""
    deadline = time.monotonic() + 30
    last, since = -1, time.monotonic()
    while time.monotonic() < deadline:
        sent = request.bytes_sent
        if sent != last:
            last, since = sent, time.monotonic()
        elif time.monotonic() - since > 1.5:
            return sent
        time.sleep(0.05)
    raise AssertionError(f"the upstream was expected to be paused, it goes on at {last} bytes")


def test_a_slow_client_stops_its_own_upstream_only(stage: Stage) -> None:
    upstream = stage.upstream()
    upstream.queue(flood)
    timeouts = {"idle_seconds": 60, "stall_seconds": 60}
    gateway = stage.gateway(account("solo", upstream), timeouts=timeouts)
    slow = gateway.connect(receive_buffer=65536, timeout=60)
    slow.create()
    request = upstream.wait_for(1)[0]
    taken = settled(request)
    note(f"upstream stopped after {taken / MIB:.1f} MiB of {TOTAL / MIB:.0f}")
    assert taken < BOUND, f"the upstream expected to be paused, {taken / MIB:.1f} MiB were taken"
    other = gateway.connect()
    for _ in range(5):
        began = time.monotonic()
        assert output_text(other.turn()) == "hello"
        assert time.monotonic() - began < 5, "another client must not feel the slow one"
    assert request.bytes_sent - taken < MIB, "and the pause holds"
    events = slow.until_terminal(timeout=120)
    completed(events)
    received = sum(len(text) for text in slow.texts)
    assert received > 0.9 * TOTAL, "once the client reads on, everything arrives"


def test_a_paused_client_is_still_read(stage: Stage) -> None:
    """A close is seen at once although nothing can be written to this client."""
    upstream = stage.upstream()
    upstream.queue(flood)
    gateway = stage.gateway(account("solo", upstream), timeouts={"stall_seconds": 60})
    slow = gateway.connect(receive_buffer=65536, timeout=60)
    slow.create()
    request = upstream.wait_for(1)[0]
    settled(request)
    began = time.monotonic()
    slow.reset()
    assert request.wait_gone(2.0), "the upstream expected to be cancelled when the client left"
    assert request.gone_at is not None
    note(f"cancelled after {1000 * (request.gone_at - began):.1f} ms")


def test_a_client_that_never_reads_is_given_up(stage: Stage) -> None:
    upstream = stage.upstream()
    upstream.queue(flood)
    gateway = stage.gateway(account("solo", upstream), timeouts={"stall_seconds": 1})
    slow = gateway.connect(receive_buffer=65536, timeout=60)
    slow.create()
    request = upstream.wait_for(1)[0]
    assert request.wait_gone(20), "a stalled client must not hold its account for ever"


def test_many_streams_share_one_gateway(stage: Stage) -> None:
    """Not a benchmark: 20 streams at once, every event of each arrives in order."""

    def script(exchange: Exchange) -> None:
        exchange.answer([text_item("0123456789" * 20)], pieces=100)

    gateway = stage.gateway(account("solo", stage.upstream(script)))
    texts: list[str] = []

    def run() -> None:
        with contextlib.closing(gateway.connect()) as client:
            texts.append(output_text(client.turn()))

    threads = [threading.Thread(target=run) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert texts == ["0123456789" * 20] * 20
