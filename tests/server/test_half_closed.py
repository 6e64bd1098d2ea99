"""Telling a client that only sends no more from one that is gone."""

from __future__ import annotations

import socket

from twisted.internet.task import Clock

from gateway.server.connections import HalfClosedSocket


class FakeSocket:
    """A socket, and the transport over it."""

    def __init__(self) -> None:
        self.error: int | OSError = 0

    def getHandle(self) -> FakeSocket:
        return self

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        if isinstance(self.error, OSError):
            raise self.error
        return self.error


class Watched:
    def __init__(self) -> None:
        self.clock = Clock()
        self.socket = FakeSocket()
        self.probes: list[float] = []
        self.gone = 0
        self.watch = HalfClosedSocket(self.clock, self.socket, self._probe, self._is_gone)

    def _probe(self) -> None:
        self.probes.append(round(self.clock.seconds()))

    def _is_gone(self) -> None:
        self.gone += 1

    def waits(self, seconds: float) -> None:
        self.clock.pump([0.1] * round(10 * seconds))


def test_a_client_that_stays_is_sent_few_probes_ever_more_apart() -> None:
    watched = Watched()
    assert watched.probes == [0], "expected the first look at once"
    watched.waits(1000)
    assert watched.probes == [0, 1, 3, 10, 30, 60, 120, 300]
    assert len(watched.probes) <= len(b"HTTP/1.1"), "a head has no more to be sent ahead"
    watched.watch.stop()
    assert not watched.clock.getDelayedCalls()


def test_a_reset_is_seen_soon_and_told_once() -> None:
    watched = Watched()
    watched.waits(50)
    watched.socket.error = 32
    watched.waits(0.3)
    assert watched.gone == 1
    watched.waits(10)
    assert watched.gone == 1
    assert not watched.clock.getDelayedCalls()


def test_a_socket_that_is_closed_already_has_nobody_at_its_end() -> None:
    watched = Watched()
    watched.socket.error = OSError(9, "Bad file descriptor")
    watched.waits(0.3)
    assert watched.gone == 1


def test_nothing_is_heard_after_the_end() -> None:
    watched = Watched()
    watched.watch.stop()
    watched.watch.stop()
    watched.socket.error = 32
    watched.waits(10)
    assert (watched.gone, watched.probes) == (0, [0])
