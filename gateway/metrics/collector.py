"""All measurements of the gateway, taken every few seconds while it runs.

What the admin side reads of it is kept until the next step: an open page asks each second.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from gateway.api_keys.keys import KeyRing
from gateway.metrics.alarms import Alarms, Signs, findings
from gateway.metrics.garbage import GarbagePauses
from gateway.metrics.history import MINUTE, STEP_SECONDS, History
from gateway.metrics.loop_lag import LoopLag
from gateway.metrics.process import look, memory_budget
from gateway.metrics.registers import BoundedStructures
from gateway.metrics.turns import TurnMetrics
from gateway.routing.account import Account
from gateway.routing.health import AccountState
from gateway.routing.model_catalog import ModelCatalog
from gateway.routing.wait_queue import WaitReason
from gateway.server.connections import ConnectionLimiter
from gateway.server.websocket_site import ResponsesFactory
from gateway.turn.context import TurnServices

#: Steps between two marks of the accounts' figures: those tell of 10 to 15 minutes.
_ACCOUNT_STEPS = 300 // STEP_SECONDS

#: What clients are told at a limit of their key, where it is not that they ask too often.
_LIMITS = {
    "model": "model_not_found",
    "requests_per_day": "usage_limit_reached",
    "tokens_per_day": "usage_limit_reached",
}

#: States in which nobody wants an account to be.
_RESTS = frozenset(
    (
        AccountState.COOLING,
        AccountState.EXHAUSTED,
        AccountState.UNAUTHORIZED,
        AccountState.UNPROVEN,
    )
)

_log = Logger(namespace="gateway.metrics")


class _Errors(NamedTuple):
    """How many turns failed by each error so far, and those of them that met a key's limit."""

    all: Counter[str]
    refused: Counter[str]


class MetricsCollector(Service):
    """What the admin side calls :class:`~gateway.admin.views.figures.Figures`.

    :param catalogues: which models upstreams offer.
    :ivar tally: what is counted of turns.
    :ivar started_at: unix seconds.
    """

    def __init__(
        self,
        reactor: Any,
        services: TurnServices,
        tenants: KeyRing,
        limiter: ConnectionLimiter,
        door: ResponsesFactory,
        catalogues: ModelCatalog,
    ) -> None:
        self._reactor = reactor
        self._services = services
        self._tenants = tenants
        self._limiter = limiter
        self._door = door
        self.started_at = reactor.seconds()
        self.tally = TurnMetrics()
        self.history_of_all = History(self.tally, self.started_at)
        self.loop_lag = LoopLag(reactor, MINUTE)
        self.garbage = GarbagePauses()
        self.memory_registers = BoundedStructures(
            services, tenants, limiter, door, catalogues, self.tally, self.history_of_all
        )
        self.memory_budget = memory_budget()
        self.looked = look()
        self._alarms = Alarms()
        self._evicted: deque[int] = deque([0], maxlen=MINUTE)
        self._errors: deque[_Errors] = deque([_Errors(Counter(), Counter())], maxlen=MINUTE)
        self._steps = 0
        self._accounts: dict[str, Mapping[str, Any]] = {}
        self._unwell: dict[str, float] = {}
        self._step: IDelayedCall | None = None
        services.turn_log.watchers.append(self.tally.count)

    # --- the service -------------------------------------------------------------------

    def startService(self) -> None:
        """Begin to measure."""
        super().startService()
        self.loop_lag.start()
        self.garbage.start()
        self._ask()

    def stopService(self) -> None:
        """Measure no more."""
        super().stopService()
        self.loop_lag.stop()
        self.garbage.stop()
        step, self._step = self._step, None
        if step is not None:
            step.cancel()

    def _ask(self) -> None:
        self._step = self._reactor.callLater(STEP_SECONDS, self._take_step)

    def _take_step(self) -> None:
        self._ask()
        try:
            self.step()
        except Exception:
            _log.failure("a step of the measurements failed")

    def step(self) -> None:
        """Measure once."""
        now = self._reactor.seconds()
        self._steps += 1
        self.looked = look()
        used, limit = self.looked.open_files, self.looked.open_files_limit
        if used is not None and limit is not None and used >= limit:
            self._limiter.files.ran_short(limit)
        self._alarms.update(findings(self._signs()), now)
        self.history_of_all.step(now, self.gauges())
        self.loop_lag.recent.mark()
        if self._steps % _ACCOUNT_STEPS == 0:
            self.tally.mark()
        self._accounts.clear()
        self._look_after_accounts(now)

    def _look_after_accounts(self, now: float) -> None:
        """An account that rests is tried again and again; since when is lost with each try."""
        before, self._unwell = self._unwell, {}
        for account in self._services.pool.accounts:
            since = _rests_since(account, now)
            if since is not None:
                self._unwell[account.name] = min(since, before.get(account.name, since))

    def gauges(self) -> dict[str, float]:
        """What there is of each at this moment."""
        sessions = self._door.sessions()
        guests, websockets = len(self._limiter), len(self._door.connections)
        over_websockets = sum(session.turns_running for session in sessions)
        waiting = self._services.waiting
        return {
            "connections": guests,
            "websockets": websockets,
            "lanes": sum(session.lanes for session in sessions),
            # Guests that are no WebSocket are HTTP requests, or work that one left behind.
            "turns_in_flight": over_websockets + max(0, guests - websockets),
            "turns_queued": sum(session.turns_queued for session in sessions),
            "turns_waiting": waiting.waiting_for(WaitReason.ACCOUNT),
            "turns_limited": waiting.waiting_for(WaitReason.LIMIT),
        }

    def _signs(self) -> Signs:
        ledger = self._services.ledger.figures()
        evicted = ledger.evicted_conversations - self._evicted[0]
        self._evicted.append(ledger.evicted_conversations)
        turns, failed = self.history_of_all.in_the_last_minute()
        before, errors = self._errors[0], self._errors_so_far()
        self._errors.append(errors)
        refused = errors.refused - before.refused
        others = errors.all - before.all - refused
        turned_away = refused.total()
        return Signs(
            self.loop_lag.recent.percentiles()["p99"],
            self.looked.rss_bytes,
            self.memory_budget,
            self.looked.open_files,
            self.looked.open_files_limit,
            evicted,
            ledger.longest_unused,
            max(0, turns - turned_away),
            max(0, failed - turned_away),
            max(others, key=lambda error: others[error], default=None),
            self._limiter.files.are_short,
        )

    def _errors_so_far(self) -> _Errors:
        return _Errors(self.tally.errors.copy(), self._refused_so_far())

    def _refused_so_far(self) -> Counter[str]:
        refused: Counter[str] = Counter()
        for key in self._tenants.snapshot():
            for limit, count in key["refusals"].items():
                refused[_LIMITS.get(limit, "rate_limit_exceeded")] += count
        return refused

    # --- what the admin side reads -------------------------------------------------------

    def process(self) -> Mapping[str, Any]:
        """See ``Figures``."""
        looked = self.looked
        return {
            "memory": {"rss_bytes": looked.rss_bytes, "budget_bytes": self.memory_budget},
            "open_files": {"used": looked.open_files, "limit": looked.open_files_limit},
            "loop_lag_ms": self.loop_lag.recent.percentiles(),
        }

    def rates(self) -> Mapping[str, Any]:
        """See ``Figures``."""
        refused = (self._refused_so_far() - self._errors[0].refused).total()
        minutes = len(self._errors) * STEP_SECONDS / 60
        return {
            **self.history_of_all.rates(self._reactor.seconds()),
            "refused_per_minute": round(refused / minutes, 2),
        }

    def history(self) -> Mapping[str, Any]:
        """See ``Figures``."""
        return self.history_of_all.shown()

    def newest(self) -> Mapping[str, Any]:
        """See ``Figures``."""
        return self.history_of_all.newest()

    def account(self, name: str) -> Mapping[str, Any]:
        """See ``Figures``."""
        found = self._accounts.get(name)
        if found is None:
            found = self._accounts[name] = self.tally.account(name)
        return found

    def unwell_since(self, name: str) -> float | None:
        """See ``Figures``."""
        return self._unwell.get(name)

    def registers(self) -> Sequence[Mapping[str, Any]]:
        """See ``Figures``."""
        return self.memory_registers.shown()

    def alarms(self) -> Sequence[Mapping[str, Any]]:
        """See ``Figures``."""
        return self._alarms.shown()


def _rests_since(account: Account, now: float) -> float | None:
    """Since when it rests, by its own last word; None when it does not, or somebody wants it so."""
    if account.health.state in _RESTS:
        since: float = account.health.snapshot()["since"]
        return since
    barred = account.unready()
    return now if barred is not None and barred.state in _RESTS else None
