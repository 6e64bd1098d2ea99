"""The gateway as twistd runs it: its log, its signals, and starts that fail in one line."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

from autobahn import websocket
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.logfile import LogFile

from gateway import __version__
from gateway.admin.running import Configuration
from gateway.config import Settings, in_force
from gateway.listening import CannotListen
from gateway.log import log_file, log_observer
from gateway.options import Options, summary
from gateway.reload import ConfigReloader, needs_restart
from gateway.service import GatewayService
from gateway.signals import on_second_stop, on_signal

__all__ = ["Options", "makeService"]

_log = Logger(namespace="gateway.service")

#: Files the gateway may open, where the system lets it.
_OPEN_FILES = 1_048_576


class TwistdService(GatewayService):
    """The gateway under twistd: its log, and starts that fail in one line.

    :param options: the command line.
    :ivar reloads: the settings in force, and what became of later ones.
    """

    def __init__(self, options: Options, reactor: Any) -> None:
        super().__init__(options.settings, reactor)
        self._twistd: Mapping[str, Any] = options.parent or {}
        self._reactor = reactor
        self._log_file: LogFile | None = None
        self.reloads = ConfigReloader(
            options.settings, options.read, self.reconfigure, reactor.seconds
        )
        self._options = options
        self._described = self._started = options.described()
        self.whole.configuration = Configuration(
            options.source,
            lambda: self._described,
            lambda: self.reloads.generation,
            lambda: self.reloads.last_rejected,
            None if options["config"] is None else self.reloads.reload,
        )

    def reconfigure(self, settings: Settings, before: Settings) -> None:
        """See ``GatewayService``."""
        super().reconfigure(settings, before)
        waiting = needs_restart(self.settings, settings)
        self._described = in_force(self._started, self._options.described(), waiting)

    def setServiceParent(self, parent: Any) -> None:
        """Take over the application's log, unless the operator chose an observer."""
        super().setServiceParent(parent)
        if isinstance(parent, Componentized) and not self._twistd.get("syslog"):
            self._log_file = self._open_log()
            observer = log_observer(self.settings.log, self._log_file, self.threshold)
            parent.setComponent(ILogObserver, observer)

    def startService(self) -> None:
        """Start, or say in one line why not."""
        _collect_rarely()
        _allow_open_files()
        on_signal(self._reactor, signal.SIGHUP, self._reload)
        if self._log_file is not None:
            on_signal(self._reactor, signal.SIGUSR1, self._log_file.reopen)
        self._reactor.addSystemEventTrigger("before", "shutdown", self._say_who_is_left)
        on_second_stop(self._reactor, self._end_all_turns)
        if not getattr(websocket, "USES_NVX", False):  # Autobahn for Python 3.10 has none
            _log.warn("Autobahn's native code is missing: large messages will stop the gateway")
        try:
            super().startService()
        except CannotListen as error:
            self._give_up(f"responses-gateway: {error}")
        _log.info(
            "responses-gateway {version} started with {configuration}: {summary}",
            version=__version__,
            configuration=self._options.source,
            summary=summary(self.settings),
        )

    def _say_who_is_left(self) -> None:
        """What may keep a stop waiting."""
        _log.info(
            "stopping, connections: {connections}; turns that run have {seconds:g} seconds,"
            " or until a second signal",
            connections=len(self.limiter),
            seconds=self._door_service.shutdown_seconds,
        )

    def _end_all_turns(self) -> None:
        """The second signal to stop."""
        _log.warn("a second signal: what runs is ended")
        self.limiter.abandon()

    def _reload(self) -> None:
        with suppress(Exception):  # the log has it, and the admin side
            self.reloads.reload()

    def _give_up(self, line: str) -> NoReturn:
        """End a start that failed the way twistd would, less the traceback.

        In the foreground the line goes to the terminal; a daemon hands it to the process
        that waits for its start, and to its log.
        """
        pidfile = self._twistd.get("pidfile")
        if pidfile and os.path.exists(pidfile):
            os.unlink(pidfile)
        status_pipe = self._twistd.get("statusPipe")
        if status_pipe is not None:
            os.write(status_pipe, b"1 " + line.encode())
            _log.error("{line}", line=line)
        else:
            print(line, file=sys.__stderr__)
        raise SystemExit(1)

    def _open_log(self) -> LogFile | None:
        """The file to log to, or None for standard output."""
        path = self._logfile()
        try:
            return None if path is None else log_file(path)
        except OSError as error:
            self._give_up(f"responses-gateway: --logfile '{path}': {error.strerror}")

    def _logfile(self) -> str | None:
        logfile = self._twistd.get("logfile")
        if logfile == "-" or (not logfile and self._twistd.get("nodaemon", True)):
            return None
        return logfile or "twistd.log"


def _allow_open_files() -> None:
    """A connection takes two files while a turn runs; the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems call their limit infinite, and have one
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _OPEN_FILES)), hard))


def _collect_rarely() -> None:
    """Full collections stop every stream; what is loaded by now never needs one.

    A turn leaves some 35 objects in cycles: these thresholds let them grow to about 40 MB.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


def makeService(options: Options, reactor: Any = None) -> TwistdService:
    """What twistd runs; see :class:`~gateway.options.Options`."""
    if reactor is None:
        from twisted.internet import reactor
    return TwistdService(options, reactor)
