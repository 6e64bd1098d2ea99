"""Writes an answer step by step to a twisted.web request, at the reader's pace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from twisted.web.server import Request
from zope.interface import implementer

from simulator.faults import Ending, Headers, Pause
from simulator.request_log import Outcome
from simulator.resetting import Reset

Written = bytes | Pause | Ending | Headers | Deferred[None]


@implementer(IPushProducer)
class AnswerStream:
    """A push producer over the steps of one answer; stops when the client goes away.

    `ended` is called once: with None after the last step, else with why it ended earlier.
    """

    def __init__(
        self,
        request: Request,
        steps: Iterator[Written],
        clock: IReactorTime,
        delay: float,
        ended: Callable[[Outcome | None], None],
    ) -> None:
        self._request = request
        self._steps = steps
        self._clock = clock
        self._delay = delay
        self._ended = ended
        self._timer: IDelayedCall | None = None
        self._awaited: Deferred[None] | None = None
        self._paused = False
        self._over = False

    @property
    def is_paused(self) -> bool:
        """Whether the reader has more than it takes."""
        return self._paused

    def start(self) -> None:
        self._request.notifyFinish().addErrback(self._client_gone)
        self._request.registerProducer(self, True)
        self._go_on()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._go_on()

    def stopProducing(self) -> None:
        self._client_gone(None)

    def abort(self) -> None:
        """Give the answer up: the server stops."""
        if not self._over:
            self._close("dropped")

    def _go_on(self) -> None:
        while not (self._paused or self._over or self._timer or self._awaited):
            step = next(self._steps, None)
            if step is None:
                self._finish(None)
            elif isinstance(step, bytes):
                self._request.write(step)
                if self._delay:
                    self._wait(self._delay)
            elif isinstance(step, Pause):
                self._wait(step.seconds)
            elif isinstance(step, Deferred):
                self._awaited = step
                step.addCallbacks(self._heard, lambda _cancelled: None)
            elif isinstance(step, Headers):
                self._request.write(b"")
            else:
                self._end_early(step)

    def _wait(self, seconds: float) -> None:
        if not self._over:
            self._timer = self._clock.callLater(seconds, self._waited)

    def _waited(self) -> None:
        self._timer = None
        self._go_on()

    def _heard(self, _nothing: None) -> None:
        self._awaited = None
        self._go_on()

    def _end_early(self, ending: Ending) -> None:
        if ending is Ending.SILENCE:
            # The producer stays registered with nothing to say, until the client goes away.
            self._paused = True
            self._steps = iter([Ending.SILENCE])
        elif ending is Ending.END:
            self._finish("ended")
        else:
            self._close("dropped")
            channel = self._request.channel
            if channel is not None and ending is Ending.CLOSE:
                channel.loseConnection()
            elif channel is not None:
                Reset(cast(Connection, channel.transport))

    def _finish(self, outcome: Outcome | None) -> None:
        self._close(outcome)
        self._request.finish()

    def _close(self, outcome: Outcome | None) -> None:
        self._request.unregisterProducer()
        self._stop(outcome)

    def _client_gone(self, _reason: Failure | None) -> None:
        if not self._over:
            self._stop("cancelled")

    def _stop(self, outcome: Outcome | None) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._awaited is not None:
            self._awaited.cancel()
            self._awaited = None
        self._ended(outcome)
