"""Signals to stop a running gateway: the first one waits for turns, the second one does not."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, account
from tests.support.upstream import Exchange, Upstream

pytestmark = pytest.mark.e2e


def hang(exchange: Exchange) -> None:
    """Begin an answer that has no end."""
    exchange.sse(*exchange.turn()[:5])
    exchange.hold()


def test_a_second_signal_ends_what_the_first_one_waits_for(tmp_path: Path) -> None:
    upstream = Upstream(hang)
    patience = {"shutdown_seconds": 600}
    gateway = Gateway(tmp_path, {"accounts": [account("solo", upstream)], "timeouts": patience})
    try:
        client, idle = gateway.connect(), gateway.connect()
        client.create()
        client.until("response.output_text.delta")
        gateway.terminate()
        assert idle.wait_closed() == 1012, "the first one was heard"
        gateway.process.send_signal(signal.SIGTERM)
        last = client.until_terminal()[-1]
        assert last["type"] == "response.failed"
        assert last["response"]["error"]["code"] == "server_error"
        assert client.wait_closed() == 1012
        assert gateway.process.wait(30) in (0, -signal.SIGTERM)
        assert "a second signal" in gateway.log()
    finally:
        gateway.stop()  # and looks for errors in the log: Twisted's own would be one
        upstream.stop()
