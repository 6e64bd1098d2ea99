"""Services that listen on Twisted endpoints; an unavailable port ends the start in one line."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.python.failure import Failure


class CannotListen(Exception):
    """A listener cannot start; the text is the line that the operator sees."""


class ListenerService(Service):
    """Listens while it runs.

    :param endpoint: a Twisted endpoint string.
    :param setting: its path in the configuration, for the error.
    """

    def __init__(self, reactor: Any, endpoint: str, factory: Any, setting: str) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._factory = factory
        self._setting = setting
        self._listening: IListeningPort | None = None

    def startService(self) -> None:
        """Listen.

        :raises CannotListen: with the setting, its value and the reason.
        """
        super().startService()
        problems: list[Failure] = []
        listening = maybeDeferred(self._listen)
        listening.addCallbacks(self._listens, problems.append)
        if problems:
            raise CannotListen(
                f"{self._setting}: '{self._endpoint}': cannot listen there:"
                f" {_reason(problems[0].value)}"
            )

    def _listen(self) -> Deferred[IListeningPort]:
        endpoint = serverFromString(self._reactor, self._endpoint)
        listening: Deferred[IListeningPort] = endpoint.listen(self._factory)
        return listening

    def stopService(self) -> Deferred[Any]:
        """Stop listening; connections live on."""
        super().stopService()
        listening, self._listening = self._listening, None
        if listening is None:
            return succeed(None)
        return maybeDeferred(listening.stopListening)

    def _listens(self, listening: IListeningPort) -> None:
        self._listening = listening


def _reason(error: BaseException | None) -> str:
    cause = getattr(error, "socketError", error)
    return getattr(cause, "strerror", None) or str(cause)
