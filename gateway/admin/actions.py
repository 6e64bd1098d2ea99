"""The operator's actions on accounts, conversations and the gateway."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.admin.requests import AdminError, bad_request, not_found
from gateway.admin.running_gateway import Configuration, RunningGateway
from gateway.admin.views.conversations import binding_id_of, response_ids_of, responses_of
from gateway.config import ConfigError
from gateway.deadline import Deadline
from gateway.protocol.errors import ApiError
from gateway.routing.account import Account
from gateway.upstream.interface import ForwardedRequest

LEVELS = ("debug", "info", "warn", "error")

#: What can be recorded, for how long unless the operator says otherwise, and at most, in minutes.
RECORDED = ("key", "account", "conversation")
RECORDED_MINUTES = 10.0
_MOST_MINUTES = 24 * 60.0

#: Actions that the audit log remembers, and the longest text that it keeps.
MAX_ACTIONS = 500
_LONGEST = 300

#: How long an account may take to answer a probe, in seconds.
ANSWER_SECONDS = 10.0

#: A probe's answer that is longer is not read to its end, in bytes.
_MAX_BYTES = 1024 * 1024

_log = Logger(namespace="gateway.audit")

#: The result of an action, with a sentence as ``result``.
Done = dict[str, Any]


class Actions:
    """Acts on the running gateway; each action answers with a ``result`` in words.

    Their errors are :class:`~gateway.admin.requests.AdminError`.
    """

    def __init__(self, running: RunningGateway) -> None:
        self._running = running
        self._of_account: dict[str, Callable[[Account], Done | Deferred[Done]]] = {
            "pause": self._pause,
            "drain": self._drain_account,
            "resume": self._resume,
            "clear": self._clear,
            "probe": self._probe,
        }
        self._of_conversation: dict[str, Callable[[str], Done]] = {
            "unpin": self._unpin,
            "move": self._move,
            "drop": self._drop,
        }

    def account(self, name: str, action: str) -> Done | Deferred[Done]:
        """Do ``action`` with an account."""
        act = self._of_account.get(action)
        if act is None:
            raise not_found()
        account = self._running.services.pool.named(name)
        if account is None:
            raise not_found(f"no account is named '{name[:100]}'")
        return act(account)

    def conversation(self, identity: str, action: str) -> Done:
        """Do ``action`` with the conversation of a binding or a response."""
        act = self._of_conversation.get(action)
        if act is None:
            raise not_found()
        return act(identity)

    def log_level(self, level: object) -> Done:
        """Log from ``level`` on."""
        if level not in LEVELS:
            raise bad_request(f"level: expected one of {', '.join(LEVELS)}")
        before = self._running.threshold.level
        self._running.threshold.level = str(level)
        return {"result": f"the log's level is {level}; it was {before}", "level": level}

    def drain(self) -> Done:
        """Take no new clients and let the turns that run finish, until it is resumed."""
        self._running.drain.begin()
        left = len(self._running.limiter)
        return {
            "result": f"draining; {left} clients are left. Resume, or a restart, lets clients in"
            " again",
            "left": left,
        }

    def resume(self) -> Done:
        """Take clients again after a drain."""
        if not self._running.drain.resume():
            raise AdminError(409, "the gateway is stopping; nothing keeps it from that")
        return {"result": "clients are let in"}

    def reload(self) -> Done | Deferred[Done]:
        """Read the configuration anew."""
        return reload_configuration(self._running.configuration)

    # --- request logs --------------------------------------------------------------------

    def record(self, asked: Mapping[str, Any]) -> Done:
        """Record the turns of a key, an account or a conversation for some minutes.

        :param asked: the name of one of them by its kind, and ``minutes``.
        """
        what, name = self._recorded(asked)
        minutes = _minutes(asked.get("minutes") or RECORDED_MINUTES)
        rule = self._running.services.request_log.record(what, name, minutes * 60)
        if rule is None:
            raise AdminError(409, "too much is recorded already; stop something first")
        result = f"the turns of the {what} {name} are recorded for {minutes:g} minutes"
        return {"result": result, "until": rule.until}

    def stop_recording(self, asked: Mapping[str, Any]) -> Done:
        """Stop what :meth:`record` began, also in turns that run."""
        what, name = self._recorded(asked, must_exist=False)
        if not self._running.services.request_log.stop(what, name):
            raise not_found(f"the {what} {name[:100]} is not recorded")
        return {"result": f"the {what} {name} is no longer recorded"}

    def _recorded(self, asked: Mapping[str, Any], must_exist: bool = True) -> tuple[str, str]:
        named = [(what, asked[what]) for what in RECORDED if asked.get(what)]
        if len(named) != 1 or not isinstance(named[0][1], str):
            raise bad_request(f"expected the name of one of {', '.join(RECORDED)}")
        what, name = named[0]
        if must_exist:
            name = self._known(what, name)
        return what, name

    def _known(self, what: str, name: str) -> str:
        """The name of something that exists; of a conversation the id of its binding."""
        running = self._running
        found: str | None = name
        if what == "key":
            found = name if name in [key["name"] for key in running.api_keys.snapshot()] else None
        elif what == "account":
            found = None if running.services.pool.named(name) is None else name
        else:
            found = binding_id_of(running, name)
        if found is None:
            raise not_found(f"no {what} is named '{name[:100]}'")
        return found

    # --- accounts ----------------------------------------------------------------------

    def _pause(self, account: Account) -> Done:
        account.health.disable()
        return self._did(account, "is paused until it is resumed; running turns go on")

    def _drain_account(self, account: Account) -> Done:
        account.health.drain()
        return self._did(account, "drains: it gets no new turns until it is resumed")

    def _resume(self, account: Account) -> Done:
        account.health.enable()
        account.health.resume()
        return self._did(account, "is in service again")

    def _clear(self, account: Account) -> Done:
        account.clear()
        return self._did(account, "has no cooldowns any more")

    def _did(self, account: Account, what: str) -> Done:
        self._running.services.waiting.wake()
        return {"result": f"{account.name} {what}", "state": account.health.state.value}

    def _probe(self, account: Account) -> Deferred[Done]:
        probe = Probe(self._running.services.clock, account)
        probe.start()
        return probe.result.addCallback(lambda found: _probed(account, found))

    # --- conversations -----------------------------------------------------------------

    def _unpin(self, identity: str) -> Done:
        self._running.services.pool.bindings.forget(self._binding(identity))
        return {"result": "the conversation sticks to no account; its next turn chooses anew"}

    def _move(self, identity: str) -> Done:
        binding = self._running.services.pool.bindings.move(self._binding(identity))
        if binding is None or binding.leaves is None:
            raise not_found("this conversation is not known any more")
        return {
            "result": f"the conversation leaves {binding.leaves} at its next turn, if another"
            " account can take it and no encrypted item binds it there",
            "leaves": binding.leaves,
        }

    def _drop(self, identity: str) -> Done:
        """Forget the binding and every tree of responses that is known to belong to it."""
        services = self._running.services
        binding_id = binding_id_of(self._running, identity)
        responses = [identity, *response_ids_of(self._running, binding_id or identity)]
        forgotten = 0
        for response_id in dict.fromkeys(responses):
            found = responses_of(self._running, response_id)
            if found:
                forgotten += services.conversations.forget(found[0].record.tenant, response_id)
        unbound = binding_id is not None and services.pool.bindings.forget(binding_id)
        if not forgotten and not unbound:
            raise not_found("nothing is known of this conversation")
        return {
            "result": f"forgotten: {forgotten} responses and {int(unbound)} binding",
            "responses": forgotten,
        }

    def _binding(self, identity: str) -> str:
        binding_id = binding_id_of(self._running, identity)
        if binding_id is None or self._running.services.pool.bindings.with_id(binding_id) is None:
            raise not_found("no binding of this conversation is known")
        return binding_id


def _minutes(value: object) -> float:
    """A time in minutes, as a number of JSON or of a form."""
    try:
        minutes = float(value) if isinstance(value, (int, float, str)) else math.nan
    except ValueError:
        minutes = math.nan
    if not 0 < minutes <= _MOST_MINUTES:
        raise bad_request(f"minutes: expected a number above 0, at most {_MOST_MINUTES:g}")
    return minutes


def reload_configuration(configuration: Configuration) -> Done | Deferred[Done]:
    """Read the configuration anew.

    :raises AdminError: it was rejected, or there is none that could be read.
    """
    if configuration.reload is None:
        raise AdminError(409, "there is no configuration file that could be read anew")
    try:
        line = configuration.reload()
    except ConfigError as error:
        raise AdminError(422, f"rejected: {error.summary}") from None
    except Exception:  # it is logged
        raise _not_applied() from None
    if isinstance(line, Deferred):
        return line.addCallbacks(lambda result: {"result": result}, _reload_failed)
    return {"result": line}


def _not_applied() -> AdminError:
    return AdminError(422, "rejected: it cannot be applied; the log says why")


def _reload_failed(_: Failure) -> NoReturn:
    """A worker could not put it into force; the reload has logged it."""
    raise _not_applied()


class Probe:
    """One ``GET /models``, to see whether an account answers; receives the answer itself.

    It does not change the account's health: only turns do.

    :ivar result: ``{answered, status, error, ms}``; never fails.
    """

    def __init__(self, clock: IReactorTime, account: Account) -> None:
        self.result: Deferred[dict[str, Any]] = Deferred()
        self._clock = clock
        self._began = clock.seconds()
        self._status: int | None = None
        self._bytes = 0
        self._over = False
        self._deadline = Deadline(clock, self._too_late)
        headers = {"accept": "application/json"}
        headers.update((name.lower(), value) for name, value in account.request_headers)
        self._exchange = account.upstream.forward(ForwardedRequest("GET", "/models", headers), self)

    def start(self) -> None:
        """Send the request."""
        self._deadline.start(ANSWER_SECONDS)
        self._exchange.start()

    def upstream_connected(self) -> None:
        """The request goes out: nothing to do."""

    def upstream_answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Keep the status for the result."""
        self._status = status

    def upstream_data(self, data: bytes) -> None:
        """Count the answer's bytes; a long one is not read to its end."""
        self._bytes += len(data)
        if self._bytes > _MAX_BYTES and not self._over:
            self._exchange.cancel()
            self._end(None)

    def upstream_ended(self, error: ApiError | None) -> None:
        """Give the result."""
        self._end(None if error is None else error.message)

    def _too_late(self) -> None:
        self._exchange.cancel()
        self._end(f"no answer within {ANSWER_SECONDS:g} seconds")

    def _end(self, error: str | None) -> None:
        if self._over:
            return
        self._over = True
        self._deadline.stop()
        took = round((self._clock.seconds() - self._began) * 1000, 1)
        answered = error is None and self._status is not None and self._status < 400
        self.result.callback(
            {"answered": answered, "status": self._status, "error": error, "ms": took}
        )


def _probed(account: Account, found: Done) -> Done:
    if found["error"] is not None:
        said = f"{account.name} does not answer: {found['error']}"
    else:
        said = f"{account.name} answered {found['status']} in {found['ms']:g} ms"
    return {"result": said, **found}


class AuditEntry(NamedTuple):
    """An action that was done or refused.

    :ivar at: unix seconds.
    :ivar who: ``token`` or the name of a login; never a secret.
    :ivar address: from where.
    :ivar target: what it was done to, or None for the gateway.
    :ivar done: whether it was done.
    :ivar result: in words.
    """

    at: float
    who: str
    address: str
    action: str
    target: str | None
    done: bool
    result: str


class Audit:
    """The last actions; each is also a line of the log.

    :param now: unix seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._entries: deque[AuditEntry] = deque(maxlen=MAX_ACTIONS)

    def __len__(self) -> int:
        return len(self._entries)

    def note(
        self, who: str, address: str, action: str, target: str | None, done: bool, result: str
    ) -> None:
        """Remember and log an action."""
        shown = None if target is None else target[:_LONGEST]
        entry = AuditEntry(self._now(), who, address, action, shown, done, result[:_LONGEST])
        self._entries.append(entry)
        _log.info(
            "{who} from {address}: {action} {target}: {result}",
            **{**entry._asdict(), "target": shown or "the gateway"},
        )

    def is_last(self, who: str, address: str, action: str, target: str) -> bool:
        """Whether nothing else was noted since the same one did the same."""
        last = self._entries[-1] if self._entries else None
        return last is not None and last[1:5] == (who, address, action, target[:_LONGEST])

    def shown(self) -> dict[str, Any]:
        """The last actions, the newest first."""
        return {"actions": [entry._asdict() for entry in reversed(self._entries)]}
