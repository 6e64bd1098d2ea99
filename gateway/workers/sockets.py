"""The listening sockets that a supervisor makes, holds and hands to its workers.

A TCP endpoint gets one socket for each worker, all on one port (SO_REUSEPORT): the kernel spreads
new connections evenly.  With one queue for all, the worker that wakes up first takes most of what
arrives slowly: of 200 connections, 5 ms apart, 159 and 41 in place of 97 and 103.  UNIX sockets
and those of systemd have one queue, from which workers take one connection at a time.

The supervisor keeps every socket open and never accepts from one, so that a queue outlives its
worker; :func:`shares` says who serves it meanwhile.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from gateway.listening import CannotListen, listen_on, reason


class SharedListener(Service):
    """The sockets of one endpoint; other processes accept from them.

    :param endpoint: a Twisted endpoint string.
    :param setting: its path in the configuration.
    :param queues: how many sockets a TCP endpoint gets.
    :param inherited: sockets to use in place of new ones.
    :ivar sockets: all of them, once it has started.
    """

    def __init__(
        self, reactor: Any, endpoint: str, setting: str, queues: int, inherited: Sequence[int] = ()
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._setting = setting
        self._queues = queues
        self._inherited = list(inherited)
        self.sockets: list[socket.socket] = []

    @property
    def descriptors(self) -> list[int]:
        """The sockets, for a child process."""
        return [each.fileno() for each in self.sockets]

    def startService(self) -> None:
        """Bind the sockets.

        :raises CannotListen: with the setting, its value and the reason.
        """
        super().startService()
        if self._inherited:
            self.sockets = [socket.socket(fileno=each) for each in self._inherited]
            self._inherited = []
            return
        binder = _Binder(self._reactor, self._queues)
        problems: list[Failure] = []
        bound = maybeDeferred(listen_on, binder, self._endpoint, Factory())
        bound.addErrback(problems.append)
        self.sockets = binder.sockets
        if problems or not self.sockets:
            why = reason(problems[0].value) if problems else "workers cannot share it"
            raise CannotListen(f"{self._setting}: '{self._endpoint}': cannot listen there: {why}")

    def leave(self) -> None:
        """Close them in this process: a successor has them."""
        sockets, self.sockets = self.sockets, []
        for each in sockets:
            each.close()

    def stopService(self) -> None:
        """Close them: no worker has them any more."""
        super().stopService()
        for each in self.sockets:
            if each.family == socket.AF_UNIX:
                _remove(each.getsockname())
        self.leave()


class _Binder:
    """A reactor for endpoints that are bound here and listened on elsewhere.

    :param queues: how many sockets a TCP port gets.
    """

    def __init__(self, reactor: Any, queues: int) -> None:
        self._reactor = reactor
        self._queues = queues
        self.sockets: list[socket.socket] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """Bind the port, once for each worker."""
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        try:
            # Without SO_REUSEPORT first: another gateway on the port would not be noticed.
            with _socket(family) as alone:
                alone.bind((interface, port))
                port = alone.getsockname()[1]
            for _ in range(self._queues):
                made = _socket(family)
                self.sockets.append(made)
                if self._queues > 1:
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                made.bind((interface, port))
                made.listen(backlog)
        except OSError as error:
            for each in self.sockets:
                each.close()
            self.sockets.clear()
            raise CannotListenError(interface, port, error) from None

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        """Bind the port; TLS is for the workers."""
        return self.listenTCP(port, factory, backlog, interface)

    def listenUNIX(
        self,
        address: Any,
        factory: Any,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> Any:
        """Bind the socket's file; with a lock file one that a crash left behind is replaced."""
        path = os.fsdecode(address)
        made = _socket(socket.AF_UNIX)
        self.sockets.append(made)
        try:
            if wantPID and _is_dead(path):
                os.unlink(path)
            made.bind(path)
            os.chmod(path, mode)
            made.listen(backlog)
        except OSError as error:
            made.close()
            self.sockets.clear()
            raise CannotListenError(None, path, error) from None

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        """Keep a socket that systemd has bound."""
        self.sockets.append(socket.socket(fileno=os.dup(fileDescriptor)))


def shares(sockets: int, workers: int, ready: Collection[int]) -> dict[int, list[int]]:
    """Which worker accepts from which socket: each from its own, and those of absent workers.

    :param sockets: how many there are.
    :param workers: how many there should be; they have the numbers from 1.
    :param ready: the workers that can accept now.
    :return: the places of its sockets by worker.
    """
    if sockets == 1:
        return {worker: [0] for worker in ready}
    order = sorted(ready)
    served: dict[int, list[int]] = {worker: [] for worker in order}
    for place in range(sockets if order else 0):
        owner = place % workers + 1
        served[owner if owner in served else order[place % len(order)]].append(place)
    return served


def _socket(family: int) -> socket.socket:
    made = socket.socket(family)
    made.setblocking(False)
    if family != socket.AF_UNIX:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def _is_dead(path: str) -> bool:
    """Whether the file is a socket that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False


def _remove(path: str | bytes) -> None:
    """Remove the file of a socket; one in the kernel's own name space has none."""
    name = os.fsdecode(path)
    with suppress(OSError):
        if name and not name.startswith("\0"):
            os.unlink(name)
