"""Answers: a JSON value or the steps of a stream, and how they are written to a client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IPullProducer,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from twisted.web.server import Request
from zope.interface import implementer

from simulator.events import DONE, Event, sse
from simulator.faults import (
    CloseFrame,
    Ending,
    Fault,
    Headers,
    Inserted,
    Pause,
    Steps,
    WireBytes,
    WireManner,
)
from simulator.request_log import Outcome

_PIECE = 64 * 1024
#: Steps that have no place in an answer of one JSON value.
_EVENTS = (dict, Inserted, WireBytes)

Written = bytes | Pause | Ending | CloseFrame | Headers | WireManner | Deferred[None]


class StepStream:
    """Goes through the steps of one answer; the transports write them.

    :param delay: seconds between two events.
    :param ended: called once: with None after the last step, else with the reason of an earlier
        end.
    """

    def __init__(
        self,
        steps: Iterator[Any],
        clock: IReactorTime,
        delay: float,
        ended: Callable[[Outcome | None], None],
    ) -> None:
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
        """Whether the client reads too slowly."""
        return self._paused

    def start(self) -> None:
        """Begin to write."""
        self._go_on()

    def pauseProducing(self) -> None:
        """Wait: the client reads too slowly."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Go on: the client has read."""
        self._paused = False
        self._go_on()

    def stopProducing(self) -> None:
        """End: the client has left."""
        self._client_gone(None)

    def abort(self) -> None:
        """Drop the answer: the server stops."""
        if not self._over:
            self._stop("dropped")

    def go_on_with(self, steps: Iterator[Any]) -> None:
        """Leave the steps that were to come, and write others."""
        self._steps = steps
        self._stop_waiting()
        self._go_on()

    def _go_on(self) -> None:
        while not (self._paused or self._over or self._timer or self._awaited):
            step = next(self._steps, None)
            if step is None:
                self._finish(None)
            elif isinstance(step, Pause):
                self._wait(step.seconds)
            elif isinstance(step, Deferred):
                self._awaited = step
                step.addCallbacks(self._resume, lambda _cancelled: None)
            elif isinstance(step, (Ending, CloseFrame)):
                self._end_early(step)
            else:
                self._write(step)
                if self._delay and isinstance(step, (dict, bytes)):
                    self._wait(self._delay)

    def _write(self, step: Any) -> None:
        """Write a step that is neither a wait nor an end."""
        raise NotImplementedError

    def _break(self, ending: Ending | CloseFrame) -> None:
        """End the connection."""
        raise NotImplementedError

    def _wait(self, seconds: float) -> None:
        if not self._over:
            self._timer = self._clock.callLater(seconds, self._resume)

    def _resume(self, _fired: None = None) -> None:
        self._timer = self._awaited = None
        self._go_on()

    def _end_early(self, ending: Ending | CloseFrame) -> None:
        if ending is Ending.SILENCE:
            # The producer stays registered until the client goes away.
            self._paused = True
            self._steps = iter([Ending.SILENCE])
        elif ending is Ending.END:
            self._finish("ended")
        else:
            self._break(ending)

    def _finish(self, outcome: Outcome | None) -> None:
        self._stop(outcome)

    def _client_gone(self, _reason: Failure | None) -> None:
        if not self._over:
            self._stop("cancelled")

    def _stop(self, outcome: Outcome | None) -> None:
        self._over = True
        self._stop_waiting()
        self._ended(outcome)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._awaited is not None:
            self._awaited.cancel()
            self._awaited = None


@implementer(IPushProducer)
class AnswerStream(StepStream):
    """A push producer that writes the steps of one HTTP answer as fast as the client reads."""

    def __init__(
        self,
        request: Request,
        steps: Iterator[Any],
        clock: IReactorTime,
        delay: float,
        ended: Callable[[Outcome | None], None],
    ) -> None:
        super().__init__(steps, clock, delay, ended)
        self._request = request

    def start(self) -> None:
        """Begin to write."""
        self._request.notifyFinish().addErrback(self._client_gone)
        self._request.registerProducer(self, True)
        super().start()

    def abort(self) -> None:
        """Drop the answer: the server stops."""
        if not self._over:
            self._close("dropped")

    def _write(self, step: Any) -> None:
        if isinstance(step, bytes):
            self._request.write(step)
        elif isinstance(step, Headers):
            self._request.write(b"")

    def _break(self, ending: Ending | CloseFrame) -> None:
        if ending is Ending.DEAF:
            self._end_early(Ending.SILENCE)
            return
        self._close("dropped")
        channel = self._request.channel
        if channel is not None and ending is Ending.DROP:
            Reset(cast(Connection, channel.transport))
        elif channel is not None:
            channel.loseConnection()

    def _finish(self, outcome: Outcome | None) -> None:
        self._close(outcome)
        self._request.finish()

    def _close(self, outcome: Outcome | None) -> None:
        self._request.unregisterProducer()
        self._stop(outcome)


@dataclass(frozen=True)
class Reply:
    """The answer to an accepted request.

    :ivar written: the steps to write, with any fault applied.
    """

    written: Iterable[Written]
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def json_reply(value: Any, fault: Fault, headers: Mapping[str, str] | None = None) -> Reply:
    """An answer of one JSON value. Its steps are a list: without a fault it is sent at once."""
    body: Iterator[bytes] = iter([msgspec.json.encode(value)])
    written = [_cut(step) for step in fault.rewrite(body) if not isinstance(step, _EVENTS)]
    return Reply(written, headers=headers or {})


def stream_reply(written: Iterator[Written]) -> Reply:
    """An answer of server-sent events."""
    return Reply(written, "text/event-stream; charset=utf-8", {"cache-control": "no-cache"})


def as_sse(steps: Steps) -> Iterator[Written]:
    """Steps with events as server-sent events, and ``[DONE]`` behind them."""
    for step in steps:
        if isinstance(step, Inserted):
            yield sse(step.event)
        elif isinstance(step, dict):
            yield sse(step)
        elif not isinstance(step, WireBytes):
            yield step
    yield DONE


def as_json(steps: Steps) -> Iterator[Written]:
    """The final response object of the steps, as JSON; pauses and ends stay where they are."""
    last: Event = {}
    for step in steps:
        if isinstance(step, dict):
            last = step
        elif not isinstance(step, (bytes, *_EVENTS)):
            yield _cut(step)
    body = msgspec.json.encode(last.get("response"))
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


def _cut(step: Written) -> Written:
    """A proper end would make a partial JSON answer look whole: it is dropped instead."""
    return Ending.DROP if step is Ending.END else step


@implementer(IPullProducer)
class Reset:
    """Resets a connection once everything written to it has left the process.

    An immediate reset would throw away bytes written in the same turn of the event loop.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._registered = False
        connection.unregisterProducer()
        connection.registerProducer(self, False)
        self._registered = True
        connection.startWriting()

    def resumeProducing(self) -> None:
        """Called at the registration, and again when nothing is left to write."""
        if self._registered:
            self._connection.abortConnection()

    def stopProducing(self) -> None:
        """The connection is closed already."""
