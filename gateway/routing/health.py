"""The health of an account: its cooldowns, and which fault causes which.

An account has three circuit breakers of its own (service, quota, credentials) and one for each
model that it refused or limited.  A fault trips the one that it belongs to (design law 13).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gateway.circuit_breaker import BreakerAttempt, BreakerState, CircuitBreaker
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.protocol.rate_limits import QuotaWindow
from gateway.routing.cooldown import (
    ADMIN_TRANSITIONS,
    AccountState,
    AdminState,
    Cooldown,
    CooldownSnapshot,
    HealthLog,
    Unavailable,
)
from gateway.routing.quotas import AccountQuotas

__all__ = ["AccountHealth", "AccountState", "Attempts", "Unavailable"]

#: The attempt of one turn at each of the account's breakers.
Attempts = Sequence[tuple[Cooldown, BreakerAttempt]]

#: Bounds on what is remembered of one account.
MAX_MODELS = 200
_MAX_MODEL_NAME = 200

#: How long after its cooldown a model that no turn has probed is forgotten, in seconds.
_FORGET_SECONDS = 3_600.0

_SERVICE_FAILURES = 3

#: Unclear refusals in a row, of requests that other accounts serve, until the model cools down.
_UNCLEAR_REFUSALS = 3

#: First cooldowns, in seconds, where the upstream names no time; they double.
_SERVICE_SECONDS = 1.0
_EXHAUSTED_SECONDS = 60.0
_UNAUTHORIZED_SECONDS = 60.0
_RATE_LIMITED_SECONDS = 1.0
_MODEL_REFUSED_SECONDS = 60.0
_UNCLEAR_SECONDS = 5.0


#: The cooldowns that each kind of refusal ends, because it shows that this part works.
_SHOWS = {
    FaultKind.REQUEST: ("service",),
    FaultKind.EXHAUSTED: ("service", "credentials"),
    FaultKind.RATE_LIMITED: ("service",),
    FaultKind.MODEL_REFUSED: ("service", "credentials"),
    FaultKind.UNCLEAR: ("service",),
    FaultKind.UNAUTHORIZED: ("service",),
    FaultKind.SERVICE: (),
    FaultKind.PROXY: (),
}

#: The breaker of the account that each kind of fault trips.
_TRIPS = {
    FaultKind.EXHAUSTED: "quota",
    FaultKind.UNAUTHORIZED: "credentials",
    FaultKind.SERVICE: "service",
}

#: What the cooldowns of models are called among all cooldowns of an account: this and the model.
_OF_MODEL = "model:"
_OF_NO_MODEL = "no model"

_MODEL_SECONDS = {
    FaultKind.RATE_LIMITED: _RATE_LIMITED_SECONDS,
    FaultKind.MODEL_REFUSED: _MODEL_REFUSED_SECONDS,
}


class AccountHealth:
    """The health of one account.

    :param now: unix seconds; may jump.
    :param cooldown_max_seconds: bound on every cooldown.
    :param jitter: from 0 to 1.
    :param log: logs the begin and end of cooldowns.
    :ivar blocked_until: unavailable for every model before this unix time; infinite while the
        operator has disabled or drains it.
    :ivar quotas: the quotas that its answers reported.
    :ivar admin_state_changed: called after an action of the operator.
    :ivar cooldowns_changed: called after a cooldown began, changed, or ended, or its probe began.
    """

    def __init__(
        self,
        now: Callable[[], float],
        cooldown_max_seconds: float,
        jitter: Callable[[], float] = random.random,
        log: HealthLog | None = None,
    ) -> None:
        self._now = now
        self._log = log or HealthLog()
        #: Models whose cooldown was logged; None for the whole account.
        self._logged: set[str | None] = set()
        self._max_seconds = cooldown_max_seconds
        self._jitter = jitter
        self._admin_state = AdminState.SERVE
        self._admin_since = now()
        self.admin_state_changed: Callable[[], None] = lambda: None
        self.cooldowns_changed: Callable[[], None] = lambda: None
        self._cooldowns = {
            "credentials": self._cooldown(AccountState.UNAUTHORIZED, 1, _UNAUTHORIZED_SECONDS),
            "quota": self._cooldown(AccountState.EXHAUSTED, 1, _EXHAUSTED_SECONDS),
            "service": self._cooldown(AccountState.COOLING, _SERVICE_FAILURES, _SERVICE_SECONDS),
        }
        self._models: dict[str | None, Cooldown] = {}
        #: Available models that it refused without a clear reason since they last worked.
        self._doubted: dict[str | None, Cooldown] = {}
        self.quotas = AccountQuotas(now, cooldown_max_seconds)
        #: Whether nothing blocks the account itself; a quick check for the usual case.
        self._healthy = True
        self._last_answer: tuple[float, float, Unavailable] | None = None
        self.blocked_until = 0.0

    def unavailable(self, model: str | None) -> Unavailable | None:
        """Why no turn with ``model`` may be sent there now; None if one may."""
        if self._healthy and model not in self._models:
            return None
        found = self.blocked()
        of_model = self._models.get(model)
        if of_model is not None and self._admin_state is AdminState.SERVE:
            reasons = (found, of_model.unavailable(self._now()))
            found = max(filter(None, reasons), key=_until, default=None)
        return found

    def in_doubt(self, model: str | None) -> bool:
        """Whether it has refused ``model``, or all models, and not answered well since."""
        if self._cooldowns["service"].breaker.failures or model in self._doubted:
            return True
        if self._healthy and model not in self._models:
            return False
        cooldowns = (*self._cooldowns.values(), self._models.get(model))
        return any(each is not None and not each.breaker.closed for each in cooldowns)

    @property
    def awaits_reset(self) -> bool:
        """Whether it refused a turn for a quota whose named reset is in the future."""
        return not self._healthy and self._cooldowns["quota"].awaits_reset(self._now())

    @property
    def spent(self) -> bool:
        """Whether its quota is used up, as it reported."""
        return self.quotas.spent or self.awaits_reset

    # --- turns -----------------------------------------------------------------------

    def begin(self, model: str | None) -> Attempts:
        """A turn is sent there now; the first one after a cooldown is the probe.

        :return: to be passed to exactly one of ``acknowledged``, ``refused`` and ``dropped``;
            ``refused`` may also follow ``acknowledged``, if the answer broke off.
        """
        attempts = []
        if self._healthy and model not in self._models:  # the usual case: there is nothing to probe
            for each in self._cooldowns.values():
                attempts.append((each, BreakerAttempt(each.breaker.trips)))
            return attempts
        for each in self._cooldowns.values():
            attempts.append((each, each.breaker.attempt()))
        of_model = self._models.get(model)
        if of_model is not None:
            attempts.append((of_model, of_model.breaker.attempt()))
        self.cooldowns_changed()
        return attempts

    def acknowledged(self, model: str | None, attempts: Attempts) -> None:
        """The account accepted the turn; ``ended_well`` or ``refused`` follows."""
        if self._doubted:
            self._doubted.pop(model, None)
        for cooldown, attempt in attempts:
            cooldown.breaker.began(attempt)
        if self._models or not self._healthy:
            self._changed()

    def refused(self, model: str | None, fault: Fault, attempts: Attempts = ()) -> None:
        """The account refused a turn, or broke off its answer.

        :param attempts: from :meth:`begin`; empty if the turn began before this object existed.
        """
        if fault.kind is FaultKind.EXHAUSTED and fault.retry_at is None:
            fault = fault._replace(retry_at=self.quotas.used_up_until())
        shown = [self._cooldowns[name] for name in _SHOWS[fault.kind]]
        tripped = self._tripped(model, fault, attempts)
        began = None
        for cooldown, attempt in attempts:
            if cooldown is tripped:
                began = attempt
            elif cooldown in shown:
                cooldown.breaker.succeeded(attempt)
            else:
                cooldown.breaker.dropped(attempt)
        if tripped is not None and tripped.failed(began, fault, _MODEL_SECONDS.get(fault.kind)):
            self._announce(tripped, model)
        self._changed()

    def dropped(self, attempts: Attempts) -> None:
        """The attempt ended without a result, for example because the client disconnected."""
        for cooldown, attempt in attempts:
            cooldown.breaker.dropped(attempt)
        if self._models or not self._healthy:
            self.cooldowns_changed()

    def ended_well(self) -> None:
        """A turn that the account had accepted ended well.

        Only this resets the failures in a row, because an account that breaks off every answer
        accepts each turn.
        """
        self._cooldowns["service"].breaker.ended_well()

    def contradicted(self, model: str | None, fault: Fault) -> None:
        """Another account served the request that this one refused with an unclear fault.

        So the request was valid.  After several different ones the model cools down here for a
        short time.
        """
        if not _is_remembered(model):
            return
        cooldown = self._models.get(model) or self._doubted.pop(model, None)
        if cooldown is None:
            cooldown = self._cooldown(AccountState.COOLING, _UNCLEAR_REFUSALS, _UNCLEAR_SECONDS)
        trips = cooldown.failed(None, fault, _UNCLEAR_SECONDS)
        if cooldown.breaker.closed:
            if len(self._doubted) >= MAX_MODELS:
                del self._doubted[next(iter(self._doubted))]
            self._doubted[model] = cooldown
        elif trips:
            self._remember(model, cooldown)
            self._announce(cooldown, model)
            self._changed()

    def observe(self, windows: Iterable[QuotaWindow]) -> None:
        """Remember what an answer reported of the account's quotas."""
        self.quotas.observe(windows)

    # --- the operator and the configuration ------------------------------------------

    def disable(self) -> None:
        """Take the account out of service, until :meth:`enable`."""
        self._act("disable")

    def enable(self) -> None:
        """Put a disabled account back into service."""
        self._act("enable")

    def drain(self) -> None:
        """Send no new turns there, until :meth:`resume`."""
        self._act("drain")

    def resume(self) -> None:
        """End a drain."""
        self._act("resume")

    @property
    def admin_state(self) -> AdminState:
        """What the operator has set."""
        return self._admin_state

    def restore_admin_state(self, state: AdminState) -> None:
        """Take the state that the operator set before a restart, or in another process."""
        if state is not self._admin_state:
            self._admin_state = state
            self._admin_since = self._now()
            self._changed()

    def cooldowns(self) -> dict[str, CooldownSnapshot]:
        """What other processes must know: all cooldowns by their names.

        The cooldown of a model that is over may be left out.
        """
        found = {name: each.snapshot() for name, each in self._cooldowns.items()}
        for model, each in self._models.items():
            found[_OF_NO_MODEL if model is None else _OF_MODEL + model] = each.snapshot()
        return found

    def restore_cooldowns(self, told: Mapping[str, CooldownSnapshot]) -> None:
        """Take over what another process knows of some cooldowns.

        They are no failures here: nothing is announced, and nothing is counted.
        """
        for name, each in told.items():
            cooldown = self._cooldowns.get(name)
            if cooldown is None:
                cooldown = self._cooldown_of_model(name, each)
            if cooldown is not None:
                cooldown.restore(each)
        self._settle()

    def _cooldown_of_model(self, name: str, told: CooldownSnapshot) -> Cooldown | None:
        if name != _OF_NO_MODEL and not name.startswith(_OF_MODEL):
            return None
        model = None if name == _OF_NO_MODEL else name[len(_OF_MODEL) :]
        found = self._models.get(model)
        closed = told.breaker.state is BreakerState.CLOSED
        if found is not None or closed or not _is_remembered(model):
            return found
        made = self._cooldown(AccountState.COOLING, 1, _RATE_LIMITED_SECONDS)
        self._doubted.pop(model, None)
        self._remember(model, made)
        return made

    def clear(self) -> None:
        """Clear all cooldowns (operator action)."""
        for cooldown in (*self._cooldowns.values(), *self._models.values()):
            cooldown.breaker.close()
        self._models.clear()
        self._doubted.clear()
        self.quotas.reset()
        self._changed()

    def cap_cooldowns(self, cooldown_max_seconds: float) -> None:
        """Set another bound on every cooldown, also on those that have begun."""
        self._max_seconds = cooldown_max_seconds
        doubted = self._doubted.values()
        for cooldown in (*self._cooldowns.values(), *self._models.values(), *doubted):
            cooldown.breaker.max_seconds = cooldown_max_seconds
        self.quotas.believed_seconds = cooldown_max_seconds
        self._changed()

    def shorten_service_cooldown(self, seconds: float) -> bool:
        """Shorten the cooldown of the service, unless the upstream named its end.

        :return: whether it was longer.
        """
        shortened = self._cooldowns["service"].breaker.shorten(seconds)
        if shortened:
            self._changed()
        return shortened

    # --- what the admin side shows ---------------------------------------------------

    @property
    def state(self) -> AccountState:
        """The state of the account, whatever the model."""
        if self._admin_state is AdminState.DISABLE:
            return AccountState.DISABLED
        if self._admin_state is AdminState.DRAIN:
            return AccountState.DRAINING
        worst = self._worst()
        return AccountState.READY if worst is None else worst.account_state(self._now())

    def snapshot(self) -> dict[str, Any]:
        """For the admin side, ready for JSON."""
        worst = self._worst()
        first = {} if worst is None else worst.shown()
        breaker = self._cooldowns["service"].breaker
        by_operator = self._admin_state is not AdminState.SERVE
        closed_since = (each.breaker.since for each in self._cooldowns.values())
        ready_since = max(self._admin_since, *closed_since)
        return {
            "state": self.state.value,
            "why": "the operator" if by_operator else first.get("why"),
            "since": self._admin_since if by_operator else first.get("since", ready_since),
            "until": None if by_operator else first.get("until"),
            "resets_at": first.get("resets_at"),
            "resting": {
                name: each.shown()
                for name, each in self._cooldowns.items()
                if not each.breaker.closed
            },
            "models": [{"model": model, **each.shown()} for model, each in self._models.items()],
            "windows": self.quotas.shown(),
            "breaker": {"state": breaker.state.value, "failures": breaker.failures},
        }

    def unready(self) -> Unavailable | None:
        """Why the account is not ready, whatever the model; None if it is.

        After a cooldown it is not ready until a probe succeeds.
        """
        worst = self._worst()
        if self._admin_state is not AdminState.SERVE or worst is None:
            return self.blocked()
        return worst.unready(self._now())

    def blocked(self) -> Unavailable | None:
        """Why no turn may be sent there now, whatever its model; None if one may.

        The result is cached during a cooldown, because a scan of many accounts asks often.
        """
        if self._admin_state is not AdminState.SERVE:
            disabled = self._admin_state is AdminState.DISABLE
            state = AccountState.DISABLED if disabled else AccountState.DRAINING
            return Unavailable(state, f"the operator: {state.value}", None)
        now = self._now()
        if self._last_answer is not None:
            since, until, answer = self._last_answer
            if since <= now < until:
                return answer
        reasons = [each.unavailable(now) for each in self._cooldowns.values()]
        found = max(filter(None, reasons), key=_until, default=None)
        self._update_blocked_until()
        self._last_answer = None
        if found is not None and self.blocked_until > now:
            self._last_answer = (now, self.blocked_until, found)
        return found

    # --- inside ----------------------------------------------------------------------

    def _worst(self) -> Cooldown | None:
        """The cooldown to show: one that is open before one that waits for a probe."""
        held = [each for each in self._cooldowns.values() if not each.breaker.closed]
        now = self._now()
        cooling = (each for each in held if each.account_state(now) is not AccountState.UNPROVEN)
        return next(cooling, held[0] if held else None)

    def _announce(self, cooldown: Cooldown, model: str | None) -> None:
        what = None if cooldown in self._cooldowns.values() else _named(model)
        self._log.cooldown_began(cooldown, what, again=what in self._logged)
        self._logged.add(what)

    def _tripped(self, model: str | None, fault: Fault, attempts: Attempts) -> Cooldown | None:
        """The cooldown that a fault trips, or None."""
        if fault.kind in _TRIPS:
            return self._cooldowns[_TRIPS[fault.kind]]
        if fault.kind not in _MODEL_SECONDS or not _is_remembered(model):
            return None
        cooldown = self._models.get(model)
        if cooldown is None:
            known = (each for each, _ in attempts if each not in self._cooldowns.values())
            cooldown = next(known, None) or self._cooldown(
                AccountState.COOLING, 1, _RATE_LIMITED_SECONDS
            )
            self._remember(model, cooldown)
        return cooldown

    def _remember(self, model: str | None, cooldown: Cooldown) -> None:
        """Keep the cooldown of a model; at the bound the one that ends first is dropped."""
        if model not in self._models and len(self._models) >= MAX_MODELS:
            soonest = min(self._models, key=lambda each: self._models[each].breaker.until)
            del self._models[soonest]
        self._models[model] = cooldown

    def _cooldown(self, state: AccountState, threshold: int, first_seconds: float) -> Cooldown:
        return Cooldown(
            state,
            CircuitBreaker(self._now, threshold, first_seconds, self._max_seconds, self._jitter),
        )

    def _act(self, action: str) -> None:
        state = ADMIN_TRANSITIONS[action].get(self._admin_state, self._admin_state)
        if state is not self._admin_state:
            self.restore_admin_state(state)
            self.admin_state_changed()

    def _changed(self) -> None:
        """Update what is cached, and tell others."""
        self._settle()
        self.cooldowns_changed()

    def _settle(self) -> None:
        """Update the cached state, and forget models that were not requested for long."""
        if self._models:
            long_ago = self._now() - _FORGET_SECONDS
            self._models = {
                model: each
                for model, each in self._models.items()
                if not (each.breaker.closed or (each.probe_due and each.breaker.until < long_ago))
            }
        cooling = any(not each.breaker.closed for each in self._cooldowns.values())
        if self._logged:
            still: set[str | None] = {_named(model) for model in self._models}
            if cooling:
                still.add(None)
            for what in self._logged - still:
                self._log.serves_again(what)
            self._logged &= still
        self._healthy = self._admin_state is AdminState.SERVE and not cooling
        self._last_answer = None
        self._update_blocked_until()

    def _update_blocked_until(self) -> None:
        """Compute :attr:`blocked_until` anew; the clock may have jumped."""
        if self._admin_state is AdminState.SERVE:
            breakers = [each.breaker for each in self._cooldowns.values()]
            untils = [each.until for each in breakers if each.state is BreakerState.OPEN]
            self.blocked_until = max(untils, default=0.0)
        else:
            self.blocked_until = math.inf


def _is_remembered(model: str | None) -> bool:
    """Whether cooldowns of this model are kept; clients choose the names, so length is bounded."""
    return model is None or len(model) <= _MAX_MODEL_NAME


def _named(model: str | None) -> str:
    return model or "no model"


def _until(reason: Unavailable) -> float:
    return reason.until or 0.0
