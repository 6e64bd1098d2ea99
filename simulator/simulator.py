"""The simulator as a whole, and one request to it as the handlers see it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from twisted.internet.interfaces import IReactorTime

from simulator.accounts import SimulatedAccount
from simulator.engine import AccountEngine, BackgroundRun, Record, ResponseStore
from simulator.faults import Fault, FaultQueue, Steps
from simulator.model import Model, ScriptedModel
from simulator.request_log import LoggedRequest, RequestLog, SocketRecord
from simulator.stream import StepStream
from simulator.validation import bad_request, invalid_type, invalid_value

#: The prefix of the ChatGPT backend.
CODEX_PREFIX = "/backend-api/codex"
_SOCKETS = 2000


class Simulator:
    """Simulated accounts with their engines, faults and request log.

    :param clock: times streams and background responses.
    :param prefix: the paths of the platform's services begin with it.
    :param event_delay: seconds between two events of a stream.
    :param background_seconds: seconds from the start of a background response to its end.
    :param requests: the log of requests.
    :ivar sockets: the latest WebSockets, the oldest first.
    """

    def __init__(
        self,
        accounts: Sequence[SimulatedAccount],
        clock: IReactorTime,
        *,
        model: Model | None = None,
        prefix: str = "/v1",
        event_delay: float = 0.0,
        background_seconds: float = 0.2,
        requests: RequestLog | None = None,
    ) -> None:
        self.accounts = tuple(accounts)
        self.clock = clock
        self.prefixes = (prefix, CODEX_PREFIX)
        self.event_delay = event_delay
        self.background_seconds = background_seconds
        self.requests = RequestLog() if requests is None else requests
        self.faults = FaultQueue()
        self.streams: set[StepStream] = set()
        self.sockets: deque[SocketRecord] = deque(maxlen=_SOCKETS)
        self._runs: WeakSet[BackgroundRun] = WeakSet()
        chosen = ScriptedModel() if model is None else model
        self._engines = {account.key: self._engine(account, chosen) for account in self.accounts}
        if len(self._engines) != len(self.accounts):
            raise ValueError("two simulated accounts have the same key")

    def _engine(self, account: SimulatedAccount, model: Model) -> AccountEngine:
        delay = account.store_delay_seconds
        store = ResponseStore(delay=delay, now=self.clock.seconds)
        return AccountEngine(account, model, store=store)

    def prefix_of(self, account: SimulatedAccount) -> str:
        """The prefix of this account's service; every prefix serves every account."""
        return self.prefixes[-1 if account.dialect == "chatgpt" else 0]

    def engine_of_key(self, key: str) -> AccountEngine | None:
        """The engine of the account with this key."""
        return self._engines.get(key)

    def account(self, name: str) -> SimulatedAccount:
        """The account of this name.

        :raises KeyError: when there is none.
        """
        for account in self.accounts:
            if account.name == name:
                return account
        raise KeyError(name)

    def start_in_background(
        self,
        record: Record,
        events: Steps,
        keep: Callable[[Record], None],
        *,
        streamed: bool,
    ) -> BackgroundRun:
        """Start a response that is made whether or not a client waits for it."""
        run = BackgroundRun(
            record,
            events,
            keep=keep,
            clock=self.clock,
            seconds=self.background_seconds,
            streamed=streamed,
        )
        self._runs.add(run)
        run.start()
        return run

    def abort(self) -> None:
        """Reset all answers and stop all background responses."""
        for run in list(self._runs):
            run.stop()
        for stream in list(self.streams):
            stream.abort()


@dataclass(frozen=True)
class Exchange:
    """A request to an endpoint.

    :ivar engine: the account's engine.
    :ivar entry: its entry in the log.
    :ivar fault: the fault to apply to its answer.
    :ivar named: the id in its path, or "".
    """

    simulator: Simulator
    engine: AccountEngine
    entry: LoggedRequest
    fault: Fault
    named: str = ""

    @property
    def body(self) -> Any:
        """The decoded body."""
        return self.entry.body

    def text(self, name: str) -> str | None:
        """A query parameter; the last of several wins."""
        values = self.entry.query.get(name)
        return values[-1] if values else None

    def texts(self, name: str) -> Sequence[str]:
        """A query parameter that is a list: ``name[]=a&name[]=b``, or without the brackets."""
        return self.entry.query.get(f"{name}[]") or self.entry.query.get(name) or ()

    def flag(self, name: str) -> bool:
        """A query parameter that is true or false."""
        value = self.text(name)
        if value not in (None, "true", "false"):
            raise invalid_type(name, "a boolean", value)
        return value == "true"

    def integer(self, name: str, low: int, high: int | None = None) -> int | None:
        """A query parameter between bounds; None if it is not there."""
        value = self.text(name)
        if value is None:
            return None
        if not value.removeprefix("-").isdecimal():
            raise invalid_type(name, "an integer", value)
        number = int(value)
        if number < low:
            message = f"Invalid '{name}': expected a value >= {low}, but got {number} instead."
            raise bad_request(message, name, "integer_below_min_value")
        if high is not None and number > high:
            message = f"Invalid '{name}': expected a value <= {high}, but got {number} instead."
            raise bad_request(message, name, "integer_above_max_value")
        return number

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        """A query parameter that is one of some words; the first is the default."""
        value = self.text(name)
        if value is not None and value not in allowed:
            raise invalid_value(name, value, allowed)
        return allowed[0] if value is None else value
