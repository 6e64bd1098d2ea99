"""Says in the log when an account, or one model of it, begins to rest and when that is over."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Protocol

from twisted.logger import Logger

from gateway.routing.cooldown import Cooldown

_log = Logger(namespace="gateway.routing")


class HealthObserver(Protocol):
    """Hears what becomes of an account's health."""

    def rests(self, rest: Cooldown, model: str | None, again: bool) -> None:
        """Something begins to rest.

        :param model: the only one that rests; None for all of the account.
        :param again: whether it only failed its probe.
        """

    def serves_again(self, model: str | None) -> None:
        """What was said to rest does not."""


class Silence:
    """A witness that says nothing."""

    def rests(self, rest: Cooldown, model: str | None, again: bool) -> None:
        """See :class:`HealthObserver`."""

    def serves_again(self, model: str | None) -> None:
        """See :class:`HealthObserver`."""


class HealthAnnouncer:
    """The witness that writes to the log.

    :param account: its name.
    """

    def __init__(self, account: str) -> None:
        self._account = account

    def rests(self, rest: Cooldown, model: str | None, again: bool) -> None:
        """See :class:`HealthObserver`; the first time is worth a warning."""
        until = datetime.fromtimestamp(rest.breaker.until, timezone.utc)
        say = _log.info if again else _log.warn
        say(
            "account {account}{of_model} is {state} until {until}: {why}",
            account=self._account,
            model=model,
            of_model=_of(model),
            state=rest.state.value,
            until=until.isoformat(timespec="seconds"),
            why=rest.fault.why if rest.fault is not None else "",
        )

    def serves_again(self, model: str | None) -> None:
        """See :class:`HealthObserver`."""
        _log.info(
            "account {account}{of_model} serves again",
            account=self._account,
            model=model,
            of_model=_of(model),
        )


def _of(model: str | None) -> str:
    return "" if model is None else f" for {model}"
