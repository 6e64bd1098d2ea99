"""Tells the service manager how the gateway is (sd_notify): ready, reloading, stopping, alive.

Without ``NOTIFY_SOCKET`` in the environment all of this does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

#: A stop asks for so much more time than the turns have, in seconds.
_STOP_SECONDS = 10.0

#: Of the watchdog's time, after how much of it the gateway says that it is alive.
_ALIVE_PART = 0.5

#: Longest text for ``systemctl status``, in characters.
_LONGEST = 300

_log = Logger(namespace="gateway.systemd")


class ServiceManager(Service):
    """The manager of the service that this process is.

    :param reactor: the clock.
    :param environ: of the process.
    :ivar watchdog_seconds: how long the manager waits for a sign of life; None without a watchdog.
    """

    def __init__(self, reactor: Any, environ: Mapping[str, str]) -> None:
        self.setName("systemd")
        self._reactor = reactor
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        self._failed = False
        self.watchdog_seconds = None if self._address is None else _watchdog(environ)
        self._alive = LoopingCall(self._say_alive)
        self._alive.clock = reactor

    def startService(self) -> None:
        """Show the watchdog from now on that the event loop runs."""
        super().startService()
        if self.watchdog_seconds is not None:
            self._alive.start(self.watchdog_seconds * _ALIVE_PART, now=False)

    def stopService(self) -> None:
        """Say nothing any more."""
        super().stopService()
        if self._alive.running:
            self._alive.stop()
        opened, self._socket = self._socket, None
        if opened is not None:
            opened.close()
        self._address = None

    def ready(self, status: str) -> None:
        """The gateway serves, after its start or a reload.

        :param status: in words, for ``systemctl status``.
        """
        self.send("READY=1", _status(status))

    def reloading(self) -> None:
        """A reload begins; :meth:`ready` ends it, whatever it comes to."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def status(self, status: str) -> None:
        """What the gateway does, in words."""
        self.send(_status(status))

    def stopping(self, seconds: float, status: str) -> None:
        """The gateway stops.

        :param seconds: how long its turns may take; the manager gives the process a little more.
        """
        microseconds = round((seconds + _STOP_SECONDS) * 1e6)
        self.send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={microseconds}", _status(status))

    def hand_over(self, successor: int) -> None:
        """Another process is the service from now on, and speaks for it.

        :param successor: its process id.
        """
        self.send(f"MAINPID={successor}")
        self.stopService()

    def send(self, *assignments: str) -> None:
        """Send ``NAME=value`` assignments; a manager that is gone stops nothing."""
        if self._address is None:
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto("\n".join(assignments).encode(), self._address)
            self._failed = False
        except OSError as error:
            if not self._failed:
                self._failed = True
                _log.warn("the service manager cannot be told anything: {error}", error=error)

    def _say_alive(self) -> None:
        """The reactor called this, so the event loop runs."""
        self.send("WATCHDOG=1")


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())[:_LONGEST]}"


def _address(name: str) -> str | None:
    """The address of the manager's socket: a path, or a name in the abstract namespace."""
    if name.startswith("/"):
        return name
    if name.startswith("@") and len(name) > 1:
        return "\0" + name[1:]
    return None


def _watchdog(environ: Mapping[str, str]) -> float | None:
    """The seconds of ``WATCHDOG_USEC``, unless they are another process's."""
    if environ.get("WATCHDOG_PID") not in (None, "", str(os.getpid())):
        return None
    try:
        microseconds = int(environ["WATCHDOG_USEC"])
    except (KeyError, ValueError):
        return None
    return microseconds / 1e6 if microseconds > 0 else None
