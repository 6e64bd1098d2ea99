"""What an operator may do: with accounts, with conversations, with the gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from gateway.admin.errors import AdminError, bad_request, not_found
from gateway.admin.probe import Probe
from gateway.admin.running import Running
from gateway.admin.views.conversations import binding_id_of, response_ids_of, responses_of
from gateway.config import ConfigError
from gateway.routing.account import Account

LEVELS = ("debug", "info", "warn", "error")

#: What an action says it did; ``probe`` says it later.
Done = dict[str, Any]


class Actions:
    """Acts on the running gateway; each action answers with a ``result`` in words.

    Their errors are :class:`~gateway.admin.errors.AdminError`.
    """

    def __init__(self, running: Running) -> None:
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
        """Take no new clients and let the turns that run finish; a restart ends it."""
        limiter = self._running.limiter
        if not limiter.draining:
            limiter.drain(_nothing)
        left = len(limiter)
        return {
            "result": f"draining; {left} clients are left. A restart lets clients in again",
            "left": left,
        }

    def reload(self) -> Done:
        """Read the configuration anew."""
        reload = self._running.configuration.reload
        if reload is None:
            raise AdminError(409, "there is no configuration file that could be read anew")
        try:
            return {"result": reload()}
        except ConfigError as error:
            raise AdminError(422, f"rejected: {error.summary}") from None
        except Exception:  # the log has it
            raise AdminError(422, "rejected: it cannot be applied; the log says why") from None

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
        return self._did(account, "rests no longer: every cooldown is cleared")

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
            " account can take it and no sealed item holds it there",
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
                forgotten += services.ledger.forget(found[0].record.tenant, response_id)
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


def _probed(account: Account, found: Done) -> Done:
    if found["error"] is not None:
        said = f"{account.name} does not answer: {found['error']}"
    else:
        said = f"{account.name} answered {found['status']} in {found['ms']:g} ms"
    return {"result": said, **found}


def _nothing() -> None:
    """Nobody waits for the last client."""
