"""What signals ask of a gateway that runs, done between two events of the reactor."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any


def on_signal(reactor: Any, number: int, call: Callable[[], object]) -> None:
    """Answer the signal with this call from now on."""
    signal.signal(number, lambda *_: reactor.callFromThread(call))


def on_second_stop(reactor: Any, call: Callable[[], object]) -> None:
    """Answer with this call whoever asks a reactor that is stopping already to stop.

    Twisted would try to stop it once more, and log that as an error of its own.
    """
    reactor.addSystemEventTrigger("before", "shutdown", _expect_another, reactor, call)


def _expect_another(reactor: Any, call: Callable[[], object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        # Jobs in the background of a shell are deaf to Ctrl-C, and stay so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            on_signal(reactor, number, call)
