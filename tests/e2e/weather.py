"""A pool's upstream in foul weather: a simulator in a process of its own, one account faulty.

    python -m tests.e2e.weather LOG ACCOUNT...

Every so many requests the next account is the faulty one, and in the next way.  What arrived,
how it was answered and which time the answer named goes to LOG, a line of JSON a request, when
the process is told to stop.  Its port is the first thing it prints.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, NamedTuple

from simulator import SimulatedAccount, Simulator, SimulatorService
from simulator.faults import DropAfter, Fault, FaultQueue, Refuse, TerminalAfter
from simulator.items import Item, text_of
from simulator.model import ModelTurn, message
from simulator.request_log import Endpoint, LoggedRequest, RequestLog

ROOT = Path(__file__).resolve().parents[2]

#: Requests, to whichever account, after which the weather changes, if somebody felt it.
SPELL = 150

#: The events of an answer before its first output: ``created`` and ``in_progress``.
PREAMBLE = 2


class Said(NamedTuple):
    """A fault, and the unix time before which the account asked to be left alone, if any."""

    fault: Fault
    until: float | None = None


def limited(until: float, **headers: str) -> Said:
    words = "Rate limit reached."
    return Said(Refuse.error(429, "rate_limit_exceeded", words, headers=headers), until)


def used_up(until: float, *, headers: dict[str, str] | None = None, **hints: Any) -> Said:
    fault = Refuse.error(
        429,
        None,
        "The usage limit has been reached",
        kind="usage_limit_reached",
        headers=headers,
        **hints,
    )
    return Said(fault, until)


def _http_date(now: float) -> Said:
    until = math.ceil(now) + 1
    return limited(until, **{"retry-after": formatdate(until, usegmt=True)})


def _resets_at(now: float) -> Said:
    until = math.ceil(now) + 1
    return used_up(until, resets_at=until)


def _far_away(now: float) -> Said:
    """The cap on cooldowns is what counts."""
    return used_up(now + 3600, resets_at=math.ceil(now + 3600))


def _codex(now: float) -> Said:
    until = math.ceil(now) + 1
    windows = {
        "x-codex-primary-used-percent": "100",
        "x-codex-primary-window-minutes": "300",
        "x-codex-primary-reset-at": str(until),
        "x-codex-secondary-used-percent": "20",
        "x-codex-secondary-reset-at": str(until + 86_400),
        "x-codex-active-limit": "codex",
    }
    return used_up(until, headers=windows)


def _in_words(now: float) -> Said:
    words = "Rate limit reached for gpt-5.5. Please try again in 1.5s."
    return Said(Refuse.error(429, "rate_limit_exceeded", words), now + 1.5)


def _x_ratelimit(now: float) -> Said:
    left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s500ms"}
    return limited(now + 1.5, **left)


def _failed_as_limited(now: float) -> Said:
    words = {"code": "rate_limit_exceeded", "message": "Please try again in 1.5s."}
    return Said(TerminalAfter(words, after=PREAMBLE), now + 1.5)


#: How an account may be faulty, in the order in which it happens.
KINDS: dict[str, Callable[[float], Said]] = {
    "429 retry-after": lambda now: limited(now + 2, **{"retry-after": "2"}),
    "401": lambda now: Said(Refuse.error(401, "invalid_api_key", "Incorrect API key provided.")),
    "429 http date": _http_date,
    "500": lambda now: Said(Refuse.error(500, "server_error", "We had an error.")),
    "429 retry-after-ms": lambda now: limited(now + 1.5, **{"retry-after-ms": "1500"}),
    "reset before the first byte": lambda now: Said(DropAfter(0)),
    "429 resets_at": _resets_at,
    "503": lambda now: Said(Refuse.error(503, "server_is_overloaded", "Overloaded.")),
    "429 resets_in_seconds": lambda now: used_up(now + 2, resets_in_seconds=2),
    "reset after created": lambda now: Said(DropAfter(1)),
    "429 x-ratelimit-reset": _x_ratelimit,
    "503 retry-after": lambda now: Said(
        Refuse.error(503, None, "Busy.", headers={"retry-after": "1"}), now + 1
    ),
    "429 in words": _in_words,
    "reset after output": lambda now: Said(DropAfter(PREAMBLE + 3)),
    "429 codex headers": _codex,
    "response.failed": _failed_as_limited,
    "429 far away": _far_away,
}


class Weather(FaultQueue):
    """Instead of a queue: whoever is faulty now, and how; every fault is written down."""

    def __init__(self, accounts: Sequence[str]) -> None:
        super().__init__()
        self._accounts = accounts
        self._spell = 0
        self._passed = 0
        self._felt = 0
        self.log = Arrivals()

    def take(self, account: str, endpoint: Endpoint = "create") -> Fault:
        self._passed += 1
        if self._felt and self._passed > SPELL:
            self._spell += 1
            self._passed = self._felt = 0
        kind = list(KINDS)[self._spell % len(KINDS)]
        # What breaks answers off before clients' eyes makes them ask again: let that end.
        if account != self._accounts[self._spell % len(self._accounts)] or (
            kind == "reset after output" and self._felt >= 8
        ):
            return Fault()
        self._felt += 1
        said = KINDS[kind](time.time())
        self.log.latest.fault, self.log.latest.until = kind, said.until
        return said.fault


class Arrival(NamedTuple):
    """One request, as the log has it.

    :ivar turn: what the client's ``metadata`` calls it.
    :ivar until: the unix time that a refusal named.
    """

    turn: str
    account: str
    at: float
    fault: str | None
    until: float | None
    previous: str | None
    status: int | None
    code: str | None
    outcome: str
    events: int
    response_id: str | None

    @property
    def had_output(self) -> bool:
        return self.events > PREAMBLE and self.outcome != "failed"


class Arrivals(RequestLog):
    """Keeps every request of a run."""

    def __init__(self) -> None:
        super().__init__(max_count=100_000, max_bytes=1 << 40)
        self.latest: Any = None

    def add(self, entry: LoggedRequest) -> None:
        super().add(entry)
        self.latest = entry
        self.latest.fault = self.latest.until = None

    def write(self, path: str) -> None:
        with open(path, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(_line(entry)) + "\n" for entry in self)


def _line(entry: Any) -> Arrival:
    body = entry.body if isinstance(entry.body, dict) else {}
    return Arrival(
        (body.get("metadata") or {}).get("turn", ""),
        entry.account,
        entry.at,
        entry.fault,
        entry.until,
        entry.previous_response_id,
        entry.status,
        (entry.error or {}).get("code"),
        entry.outcome,
        entry.events_sent,
        entry.response_id,
    )


class Listener:
    """A model that repeats all it was told: a turn that is lost or doubled shows."""

    def respond(self, turn: ModelTurn) -> list[Item]:
        said = [text_of(item.get("content")) for item in turn.context if item.get("role") == "user"]
        answers = sum(item.get("role") == "assistant" for item in turn.context)
        return [message(heard(said, answers))]


def heard(said: Sequence[str], answers: int) -> str:
    """What the model answers who was told this, and answered so often before."""
    return f"{' | '.join(said)} (after {answers} answers)"


@contextmanager
def weather(log: Path, accounts: Sequence[str]) -> Iterator[str]:
    """A process of it; its base URL.  The log is whole once it ended."""
    command = [sys.executable, "-m", "tests.e2e.weather", str(log), *accounts]
    with Popen(command, cwd=ROOT, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()
            process.wait(30)


def arrivals(log: Path) -> list[Arrival]:
    """What a process wrote, in the order of arrival."""
    return [Arrival(*json.loads(line)) for line in log.read_text("utf-8").splitlines()]


def main(log: str, *accounts: str) -> None:
    from twisted.internet import reactor

    sky = Weather(accounts)
    simulated = [SimulatedAccount(name, key=f"upstream-secret-{name}") for name in accounts]
    simulator = Simulator(simulated, reactor, model=Listener(), requests=sky.log)
    simulator.faults = sky
    service = SimulatorService(simulator, reactor)
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.addSystemEventTrigger("after", "shutdown", sky.log.write, log)
    print(service.port, flush=True)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
