"""Signals reach the gateway between two events, and a second one to stop is no error."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from gateway.signals import on_second_stop, on_signal

STOPS = (signal.SIGINT, signal.SIGTERM)


class Reactor(MemoryReactorClock):
    """One that remembers what it is to do next."""

    def __init__(self) -> None:
        super().__init__()
        self.next: list[Callable[[], object]] = []

    def callFromThread(self, call: Callable[[], object]) -> None:
        self.next.append(call)

    def shut_down(self) -> None:
        for call, args, kwargs in self.triggers["before"]["shutdown"]:
            call(*args, **kwargs)


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """The handlers of this process are put back afterwards."""
    before = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGUSR2)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    yield Reactor()
    for number, handler in before.items():
        signal.signal(number, handler)


def say(words: list[str], word: str) -> Any:
    return lambda: words.append(word)


def test_a_signal_waits_for_the_end_of_what_the_reactor_does(reactor: Reactor) -> None:
    words: list[str] = []
    on_signal(reactor, signal.SIGUSR2, say(words, "heard"))
    os.kill(os.getpid(), signal.SIGUSR2)
    assert words == []
    for call in reactor.next:
        call()
    assert words == ["heard"]


@pytest.mark.parametrize("number", STOPS)
def test_only_while_the_reactor_stops_the_next_signal_is_the_second(
    number: signal.Signals, reactor: Reactor
) -> None:
    words: list[str] = []
    first = signal.getsignal(number)
    on_second_stop(reactor, say(words, "now"))
    assert signal.getsignal(number) is first, "the first one is Twisted's"
    reactor.shut_down()
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    assert len(reactor.next) == 2
    reactor.next[0]()
    assert words == ["now"]


def test_who_does_not_hear_interrupts_never_will(reactor: Reactor) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    on_second_stop(reactor, lambda: None)
    reactor.shut_down()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
