"""Asks an account for its models, to see whether it answers at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from gateway.deadline import Deadline
from gateway.protocol.errors import ApiError
from gateway.routing.account import Account
from gateway.upstream.interface import ForwardedRequest

#: How long an answer may take, in seconds.
ANSWER_SECONDS = 10.0

#: A longer answer is one, and is not read to its end.
_MAX_BYTES = 1024 * 1024


class Probe:
    """One ``GET /models``; a :class:`~gateway.upstream.interface.BodyReceiver`.

    It says nothing to the account's health: the turns do.

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
        self._call = account.upstream.forward(ForwardedRequest("GET", "/models", headers), self)

    def start(self) -> None:
        """Ask."""
        self._deadline.start(ANSWER_SECONDS)
        self._call.start()

    def upstream_connected(self) -> None:
        """See ``BodyReceiver``."""

    def upstream_answered(self, status: int, headers: Mapping[str, str]) -> None:
        """See ``BodyReceiver``."""
        self._status = status

    def upstream_data(self, data: bytes) -> None:
        """See ``BodyReceiver``."""
        self._bytes += len(data)
        if self._bytes > _MAX_BYTES and not self._over:
            self._call.cancel()
            self._end(None)

    def upstream_ended(self, error: ApiError | None) -> None:
        """See ``BodyReceiver``."""
        self._end(None if error is None else error.message)

    def _too_late(self) -> None:
        self._call.cancel()
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
