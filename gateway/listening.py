"""Services that listen on Twisted endpoints; an unavailable port ends the start in one line.

Listening sockets may be inherited (``gateway/inheritance.py``): of the supervisor, or of the
process that this one succeeds.  Then nothing is bound, and all else is as the endpoint says: TLS,
the PROXY protocol.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.python.failure import Failure

from gateway.compat import adopt_unix_port, leave_port

#: Where processes share one queue of new connections, each takes one and then leaves the queue to
#: the others for so long, in seconds.  Otherwise the one that wakes up first takes nearly all.
_PAUSE_SECONDS = 0.002


class CannotListen(Exception):
    """A listener cannot start; the text is the line that the operator sees."""


class ListenerService(Service):
    """Listens while it runs.

    :param endpoint: a Twisted endpoint string.
    :param setting: its path in the configuration, for the error.
    :param inherited: listening sockets to use in place of new ones; they are closed.
    :param shared: whether other processes accept from the same sockets.
    :ivar endpoint: the same.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: str,
        factory: Any,
        setting: str,
        inherited: Sequence[int] = (),
        shared: bool = False,
    ) -> None:
        self._reactor = reactor
        self.endpoint = endpoint
        self._factory = factory
        self._setting = setting
        self._inherited = list(inherited)
        self._shared = shared
        self._listening: list[Any] = []

    @property
    def descriptors(self) -> list[int]:
        """The sockets that it listens on."""
        return [port.fileno() for port in self._listening]

    def startService(self) -> None:
        """Listen.

        :raises CannotListen: with the setting, its value and the reason.
        """
        super().startService()
        problems: list[Failure] = []
        # What is inherited is used once; after a stop it listens anew.
        inherited, self._inherited = self._inherited, []
        reactors = [AdoptingReactor(self._reactor, each) for each in inherited]
        for reactor in reactors or [self._reactor]:
            listening = maybeDeferred(listen_on, reactor, self.endpoint, self._factory)
            listening.addCallbacks(self._listens, problems.append)
        if problems:
            raise CannotListen(
                f"{self._setting}: '{self.endpoint}': cannot listen there:"
                f" {reason(problems[0].value)}"
            )

    def accept_from(self, places: Collection[int]) -> None:
        """Accept from some of the inherited sockets, and leave the others to other processes.

        :param places: theirs among the inherited ones.
        """
        for place, port in enumerate(self._listening):
            if place in places:
                port.startReading()
            else:
                port.stopReading()

    def leave(self) -> None:
        """Stop accepting; other processes go on with the sockets."""
        listening, self._listening = self._listening, []
        for port in listening:
            leave_port(port)

    def stopService(self) -> Deferred[Any]:
        """Stop listening; connections live on."""
        super().stopService()
        listening, self._listening = self._listening, []
        return gatherResults([maybeDeferred(port.stopListening) for port in listening])

    def _listens(self, listening: Any) -> None:
        self._listening.append(listening)
        if self._shared:
            _OneByOne(self._reactor, listening)


class AdoptingReactor:
    """A reactor for an endpoint that is to listen on a socket that exists already.

    :param reactor: does everything else.
    :param descriptor: the socket; it is closed once it was adopted.
    """

    def __init__(self, reactor: Any, descriptor: int) -> None:
        self._reactor = reactor
        self._descriptor = descriptor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """Adopt the socket."""
        return self._adopt(factory)

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        """Adopt the socket, with TLS on its connections."""
        from twisted.protocols.tls import TLSMemoryBIOFactory

        return self._adopt(TLSMemoryBIOFactory(contextFactory, False, factory))

    def listenUNIX(
        self,
        address: str,
        factory: Any,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> Any:
        """Adopt the socket."""
        return self._adopt(factory)

    def _adopt(self, factory: Any) -> Any:
        with socket.socket(fileno=self._descriptor) as adopted:
            adopted.setblocking(False)
            if adopted.family == socket.AF_UNIX:
                return adopt_unix_port(self._reactor, adopted.fileno(), factory)
            return self._reactor.adoptStreamPort(adopted.fileno(), adopted.family, factory)


def listen_on(reactor: Any, endpoint: str, factory: Any) -> Deferred[Any]:
    """Listen on an endpoint.

    :return: the listening port.
    """
    if isinstance(reactor, AdoptingReactor):
        # Only the process that systemd started can look up its sockets by their names.
        endpoint = re.sub(r"^(haproxy:)?systemd:.*", r"\1tcp:0", endpoint)
    listening: Deferred[Any] = serverFromString(reactor, endpoint).listen(factory)
    return listening


def reason(error: BaseException | None) -> str:
    """Why nothing can listen there, in a few words."""
    if isinstance(error, LookupError):  # of Twisted's list of inherited sockets
        return "the service manager passed no such socket (LISTEN_FDS, LISTEN_FDNAMES)"
    cause = getattr(error, "socketError", error)
    return getattr(cause, "strerror", None) or str(cause)


class _OneByOne:
    """Makes a port take one connection at a time, and let other processes take the next.

    :param port: it must accept already.
    """

    def __init__(self, reactor: Any, port: Any) -> None:
        self._reactor = reactor
        self._port = port
        self._accept, port.doRead = port.doRead, self._accept_one

    def _accept_one(self) -> None:
        port = self._port
        port.numberAccepts = 1
        self._accept()
        port.stopReading()
        self._reactor.callLater(_PAUSE_SECONDS, self._go_on)

    def _go_on(self) -> None:
        if self._port.connected and not self._port.disconnecting:
            self._port.startReading()
