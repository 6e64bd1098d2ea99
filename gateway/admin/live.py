"""``/events``: the overview and ended turns as server-sent events, computed once for all.

Of several processes the overview comes later than it is asked for; then the events wait for it, and
it is not asked for again before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.admin.managed_gateway import EndedTurn, ManagedGateway
from gateway.admin.requests import AdminError
from gateway.admin.responses import as_json
from gateway.server.http_request import ClientRequest

MAX_LISTENERS = 32

#: Between two ``status`` events, in seconds.
_STEP_SECONDS = 1.0

#: Bound on ``turn`` events between two ``status`` events.
_MAX_TURNS = 20

#: How long a listener may leave events unread before it is dropped, in seconds.
_SLOW_SECONDS = 10.0

#: When a browser reconnects after it lost its connection, in milliseconds.
_RETRY = b"retry: 3000\n\n"

#: How long ended turns are followed after the last step, in seconds.
_FOLLOW_SECONDS = 3.0

_log = Logger(namespace="gateway.admin")


class LiveSubscriber:
    """One answer that does not end by itself.

    :ivar lasts: whether the listener still may see the events.
    """

    def __init__(self, request: ClientRequest, now: Callable[[], float], lasts: Callable[[], bool]):
        self._request = request
        self._now = now
        self.lasts = lasts
        self.gone = False
        self._slow_since: float | None = None
        request.when_slow(self._pause, self._resume)

    @property
    def too_slow(self) -> bool:
        """Whether it has left events unread for too long."""
        return self._slow_since is not None and self._now() - self._slow_since > _SLOW_SECONDS

    def send(self, event: bytes) -> None:
        """Send, unless earlier events are still on their way: what is missed is not sent again."""
        if self._slow_since is None and not self.gone:
            self._request.write(event)

    def close(self, abort: bool) -> None:
        """End the answer."""
        if self.gone:
            return
        self.gone = True
        if abort:
            self._request.cut()
        else:
            self._request.finish()

    def _pause(self) -> None:
        """The connection's write buffer is full."""
        self._slow_since = self._now()

    def _resume(self) -> None:
        """The connection's write buffer is empty."""
        self._slow_since = None


class LiveFeed:
    """All listeners.

    :param outdate: called before a new overview or a turn is told. A page that hears of a change
        asks for what changed, and must not get what was drawn before.
    :ivar dropped: listeners that were too slow.
    """

    def __init__(self, managed: ManagedGateway, outdate: Callable[[], None]) -> None:
        self._managed = managed
        self._outdate = outdate
        self._clock = managed.clock
        self._listeners: set[LiveSubscriber] = set()
        self._step: IDelayedCall | None = None
        self._turns = 0
        self._omitted = 0
        self._latest: tuple[float, bytes] | None = None
        self._asked = False
        self.dropped = 0
        managed.watch_turns(self._turn_ended)

    def __len__(self) -> int:
        return len(self._listeners)

    def listen(self, request: ClientRequest, lasts: Callable[[], bool]) -> None:
        """Answer ``request`` with events from now on.

        :param lasts: whether the caller may still see them; asked each second.
        :raises AdminError: 503 when too many listen.
        """
        if len(self._listeners) >= MAX_LISTENERS:
            raise AdminError(503, "too many pages are open", {"retry-after": "30"})
        listener = LiveSubscriber(request, self._clock.seconds, lasts)
        request.when_gone(lambda: self._left(listener))
        request.start(200, {"content-type": "text/event-stream", "x-accel-buffering": "no"})
        self._listeners.add(listener)
        if self._step is None:
            self._step = self._clock.callLater(_STEP_SECONDS, self._send_status)
        known = self._known()
        if known is not None:
            listener.send(_RETRY + known)
        else:
            listener.send(_RETRY)
            self._tell_status()

    def close(self) -> None:
        """End all answers, because the gateway stops."""
        self._pause()
        for listener in list(self._listeners):
            self._left(listener, close=True)

    def _send_status(self) -> None:
        self._step = None
        for listener in list(self._listeners):
            if listener.too_slow:
                self.dropped += 1
                self._left(listener, close=True, abort=True)
            elif not listener.lasts():
                self._left(listener, close=True)
        if self._listeners:
            self._step = self._clock.callLater(_STEP_SECONDS, self._send_status)
            known = self._known()
            if known is not None:
                self._send(known)
            else:
                self._tell_status()

    def _known(self) -> bytes | None:
        """The last status, unless it is too old by now."""
        now = self._clock.seconds()
        if self._latest is None or now - self._latest[0] >= _STEP_SECONDS * 0.9:
            return None
        return self._latest[1]

    def _tell_status(self) -> None:
        """Ask how it stands, and tell all listeners."""
        if self._asked:
            return
        self._managed.follow_turns(_FOLLOW_SECONDS)
        found = self._managed.view("current")
        if isinstance(found, Deferred):
            self._asked = True
            found.addBoth(self._answered)
        else:
            self._tell(found)

    def _answered(self, found: Any) -> None:
        self._asked = False
        if isinstance(found, Failure):
            _log.failure("the live events have no overview", found)
        elif self._listeners:
            self._tell(found)

    def _tell(self, found: dict[str, Any]) -> None:
        shown = _event(b"status", {**found, "turns_omitted": self._omitted})
        self._turns = self._omitted = 0
        self._latest = self._clock.seconds(), shown
        self._outdate()
        self._send(shown)

    def _turn_ended(self, record: EndedTurn) -> None:
        if not self._listeners:
            return
        if self._turns >= _MAX_TURNS:
            self._omitted += 1
            return
        self._turns += 1
        self._outdate()
        self._send(_event(b"turn", record.as_dict()))

    def _send(self, event: bytes) -> None:
        for listener in list(self._listeners):
            listener.send(event)

    def _left(self, listener: LiveSubscriber, close: bool = False, abort: bool = False) -> None:
        self._listeners.discard(listener)
        if close:
            listener.close(abort)
        listener.gone = True
        if not self._listeners:
            self._pause()

    def _pause(self) -> None:
        """Compute nothing while there are no listeners."""
        step, self._step = self._step, None
        if step is not None and step.active():
            step.cancel()
        self._latest = None


def _event(name: bytes, value: Any) -> bytes:
    """JSON has no line breaks, so it is one ``data`` line."""
    return b"event: " + name + b"\ndata: " + as_json(value) + b"\n\n"
