"""Faults for tests and demonstrations: errors of an account at its next requests.

A fault refuses a request or rewrites the steps of its answer. A step is an event, bytes to send as
they are, a pause, a wait, or an end of the connection. Over a WebSocket bytes are one text message,
and the one event of an upgrade is its 101; ``simulator/websocket_faults.py`` has the faults that
only a WebSocket can have.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred

from simulator.events import Event
from simulator.request_log import Endpoint


class Ending(enum.Enum):
    """An end of an answer other than its terminal event."""

    END = "end"  # the answer ends properly, without a terminal event; a WebSocket goes on
    CLOSE = "close"  # everything sent is delivered, then the connection closes without a word
    DROP = "drop"  # the connection is reset
    SILENCE = "silence"  # nothing more is sent; the connection stays open
    DEAF = "deaf"  # the same, and nothing more is read: a WebSocket answers no ping


@dataclass(frozen=True)
class Pause:
    """A wait before the next step."""

    seconds: float


class Headers(enum.Enum):
    """Send the response headers before the first event."""

    NOW = "now"


@dataclass(frozen=True)
class Inserted:
    """An event that is sent as it is: without a number, and without a lane."""

    event: Event


@dataclass(frozen=True)
class CloseFrame:
    """An end of a WebSocket by a Close frame; over HTTP the connection closes.

    :ivar code: any number, or None for a frame without one.
    """

    code: int | None = 1000
    reason: str = ""


@dataclass(frozen=True)
class WireBytes:
    """Bytes that a WebSocket sends as they are, in no frame; left out over HTTP."""

    data: bytes = field(repr=False)


@dataclass(frozen=True)
class WireManner:
    """How a WebSocket goes on; nothing over HTTP.

    :ivar fragment_bytes: messages leave in frames of at most so many bytes.
    :ivar read_bytes_per_second: how fast it reads.
    """

    fragment_bytes: int | None = None
    read_bytes_per_second: float | None = None


#: A Deferred fires when the next event is there.
Step = (
    Event
    | bytes
    | Inserted
    | WireBytes
    | WireManner
    | Pause
    | Ending
    | CloseFrame
    | Headers
    | Deferred[None]
)
Steps = Iterator[Step]


@dataclass(frozen=True)
class Fault:
    """The base of all faults; it changes nothing itself."""

    #: Whether the response itself is wrong, not only its delivery to this client.
    is_of_response = False

    def extra_headers(self) -> Mapping[str, str]:
        """More headers for the answer."""
        return {}

    def rewrite(self, steps: Steps) -> Steps:
        """The steps of the answer with the fault applied."""
        return steps


@dataclass(frozen=True)
class Refuse(Fault):
    """Answer with this status and body without a look at the request."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def error(
        cls,
        status: int,
        code: str | None,
        message: str = "Refused on request.",
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Refuse:
        """Refuse with the API's error object."""
        error = {"message": message, "type": kind, "param": param, "code": code, **more}
        return cls(status, {"error": error}, headers or {})

    @classmethod
    def rate_limited(cls, retry_after: float | None = None) -> Refuse:
        """Refuse with 429 and, if given, ``retry-after`` in seconds."""
        headers = {} if retry_after is None else {"retry-after": f"{retry_after:g}"}
        message = "Rate limit reached. Please try again later."
        return cls.error(429, "rate_limit_exceeded", message, kind="requests", headers=headers)

    @classmethod
    def usage_limit_reached(cls, resets_at: int, resets_in_seconds: int) -> Refuse:
        """Refuse as a ChatGPT subscription that is used up; ``resets_at`` in unix seconds."""
        return cls.error(
            429,
            None,
            "The usage limit has been reached",
            kind="usage_limit_reached",
            plan_type="plus",
            resets_at=resets_at,
            resets_in_seconds=resets_in_seconds,
        )

    def extra_headers(self) -> Mapping[str, str]:
        return self.headers


@dataclass(frozen=True)
class ResponseHeaders(Fault):
    """Answer as usual, with these headers added."""

    headers: Mapping[str, str]

    def extra_headers(self) -> Mapping[str, str]:
        return self.headers


@dataclass(frozen=True)
class _Stop(Fault):
    """Send some events, then end; without an event the headers are sent only if asked for."""

    after: int = 0
    headers: bool = False
    ending = Ending.END

    def rewrite(self, steps: Steps) -> Steps:
        if self.headers:
            yield Headers.NOW
        yield from first_steps(steps, self.after)
        yield self.ending


@dataclass(frozen=True)
class EndAfter(_Stop):
    """End the HTTP response properly after N events, without a terminal event."""

    ending = Ending.END


@dataclass(frozen=True)
class CloseAfter(_Stop):
    """Close the connection after N events have been delivered (0: before the first byte)."""

    ending = Ending.CLOSE


@dataclass(frozen=True)
class DropAfter(_Stop):
    """Reset the connection after N events have left the simulator."""

    ending = Ending.DROP


@dataclass(frozen=True)
class SilenceAfter(_Stop):
    """Send nothing more after N events, and keep the connection open."""

    ending = Ending.SILENCE


@dataclass(frozen=True)
class PauseAfter(Fault):
    """Wait after N events, then go on."""

    seconds: float
    after: int = 0

    def rewrite(self, steps: Steps) -> Steps:
        yield from first_steps(steps, self.after)
        yield Pause(self.seconds)
        yield from steps


@dataclass(frozen=True)
class InsertAfter(Fault):
    """Send an extra event (or bytes) without a number after N events; then go on or end."""

    event: Event | bytes
    after: int = 0
    then: Ending | CloseFrame | None = None

    def rewrite(self, steps: Steps) -> Steps:
        yield from first_steps(steps, self.after)
        yield self.event if isinstance(self.event, bytes) else Inserted(self.event)
        if self.then is None:
            yield from steps
        else:
            yield self.then


@dataclass(frozen=True)
class TerminalAfter(Fault):
    """End the response as failed or incomplete after at most N events, once it has begun."""

    error: Mapping[str, Any] | None = None
    incomplete_reason: str | None = None
    after: int = 2
    is_of_response = True

    def rewrite(self, steps: Steps) -> Steps:
        response: dict[str, Any] = {}
        finished: list[Any] = []
        for number, step in enumerate(steps):
            event = step if isinstance(step, dict) else {}
            response = event.get("response", response)
            if (response and number >= self.after) or event.get("type") == "response.completed":
                break
            if event.get("type") == "response.output_item.done":
                finished.append(event["item"])
            yield step
        status = "failed" if self.incomplete_reason is None else "incomplete"
        ended = {**response, "status": status, "output": finished}
        if self.incomplete_reason is None:
            default = {"code": "server_error", "message": "The simulated model failed."}
            ended["error"] = self.error or default
        else:
            ended["incomplete_details"] = {"reason": self.incomplete_reason}
        yield {"type": f"response.{status}", "response": ended}


@dataclass(frozen=True)
class EmptyOutput(Fault):
    """Complete with ``output: []``, as the ChatGPT backend does."""

    is_of_response = True

    def rewrite(self, steps: Steps) -> Steps:
        for step in steps:
            if isinstance(step, dict) and step["type"] == "response.completed":
                step = {**step, "response": {**step["response"], "output": []}}
            yield step


@dataclass(frozen=True)
class NoEcho(Fault):
    """Do not repeat ``previous_response_id`` in the response."""

    is_of_response = True

    def rewrite(self, steps: Steps) -> Steps:
        for step in steps:
            if isinstance(step, dict) and "response" in step:
                response = {**step["response"], "previous_response_id": None}
                step = {**step, "response": response}
            yield step


@dataclass(frozen=True)
class Together(Fault):
    """Several faults of one request; the first one is applied first."""

    faults: Sequence[Fault]

    def extra_headers(self) -> Mapping[str, str]:
        return {k: v for fault in self.faults for k, v in fault.extra_headers().items()}

    def rewrite(self, steps: Steps) -> Steps:
        for fault in self.faults:
            steps = fault.rewrite(steps)
        return steps


def first_steps(steps: Steps, count: int) -> Steps:
    """The steps up to so many events; pauses do not count."""
    while count > 0:
        step = next(steps, None)
        if step is None:
            return
        yield step
        count -= isinstance(step, (dict, bytes, Inserted))


def flat_error(code: str | None, message: str | None = None) -> Event:
    """An error event as SSE streams have it."""
    return {"type": "error", "code": code, "message": message, "param": None}


EMPTY_ERROR: Event = {"type": "error", "error": {}}


class FaultQueue:
    """The faults of each account's next requests; those for one endpoint go first."""

    def __init__(self) -> None:
        self._next: dict[tuple[str, Endpoint | None], deque[Fault]] = {}
        self._always: dict[tuple[str, Endpoint | None], Fault] = {}

    def push(self, account: str, *faults: Fault, to: Endpoint | None = None) -> None:
        """Queue a fault for each of the account's next requests; ``Fault()`` changes nothing."""
        self._next.setdefault((account, to), deque()).extend(faults)

    def always(self, account: str, fault: Fault, to: Endpoint | None = None) -> None:
        """Apply this fault to every request for which none is queued."""
        self._always[account, to] = fault

    def clear(self, account: str) -> None:
        """Remove all faults of the account."""
        self._next = {key: value for key, value in self._next.items() if key[0] != account}
        self._always = {key: value for key, value in self._always.items() if key[0] != account}

    def take(self, account: str, endpoint: Endpoint = "create") -> Fault:
        """The fault for a request that has just arrived; it leaves the queue.

        An upgrade to a WebSocket takes only faults that were given to it.
        """
        keys = [(account, endpoint), (account, None)][: 1 if endpoint == "upgrade" else 2]
        for key in keys:
            waiting = self._next.get(key)
            if waiting:
                return waiting.popleft()
        found = (self._always[key] for key in keys if key in self._always)
        return next(found, Fault())
