"""The simulator: its accounts, their engines, the request log, the faults, and the resource."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakSet

from twisted.internet.interfaces import IReactorTime

from simulator.accounts import SimulatedAccount
from simulator.background import BackgroundRun
from simulator.engine import AccountEngine
from simulator.faults import FaultQueue, Steps
from simulator.model import Model
from simulator.request_log import RequestLog
from simulator.resource import SimulatorResource
from simulator.scripted import ScriptedModel
from simulator.store import Record
from simulator.stream import AnswerStream

#: Where the ChatGPT backend serves Codex.
CODEX_PREFIX = "/backend-api/codex"


class Simulator:
    """Simulated accounts behind one resource, to be served by any twisted.web Site.

    `event_delay` is the time between two events of a stream, `background_seconds` that from the
    beginning of a background response to its end, both in seconds on the clock given.
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
        self.streams: set[AnswerStream] = set()
        self._runs: WeakSet[BackgroundRun] = WeakSet()
        chosen = ScriptedModel() if model is None else model
        self._engines = {account.key: AccountEngine(account, chosen) for account in self.accounts}
        if len(self._engines) != len(self.accounts):
            raise ValueError("two simulated accounts have the same key")
        self.resource = SimulatorResource(self)

    def prefix_of(self, account: SimulatedAccount) -> str:
        """What the paths of this account's service begin with. All of them serve every account."""
        return self.prefixes[-1 if account.dialect == "chatgpt" else 0]

    def engine_of_key(self, key: str) -> AccountEngine | None:
        return self._engines.get(key)

    def account(self, name: str) -> SimulatedAccount:
        """The account of this name; KeyError if there is none."""
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
        """A response that is made whether or not anybody waits for it."""
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
        """Reset every answer under way, and let no background response go on."""
        for run in list(self._runs):
            run.stop()
        for stream in list(self.streams):
            stream.abort()
