"""`make run`, as a new user runs it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.ports import free_port

ROOT = Path(__file__).parent.parent.parent
DEADLINE = 60


def demo(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.demo", *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hears_interrupts,
    )


def hears_interrupts() -> None:
    """Jobs in the background of a shell are started deaf to Ctrl-C, and pass that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_demo_shows_five_turns_each_chained_to_the_one_before() -> None:
    process = demo("--once", "--port", str(free_port(and_the_next=1)))
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, f"the demo failed: {err}"
    responses = re.findall(r"response +(resp_\w+)", out)
    chained = re.findall(r"chained to (resp_\w+)", out)
    accounts = set(re.findall(r"account (\S+)", out))
    assert len(responses) == 5, f"five turns were promised:\n{out}"
    assert chained == responses[:4], "each turn must continue the one before"
    assert len(accounts) == 1, "a conversation stays with its account"
    assert "heron" in out.rpartition("model")[2], "the last turn must recall the first"
    sizes = re.findall(r"sent +(\d+) bytes over websocket", out)
    assert f"5 turns over one WebSocket to the account, {', '.join(sizes)} bytes" in out
    assert len(sizes) == 5, "a turn went over HTTP"
    assert len(set(sizes[1:4])) == 1, "a turn with a tool's output sends more than that"
    assert err == ""


def test_the_demo_serves_on_until_interrupted() -> None:
    port = free_port(and_the_next=1)
    process = demo("--port", str(port))
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Serving"):
                break
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE):
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE)
        assert (process.returncode, err) == (0, ""), "Ctrl-C is a quiet end"
    finally:
        process.kill()


def test_a_port_that_is_none_is_one_line_that_says_which_are() -> None:
    for port in ("0", "-1", "65535", "x"):
        process = demo(f"--port={port}")
        _, err = process.communicate(timeout=DEADLINE)
        assert process.returncode == 2
        assert err.endswith(f"argument --port: '{port}': expected a port from 1 to 65534\n")


def test_a_port_in_use_is_one_line() -> None:
    port = free_port(and_the_next=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        process = demo("--port", str(port))
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert f"listen: 'tcp:{port}:interface=127.0.0.1': cannot listen there" in err
    assert "Traceback" not in err
