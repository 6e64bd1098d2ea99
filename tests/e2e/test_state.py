"""What a restart costs: nothing that was acknowledged a flush interval before."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.checks import completed
from tests.support.events import user
from tests.support.gateway import Gateway, account
from tests.support.strict import Mode, Strict

#: Longer than the flush interval, and the time that a busy machine takes for it.
FLUSHED = 1.0


def killed(gateway: Gateway) -> None:
    """End the process as a crash does."""
    os.kill(gateway.process.pid, signal.SIGKILL)
    gateway.process.wait()
    gateway.stopped = True


Start = Callable[..., Gateway]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts gateways that keep their state in the same directory."""
    running: list[Gateway] = []

    def begin(upstreams: list[Strict], **config: object) -> Gateway:
        accounts = [account(each.name, each.server) for each in upstreams]
        state = {"directory": str(tmp_path / "state"), **config.pop("state", {})}  # type: ignore[dict-item]
        gateway = Gateway(tmp_path, {"accounts": accounts, "state": state, **config})
        running.append(gateway)
        return gateway

    yield begin
    for gateway in running:
        if not gateway.stopped:
            gateway.stop()


@contextmanager
def strict(*names: str, mode: Mode = Mode.STATEFUL) -> Iterator[list[Strict]]:
    upstreams = [Strict(name, mode) for name in names]
    try:
        yield upstreams
    finally:
        for each in upstreams:
            each.server.stop()


@pytest.mark.parametrize("stop", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("mode", [Mode.STATEFUL, Mode.STATELESS])
def test_a_stored_conversation_goes_on_after_a_restart(start: Start, stop: str, mode: Mode) -> None:
    """With several keys; chained where the upstream knows it, else replayed."""
    with strict("a", "b", mode=mode) as upstreams:
        gateway = start(upstreams)
        first = completed(gateway.connect().turn(input=[user("one")], store=True))
        second = completed(gateway.connect().turn(previous_response_id=first["id"], store=True))
        time.sleep(FLUSHED)
        if stop == "SIGKILL":
            killed(gateway)
        else:
            gateway.stop()
        gateway = start(upstreams)
        third = completed(gateway.connect().turn(previous_response_id=second["id"], store=True))
        completed(gateway.connect().turn(previous_response_id=third["id"], store=True))
        served = [each.name for each in upstreams if each.accepted]
        assert len(served) == 1, f"expected the conversation on one account, it was on {served}"
