"""Whether an account can serve now: what rests because of which fault, and until when.

An account has three breakers of its own (service, quota, credentials) and one for each model
that it refused or limited.  A fault trips the one that it belongs to (design law 13).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

from gateway.circuit_breaker import BreakerAttempt, BreakerState, CircuitBreaker
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.protocol.rate_limits import QuotaWindow
from gateway.routing.announcing import HealthObserver, Silence
from gateway.routing.cooldown import AccountState, Cooldown, Unavailable
from gateway.routing.quotas import AccountQuotas
from gateway.routing.wish import WISHES, AdminState

__all__ = ["AccountHealth", "AccountState", "Permit", "Unavailable"]

#: Bounds on what is remembered of one account.
MAX_MODELS = 200
_MAX_MODEL_NAME = 200

#: How long after its rest a model is forgotten that no turn has probed, in seconds.
_FORGET_SECONDS = 3_600.0

_SERVICE_FAILURES = 3

#: Unclear refusals of requests that others serve, in a row, until the model rests.
_UNCLEAR_REFUSALS = 3

#: First rests, in seconds, where the upstream names no time; they double (see breaker.py).
_SERVICE_SECONDS = 1.0
_EXHAUSTED_SECONDS = 60.0
_UNAUTHORIZED_SECONDS = 60.0
_RATE_LIMITED_SECONDS = 1.0
_MODEL_REFUSED_SECONDS = 60.0
_UNCLEAR_SECONDS = 5.0


#: What an answer of each kind shows to work, whatever else it refuses.
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

#: Which of the account's breakers a fault belongs to.
_TRIPS = {
    FaultKind.EXHAUSTED: "quota",
    FaultKind.UNAUTHORIZED: "credentials",
    FaultKind.SERVICE: "service",
}

_MODEL_SECONDS = {
    FaultKind.RATE_LIMITED: _RATE_LIMITED_SECONDS,
    FaultKind.MODEL_REFUSED: _MODEL_REFUSED_SECONDS,
}


class Permit:
    """A turn on its way to an account: ends by exactly one call, later ones are ignored.

    :ivar attempts: what it is to each of the account's breakers.
    """

    __slots__ = ("_health", "_model", "attempts")

    def __init__(
        self,
        health: AccountHealth,
        model: str | None,
        attempts: list[tuple[Cooldown, BreakerAttempt]],
    ) -> None:
        self._health: AccountHealth | None = health
        self._model = model
        self.attempts = attempts

    def acknowledged(self) -> None:
        """The account took the turn up; :meth:`AccountHealth.ended_well` or ``broke`` follows."""
        health, self._health = self._health, None
        if health is not None:
            health._acknowledged(self._model, self.attempts)

    def refused(self, fault: Fault) -> None:
        """It refused the turn, or broke it."""
        health, self._health = self._health, None
        if health is not None:
            health._refused(self._model, self.attempts, fault)

    def dropped(self) -> None:
        """Nothing was learned of the account: the client left, or the turn went elsewhere."""
        health, self._health = self._health, None
        if health is not None:
            for rest, attempt in self.attempts:
                rest.breaker.dropped(attempt)


class AccountHealth:
    """One account's.

    :param now: unix seconds; may jump.
    :param cooldown_max_seconds: bound on every rest.
    :param jitter: from 0 to 1.
    :param observer: hears of what begins and ends to rest.
    :ivar blocked_until: surely unavailable for every model before this unix time; infinite
        while the operator wants it so.
    :ivar quotas: what its answers told of them.
    """

    def __init__(
        self,
        now: Callable[[], float],
        cooldown_max_seconds: float,
        jitter: Callable[[], float] = random.random,
        observer: HealthObserver | None = None,
    ) -> None:
        self._now = now
        self._observer = observer or Silence()
        #: The models that the witness knows to rest; None for all of the account.
        self._announced: set[str | None] = set()
        self._max_seconds = cooldown_max_seconds
        self._jitter = jitter
        self._wish = AdminState.SERVE
        self._wished_at = now()
        self._rests = {
            "credentials": self._rest(AccountState.UNAUTHORIZED, 1, _UNAUTHORIZED_SECONDS),
            "quota": self._rest(AccountState.EXHAUSTED, 1, _EXHAUSTED_SECONDS),
            "service": self._rest(AccountState.COOLING, _SERVICE_FAILURES, _SERVICE_SECONDS),
        }
        self._models: dict[str | None, Cooldown] = {}
        #: Models that serve, and that it refused without a clear word since they last did.
        self._doubted: dict[str | None, Cooldown] = {}
        self.quotas = AccountQuotas(now, cooldown_max_seconds)
        self._calm = True
        self._told: tuple[float, float, Unavailable] | None = None
        self.blocked_until = 0.0

    def unavailable(self, model: str | None) -> Unavailable | None:
        """Why no turn of ``model`` may go there now; None when one may."""
        if self._calm and model not in self._models:
            return None
        return self._look(model)

    def in_doubt(self, model: str | None) -> bool:
        """Whether the last that was heard of it, for ``model``, was no good answer."""
        if self._rests["service"].breaker.failures or model in self._doubted:
            return True
        if self._calm and model not in self._models:
            return False
        rests = (*self._rests.values(), self._models.get(model))
        return any(rest is not None and not rest.breaker.closed for rest in rests)

    @property
    def awaits_reset(self) -> bool:
        """Whether it refused a turn for a quota that, by its own word, has not reset yet."""
        return not self._calm and self._rests["quota"].awaits_reset(self._now())

    @property
    def spent(self) -> bool:
        """Whether it would likely refuse a turn for its quota, by its own word."""
        return self.quotas.spent or self.awaits_reset

    def reserve(self, model: str | None) -> Permit:
        """A turn goes there now; the first one after a rest is the probe."""
        rests = [*self._rests.values()]
        cooled = self._models.get(model)
        if cooled is not None:
            rests.append(cooled)
        return Permit(self, model, [(rest, rest.breaker.attempt()) for rest in rests])

    def ended_well(self) -> None:
        """A turn ended that the account had taken up, and nothing went wrong.

        Only this ends a row of failures: who breaks off every answer begins each one well.
        """
        self._rests["service"].breaker.ended_well()

    def broke(self, model: str | None, fault: Fault, permit: Permit | None = None) -> None:
        """A turn failed that the account had taken up.

        :param permit: of that turn, which has ended by then; None when nobody has it.
        """
        self._refused(model, [] if permit is None else permit.attempts, fault)

    def outdone(self, model: str | None, fault: Fault) -> None:
        """Another account served the request that this one refused with ``fault``.

        Such a refusal says not of whom it speaks.  Of the request it was not, then; after
        several different ones the model rests here for a short time.
        """
        if not _is_remembered(model):
            return
        rest = self._models.get(model) or self._doubted.pop(model, None)
        if rest is None:
            rest = self._rest(AccountState.COOLING, _UNCLEAR_REFUSALS, _UNCLEAR_SECONDS)
        trips = rest.failed(None, fault, _UNCLEAR_SECONDS)
        if rest.breaker.closed:
            if len(self._doubted) >= MAX_MODELS:
                del self._doubted[next(iter(self._doubted))]
            self._doubted[model] = rest
        elif trips:
            self._hold(model, rest)
            self._announce(rest, model)
            self._changed()

    def hurry(self, seconds: float) -> bool:
        """Let the service rest no longer than this, unless it named a time itself.

        :return: whether it would have.
        """
        hurried = self._rests["service"].breaker.hurry(seconds)
        if hurried:
            self._changed()
        return hurried

    def disable(self) -> None:
        """The operator takes the account out, until :meth:`enable`."""
        self._wished("disable")

    def enable(self) -> None:
        """The operator puts a disabled account back."""
        self._wished("enable")

    def drain(self) -> None:
        """The operator wants no new turns there, until :meth:`resume`."""
        self._wished("drain")

    def resume(self) -> None:
        """The operator ends a drain."""
        self._wished("resume")

    def cap_rests(self, cooldown_max_seconds: float) -> None:
        """Another bound on every rest, also on those that have begun."""
        self._max_seconds = cooldown_max_seconds
        for rest in (*self._rests.values(), *self._models.values(), *self._doubted.values()):
            rest.breaker.max_seconds = cooldown_max_seconds
        self.quotas.believed_seconds = cooldown_max_seconds
        self._changed()

    def clear(self) -> None:
        """The operator says that nothing is wrong with the account any more."""
        for rest in (*self._rests.values(), *self._models.values()):
            rest.breaker.close()
        self._models.clear()
        self._doubted.clear()
        self.quotas.doubt()
        self._changed()

    def observe(self, windows: Iterable[QuotaWindow]) -> None:
        """Remember what an answer told of the account's quotas."""
        self.quotas.observe(windows)

    @property
    def state(self) -> AccountState:
        """The account's, whatever the model."""
        if self._wish is AdminState.DISABLE:
            return AccountState.DISABLED
        if self._wish is AdminState.DRAIN:
            return AccountState.DRAINING
        worst = self._worst()
        return AccountState.READY if worst is None else worst.standing(self._now())

    def snapshot(self) -> dict[str, Any]:
        """For the admin side, ready for JSON."""
        worst = self._worst()
        first = {} if worst is None else worst.shown()
        breaker = self._rests["service"].breaker
        wished = self._wish is not AdminState.SERVE
        return {
            "state": self.state.value,
            "why": "the operator" if wished else first.get("why"),
            "since": self._wished_at if wished else first.get("since", self._ready_since()),
            "until": None if wished else first.get("until"),
            "resets_at": first.get("resets_at"),
            "resting": {
                name: rest.shown() for name, rest in self._rests.items() if not rest.breaker.closed
            },
            "models": [{"model": model, **rest.shown()} for model, rest in self._models.items()],
            "windows": self.quotas.shown(),
            "breaker": {"state": breaker.state.value, "failures": breaker.failures},
        }

    def unready(self) -> Unavailable | None:
        """Why nobody should count on it, whatever the model; None when it is ready.

        A turn may be due to try it all the same: that it rests no more shows nothing yet.
        """
        worst = self._worst()
        if self._wish is not AdminState.SERVE or worst is None:
            return self.blocked()
        return worst.unready(self._now())

    def blocked(self) -> Unavailable | None:
        """Why no turn may go there now, whatever its model; None when one may."""
        if self._wish is not AdminState.SERVE:
            disabled = self._wish is AdminState.DISABLE
            state = AccountState.DISABLED if disabled else AccountState.DRAINING
            return Unavailable(state, f"the operator: {state.value}", None)
        return self._look_at_account(self._now())

    def _look(self, model: str | None) -> Unavailable | None:
        found = self.blocked()
        of_model = self._models.get(model)
        if of_model is not None and self._wish is AdminState.SERVE:
            reasons = (found, of_model.unavailable(self._now()))
            found = max(filter(None, reasons), key=_until, default=None)
        return found

    def _look_at_account(self, now: float) -> Unavailable | None:
        """While it rests the answer stays the same: a scan of many accounts asks often."""
        if self._told is not None:
            since, until, told = self._told
            if since <= now < until:
                return told
        reasons = [rest.unavailable(now) for rest in self._rests.values()]
        found = max(filter(None, reasons), key=_until, default=None)
        self._block()
        self._told = None
        if found is not None and self.blocked_until > now:
            self._told = (now, self.blocked_until, found)
        return found

    def _worst(self) -> Cooldown | None:
        """What is held against it: what rests, before what only waits to be shown to work."""
        held = [rest for rest in self._rests.values() if not rest.breaker.closed]
        now = self._now()
        resting = (each for each in held if each.standing(now) is not AccountState.UNPROVEN)
        return next(resting, held[0] if held else None)

    def _acknowledged(
        self, model: str | None, attempts: list[tuple[Cooldown, BreakerAttempt]]
    ) -> None:
        if self._doubted:
            self._doubted.pop(model, None)
        for rest, attempt in attempts:
            rest.breaker.began(attempt)
        if self._models or not self._calm:
            self._changed()

    def _refused(
        self, model: str | None, attempts: list[tuple[Cooldown, BreakerAttempt]], fault: Fault
    ) -> None:
        if fault.kind is FaultKind.EXHAUSTED and fault.retry_at is None:
            fault = fault._replace(retry_at=self.quotas.used_up_until())
        shown = [self._rests[name] for name in _SHOWS[fault.kind]]
        tripped = self._tripped(model, fault, attempts)
        began = None
        for rest, attempt in attempts:
            if rest is tripped:
                began = attempt
            elif rest in shown:
                rest.breaker.succeeded(attempt)
            else:
                rest.breaker.dropped(attempt)
        if tripped is not None and tripped.failed(began, fault, _MODEL_SECONDS.get(fault.kind)):
            self._announce(tripped, model)
        self._changed()

    def _announce(self, rest: Cooldown, model: str | None) -> None:
        what = None if rest in self._rests.values() else _named(model)
        self._observer.rests(rest, what, again=what in self._announced)
        self._announced.add(what)

    def _tripped(
        self, model: str | None, fault: Fault, attempts: list[tuple[Cooldown, BreakerAttempt]]
    ) -> Cooldown | None:
        """What a fault belongs to."""
        if fault.kind in _TRIPS:
            return self._rests[_TRIPS[fault.kind]]
        if fault.kind not in _MODEL_SECONDS or not _is_remembered(model):
            return None
        rest = self._models.get(model)
        if rest is None:
            known = (each for each, _ in attempts if each not in self._rests.values())
            rest = next(known, None) or self._rest(AccountState.COOLING, 1, _RATE_LIMITED_SECONDS)
            self._hold(model, rest)
        return rest

    def _hold(self, model: str | None, rest: Cooldown) -> None:
        """Remember what is against a model; where that is too much, another's ends first."""
        if model not in self._models and len(self._models) >= MAX_MODELS:
            soonest = min(self._models, key=lambda each: self._models[each].breaker.until)
            del self._models[soonest]
        self._models[model] = rest

    def _rest(self, state: AccountState, threshold: int, first_seconds: float) -> Cooldown:
        return Cooldown(
            state,
            CircuitBreaker(self._now, threshold, first_seconds, self._max_seconds, self._jitter),
        )

    def _wished(self, action: str) -> None:
        wish = WISHES[action].get(self._wish, self._wish)
        if wish is not self._wish:
            self._wish = wish
            self._wished_at = self._now()
            self._changed()

    def _ready_since(self) -> float:
        return max(self._wished_at, *(rest.breaker.since for rest in self._rests.values()))

    def _changed(self) -> None:
        """Keep what is asked often ready, and forget what nobody asked for in a long time."""
        if self._models:
            long_ago = self._now() - _FORGET_SECONDS
            self._models = {
                model: rest
                for model, rest in self._models.items()
                if not (rest.breaker.closed or (rest.due and rest.breaker.until < long_ago))
            }
        if self._announced:
            self._say_what_is_over()
        resting = any(not rest.breaker.closed for rest in self._rests.values())
        self._calm = self._wish is AdminState.SERVE and not resting
        self._told = None
        self._block()

    def _say_what_is_over(self) -> None:
        resting: set[str | None] = {_named(model) for model in self._models}
        if any(not rest.breaker.closed for rest in self._rests.values()):
            resting.add(None)
        for what in self._announced - resting:
            self._observer.serves_again(what)
        self._announced &= resting

    def _block(self) -> None:
        """Also after a look at the clock: rests may be over, or end earlier than they would."""
        if self._wish is AdminState.SERVE:
            breakers = [rest.breaker for rest in self._rests.values()]
            untils = [each.until for each in breakers if each.state is BreakerState.OPEN]
            self.blocked_until = max(untils, default=0.0)
        else:
            self.blocked_until = math.inf


def _is_remembered(model: str | None) -> bool:
    """Whether anything is held against a model of this name; clients choose them."""
    return model is None or len(model) <= _MAX_MODEL_NAME


def _named(model: str | None) -> str:
    return model or "no model"


def _until(reason: Unavailable) -> float:
    return reason.until or 0.0
