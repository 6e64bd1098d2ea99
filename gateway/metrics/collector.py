"""All measurements of the gateway, taken every five seconds, and their last 15 minutes.

What the admin side reads is kept until the next step, because an open page asks each second.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from gateway.api_keys.keys import KeyRing
from gateway.metrics.alarms import Alarm, MeasuredAlarms, Measurements, conditions
from gateway.metrics.bounded_structures import BoundedStructure, BoundedStructures
from gateway.metrics.histogram import Histogram, Recent
from gateway.metrics.process import GarbagePauses, LoopLag, memory_budget, read_process
from gateway.metrics.turns import TurnMetrics, share, with_shares
from gateway.routing.account import Account
from gateway.routing.health import AccountState
from gateway.routing.model_catalog import ModelCatalog
from gateway.routing.wait_queue import WaitReason
from gateway.server.connections import ConnectionLimiter
from gateway.server.websocket import ResponsesFactory
from gateway.state.keeper import StateFigures, nothing_kept
from gateway.turn.context import TurnServices

STEP_SECONDS = 5

#: Steps in a minute, and in the history.
MINUTE = 60 // STEP_SECONDS
STEPS = 180

#: Steps between two marks of the accounts' figures, so that these cover 10 to 15 minutes.
_ACCOUNT_STEPS = 300 // STEP_SECONDS

#: Error codes of turns that reached a limit of their key, if not ``rate_limit_exceeded``.
_LIMITS = {
    "model": "model_not_found",
    "requests_per_day": "usage_limit_reached",
    "tokens_per_day": "usage_limit_reached",
}

#: States of accounts that are unavailable against the operator's will.
UNAVAILABLE = frozenset(
    (
        AccountState.COOLING,
        AccountState.EXHAUSTED,
        AccountState.UNAUTHORIZED,
        AccountState.UNPROVEN,
    )
)

_log = Logger(namespace="gateway.metrics")


class _ErrorCounts(NamedTuple):
    """How many turns failed by each error so far, and those of them that met a key's limit."""

    all: Counter[str]
    refused: Counter[str]


class MetricsCollector(Service):
    """Measures the running gateway.

    :param websockets: the factory of WebSocket connections.
    :param catalogues: which models upstreams offer.
    :param kept: called for how the state is kept.
    :ivar turns: what is counted of turns.
    :ivar process_figures: the last reading of the process.
    :ivar memory_budget: in bytes, or None.
    :ivar started_at: unix seconds.
    """

    def __init__(
        self,
        reactor: Any,
        services: TurnServices,
        keys: KeyRing,
        limiter: ConnectionLimiter,
        websockets: ResponsesFactory,
        catalogues: ModelCatalog,
        kept: Callable[[], StateFigures | None] = nothing_kept,
    ) -> None:
        self._reactor = reactor
        self._services = services
        self._keys = keys
        self._limiter = limiter
        self._websockets = websockets
        self._kept = kept
        self.started_at = reactor.seconds()
        self.turns = TurnMetrics()
        self.loop_lag = LoopLag(reactor, MINUTE)
        self.garbage = GarbagePauses()
        self.memory_budget = memory_budget()
        self.process_figures = read_process()
        self._history = History(self.turns, self.started_at)
        self._structures = BoundedStructures(
            services, keys, limiter, websockets, catalogues, self.turns, kept
        )
        self._alarms = MeasuredAlarms()
        self._evicted: deque[int] = deque([0], maxlen=MINUTE)
        self._errors: deque[_ErrorCounts] = deque(
            [_ErrorCounts(Counter(), Counter())], maxlen=MINUTE
        )
        self._steps = 0
        self._accounts: dict[str, Mapping[str, Any]] = {}
        self._unavailable_since: dict[str, float] = {}
        self._next_step: IDelayedCall | None = None
        services.turn_log.watchers.append(self.turns.count)

    # --- the service -------------------------------------------------------------------

    def startService(self) -> None:
        """Begin to measure."""
        super().startService()
        self.loop_lag.start()
        self.garbage.start()
        self._schedule()

    def stopService(self) -> None:
        """Stop measuring."""
        super().stopService()
        self.loop_lag.stop()
        self.garbage.stop()
        step, self._next_step = self._next_step, None
        if step is not None:
            step.cancel()

    def _schedule(self) -> None:
        self._next_step = self._reactor.callLater(STEP_SECONDS, self._take_step)

    def _take_step(self) -> None:
        self._schedule()
        try:
            self.step()
        except Exception:
            _log.failure("a step of the measurements failed")

    def step(self) -> None:
        """Measure once."""
        now = self._reactor.seconds()
        self._steps += 1
        self.process_figures = read_process()
        used, limit = self.process_figures.open_files, self.process_figures.open_files_limit
        if used is not None and limit is not None and used >= limit:
            self._limiter.files.report_shortage(limit)
        self._alarms.update(conditions(self._measurements()), now)
        self._history.step(now, self.gauges())
        self.loop_lag.recent.mark()
        if self._steps % _ACCOUNT_STEPS == 0:
            self.turns.mark()
        self._accounts.clear()
        self._note_unavailable_accounts(now)

    def _note_unavailable_accounts(self, now: float) -> None:
        """Keep since when each is unavailable: the account forgets it whenever it is tried."""
        before, self._unavailable_since = self._unavailable_since, {}
        for account in self._services.pool.accounts:
            since = _unavailable_since(account, now)
            if since is not None:
                earliest = min(since, before.get(account.name, since))
                self._unavailable_since[account.name] = earliest

    def _measurements(self) -> Measurements:
        figures = self._services.conversations.figures()
        evicted = figures.evicted_conversations - self._evicted[0]
        self._evicted.append(figures.evicted_conversations)
        turns, failed = self._history.in_the_last_minute()
        before = self._errors[0]
        errors = _ErrorCounts(self.turns.errors.copy(), self._refused_so_far())
        self._errors.append(errors)
        refused = errors.refused - before.refused
        others = errors.all - before.all - refused
        return Measurements(
            self.loop_lag.recent.percentiles()["p99"],
            self.process_figures.rss_bytes,
            self.memory_budget,
            self.process_figures.open_files,
            self.process_figures.open_files_limit,
            evicted,
            figures.longest_unused,
            max(0, turns - refused.total()),
            max(0, failed - refused.total()),
            max(others, key=lambda error: others[error], default=None),
            self._limiter.files.are_short,
            self._services.request_log.failed,
            self._kept(),
        )

    def _refused_so_far(self) -> Counter[str]:
        refused: Counter[str] = Counter()
        for key in self._keys.snapshot():
            for limit, count in key["refusals"].items():
                refused[_LIMITS.get(limit, "rate_limit_exceeded")] += count
        return refused

    # --- what the admin side reads -------------------------------------------------------

    def gauges(self) -> dict[str, float]:
        """The current counts."""
        sessions = self._websockets.sessions()
        clients, websockets = len(self._limiter), len(self._websockets.connections)
        over_websockets = sum(session.turns_running for session in sessions)
        waiting = self._services.waiting
        return {
            "connections": clients,
            "websockets": websockets,
            "lanes": sum(session.lanes for session in sessions),
            # Clients without a WebSocket are HTTP requests or background turns.
            "turns_in_flight": over_websockets + max(0, clients - websockets),
            "turns_queued": sum(session.turns_queued for session in sessions),
            "turns_waiting": waiting.waiting_for(WaitReason.ACCOUNT),
            "turns_limited": waiting.waiting_for(WaitReason.LIMIT),
        }

    def process(self) -> dict[str, Any]:
        """Memory, open files and loop lag of the process.

        ``{memory: {rss_bytes, budget_bytes}, open_files: {used, limit}, loop_lag_ms: {p50, p99}}``.
        """
        figures = self.process_figures
        return {
            "memory": {"rss_bytes": figures.rss_bytes, "budget_bytes": self.memory_budget},
            "open_files": {"used": figures.open_files, "limit": figures.open_files_limit},
            "loop_lag_ms": self.loop_lag.recent.percentiles(),
        }

    def rates(self) -> dict[str, Any]:
        """Rates and latencies of the last minute.

        ``{turns_per_minute, tokens_per_minute, errors_per_minute, refused_per_minute,
        cached_share, added_first_token_ms: {p50, p99}, upstream_first_token_ms: {p50, p99}}``.
        """
        refused = (self._refused_so_far() - self._errors[0].refused).total()
        minutes = len(self._errors) * STEP_SECONDS / 60
        return {
            **self._history.rates(self._reactor.seconds()),
            "refused_per_minute": round(refused / minutes, 2),
        }

    def history(self) -> dict[str, Any]:
        """``{step_seconds, start, series: {name: [value, ...]}}``, the oldest first."""
        return self._history.shown()

    def newest(self) -> dict[str, Any]:
        """``{at, values: {name: value}}``: the last point of each series."""
        return self._history.newest()

    def account(self, name: str) -> Mapping[str, Any]:
        """``{errors: {class: count}, first_token_ms: {p50, p99}, cached_share}``."""
        found = self._accounts.get(name)
        if found is None:
            found = self._accounts[name] = self.turns.account(name)
        return found

    def transports(self) -> dict[str, Any]:
        """The turns since the start by transport, for JSON.

        ``{transport: {turns, chained, upstream_bytes, input_tokens, cached_input_tokens,
        chained_share, chained_share_of_all, bytes_per_turn, cached_share}}``; both transports are
        always there.
        """
        return with_shares(self.turns.by_transport())

    def unavailable_since(self, name: str) -> float | None:
        """Since when an account is unavailable, in unix seconds; tries between do not end that."""
        return self._unavailable_since.get(name)

    def counted(self) -> dict[str, Any]:
        """What rates and percentiles are made of, to be added to that of other processes.

        Times are counts by bucket, and input is ``[tokens, cached tokens]``:
        ``{loop_lag_ms, minute: {added_first_token_ms, upstream_first_token_ms, input}, step: the
        same of the last step, accounts: {name: {first_token_ms, input}}}``.
        """
        return {
            "loop_lag_ms": self.loop_lag.recent.counts(),
            **self._history.counted(self._reactor.seconds()),
            "accounts": {name: each.counted() for name, each in self.turns.accounts.items()},
        }

    def bounded_structures(self) -> list[dict[str, Any]]:
        """``[{name, size, bound, unit, bytes}]`` of every bounded structure."""
        history = BoundedStructure("history", len(self._history), STEPS, "points")
        return [each._asdict() for each in (*self._structures.read(), history)]

    def alarms(self) -> list[Alarm]:
        """The alarms about what is measured."""
        return self._alarms.shown()


def _unavailable_since(account: Account, now: float) -> float | None:
    """Since when it is unavailable by its own account; None when it is not."""
    if account.health.state in UNAVAILABLE:
        since: float = account.health.snapshot()["since"]
        return since
    barred = account.unready()
    return now if barred is not None and barred.state in UNAVAILABLE else None


# --- the last 15 minutes -------------------------------------------------------------------

_SPANS: dict[str, Callable[[TurnMetrics], Histogram]] = {
    "added_first_token_ms": lambda turns: turns.added,
    "upstream_first_token_ms": lambda turns: turns.upstream,
}


class _Totals(NamedTuple):
    """The counts of turns at one time."""

    at: float
    turns: int
    failed: int
    tokens: int
    input: int
    cached: int


class Points:
    """Points of each series, the last ones."""

    def __init__(self) -> None:
        self._series: dict[str, deque[float | None]] = {}
        self._at: deque[float] = deque(maxlen=STEPS)

    def __len__(self) -> int:
        return len(self._at)

    def add(self, now: float, values: Mapping[str, float | None]) -> None:
        """Add a point.

        :param now: unix seconds.
        :param values: by series.
        """
        for name, value in values.items():
            line = self._series.get(name)
            if line is None:
                line = self._series[name] = deque([None] * len(self._at), maxlen=STEPS)
            line.append(value)
        self._at.append(now)

    def shown(self) -> dict[str, Any]:
        """All points, the oldest first."""
        return {
            "step_seconds": STEP_SECONDS,
            "start": self._at[0] if self._at else None,
            "series": {name: list(line) for name, line in self._series.items()},
        }

    def newest(self) -> dict[str, Any]:
        """The last point."""
        if not self._at:
            return {"at": None, "values": {}}
        return {
            "at": self._at[-1],
            "values": {name: line[-1] for name, line in self._series.items()},
        }


class History(Points):
    """Points of each series every five seconds, and the rates of the last minute."""

    def __init__(self, turns: TurnMetrics, now: float) -> None:
        super().__init__()
        self._turns = turns
        self._before: deque[_Totals] = deque([self._totals(now)], maxlen=MINUTE)
        self._of_step = {name: Recent(of(turns), 1) for name, of in _SPANS.items()}
        self._of_minute = {name: Recent(of(turns), MINUTE) for name, of in _SPANS.items()}
        self._last_step = self._counted(self._of_step, self._before[-1], self._before[-1])

    def step(self, now: float, gauges: Mapping[str, float]) -> None:
        """Add a point.

        :param now: unix seconds.
        :param gauges: the current values by series.
        """
        totals = self._totals(now)
        values: dict[str, float | None] = {**gauges, **_rates(self._before[-1], totals)}
        for name, recent in self._of_step.items():
            for which, value in recent.percentiles().items():
                values[f"{name}.{which}"] = value
        self.add(now, values)
        self._last_step = self._counted(self._of_step, self._before[-1], totals)
        self._before.append(totals)
        for recent in (*self._of_step.values(), *self._of_minute.values()):
            recent.mark()

    def rates(self, now: float) -> dict[str, Any]:
        """Those of the last minute, or since the start if that is less."""
        return {
            **_rates(self._before[0], self._totals(now)),
            **{name: recent.percentiles() for name, recent in self._of_minute.items()},
        }

    def counted(self, now: float) -> dict[str, dict[str, list[int]]]:
        """The counts of the last minute and of the last step."""
        minute = self._counted(self._of_minute, self._before[0], self._totals(now))
        return {"minute": minute, "step": self._last_step}

    def in_the_last_minute(self) -> tuple[int, int]:
        """Turns that ended, and those of them that failed."""
        before = self._before[0]
        self._turns.catch_up()
        return self._turns.turns - before.turns, self._turns.failed - before.failed

    def _counted(
        self, recent: Mapping[str, Recent], before: _Totals, after: _Totals
    ) -> dict[str, list[int]]:
        counted = {name: each.counts() for name, each in recent.items()}
        return {**counted, "input": [after.input - before.input, after.cached - before.cached]}

    def _totals(self, now: float) -> _Totals:
        turns = self._turns
        turns.catch_up()
        tokens = turns.tokens
        return _Totals(now, turns.turns, turns.failed, tokens.total, tokens.input, tokens.cached)


def _rates(before: _Totals, after: _Totals) -> dict[str, float | None]:
    seconds = max(after.at - before.at, STEP_SECONDS)

    def a_minute(count: int) -> float:
        return round(count * 60 / seconds, 2)

    return {
        "turns_per_minute": a_minute(after.turns - before.turns),
        "tokens_per_minute": a_minute(after.tokens - before.tokens),
        "errors_per_minute": a_minute(after.failed - before.failed),
        "cached_share": share(after.cached - before.cached, after.input - before.input),
    }
