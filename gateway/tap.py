"""The gateway as a twistd plugin: command line, log, signals; a start that fails is one line."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, NoReturn

from autobahn import websocket
from twisted.logger import ILogObserver, Logger
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.logfile import LogFile

from gateway import __version__
from gateway.admin.running_gateway import Configuration
from gateway.config import (
    ConfigError,
    Setting,
    Settings,
    describe,
    in_force,
    load_settings,
    read_text,
)
from gateway.listening import CannotListen
from gateway.log import log_file, log_observer
from gateway.reload import ConfigReloader, needs_restart
from gateway.service import GatewayService

__all__ = ["Options", "makeService"]

_log = Logger(namespace="gateway.service")

#: The limit of open files, if the system allows it.
_OPEN_FILES = 1_048_576


class Options(usage.Options):
    """The command line of ``twistd responses-gateway``; an error is one line and exit status 1.

    :ivar settings: the whole configuration, once the command line is parsed.
    """

    synopsis = "[options]"
    longdesc = (
        "Serves the OpenAI Responses API over WebSocket and HTTP from a pool of accounts, "
        "and keeps the thread of each conversation. Without --config it listens on "
        "127.0.0.1:8080 and answers from a built-in simulator, so that it can be tried "
        "without any key."
    )
    optFlags: ClassVar[list[list[Any]]] = [
        [
            "check",
            None,
            "Check the configuration, print a line or all mistakes, exit with status 0 or 1.",
        ],
    ]
    optParameters: ClassVar[list[list[Any]]] = [
        [
            "config",
            "c",
            None,
            "YAML file with the configuration; ${NAME} in it is taken from the environment.",
        ],
    ]

    settings: Settings
    _text: str | None = None

    def opt_version(self) -> NoReturn:
        """Print the gateway's version and exit."""
        from twisted import copyright

        print(f"responses-gateway {__version__} (Twisted {copyright.version})")
        raise SystemExit(0)

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Parse; twistd would answer an error with its help and status 0."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            _fail(f"responses-gateway: {error}; see twistd responses-gateway --help")

    def parseArgs(self, *surplus: str) -> None:
        """Refuse positional arguments: most often --config was forgotten."""
        if surplus:
            raise usage.UsageError(f"unexpected argument '{surplus[0]}'; a file needs --config")

    def read(self) -> Settings:
        """Read the configuration as it is now.

        :raises ConfigError: when it is not right.
        """
        path = self["config"]
        text = None if path is None else read_text(path)
        settings = Settings() if text is None else load_settings(text, os.environ, path)
        self._text = text
        return settings

    @property
    def source(self) -> str:
        """Where the configuration comes from, for logs and the status page."""
        return self["config"] or "no file: the defaults"

    def described(self) -> list[Setting]:
        """Every setting as it was read last, with its origin."""
        return describe(self._text, os.environ, self.source)

    def postOptions(self) -> None:
        """Load the configuration; end here when only a check was asked for."""
        path = self["config"]
        if path == "":  # a shell's variable that is not set
            raise usage.UsageError("option --config needs the name of a file, got nothing")
        try:
            self.settings = self.read()
        except ConfigError as error:
            _fail(str(error))
        if self["check"]:
            print(f"{path or 'no file'}: ok: {summary(self.settings)}")
            raise SystemExit(0)


def makeService(options: Options, reactor: Any = None) -> TwistdService:
    """The service that twistd runs.

    :param options: the command line.
    :param reactor: for tests; by default Twisted's own.
    """
    if reactor is None:
        from twisted.internet import reactor
    return TwistdService(options, reactor)


class TwistdService(GatewayService):
    """The gateway under twistd: its log, its signals, and the limits of its process.

    :param options: the command line.
    :ivar reloads: reloads the configuration.
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
        self.running_gateway.configuration = Configuration(
            options.source,
            lambda: self._described,
            lambda: self.reloads.generation,
            lambda: self.reloads.last_rejected,
            None if options["config"] is None else self.reloads.reload,
        )

    def reconfigure(self, settings: Settings, before: Settings) -> None:
        """Put changed settings into force, and keep their origins for the status page."""
        super().reconfigure(settings, before)
        waiting = needs_restart(self.settings, settings)
        self._described = in_force(self._started, self._options.described(), waiting)

    def setServiceParent(self, parent: Any) -> None:
        """Set the application's log, unless the operator chose syslog."""
        super().setServiceParent(parent)
        if isinstance(parent, Componentized) and not self._twistd.get("syslog"):
            self._log_file = self._open_log()
            observer = log_observer(self.settings.log, self._log_file, self.threshold)
            parent.setComponent(ILogObserver, observer)

    def startService(self) -> None:
        """Start, or end the process with one line that says why not."""
        _collect_rarely()
        _allow_open_files()
        on_signal(self._reactor, signal.SIGHUP, self._reload)
        if self._log_file is not None:
            on_signal(self._reactor, signal.SIGUSR1, self._log_file.reopen)
        self._reactor.addSystemEventTrigger("before", "shutdown", self._log_open_connections)
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

    def _log_open_connections(self) -> None:
        """Log what a stop waits for."""
        _log.info(
            "stopping, connections: {connections}; turns that run have {seconds:g} seconds,"
            " or until a second signal",
            connections=len(self.limiter),
            seconds=self._client_listener.shutdown_seconds,
        )

    def _end_all_turns(self) -> None:
        """End the turns that run: the second signal to stop."""
        _log.warn("a second signal: what runs is ended")
        self.limiter.abandon()

    def _reload(self) -> None:
        with suppress(Exception):  # the reloader has logged it
            self.reloads.reload()

    def _give_up(self, line: str) -> NoReturn:
        """End a start that failed as twistd does, without a traceback.

        In the foreground the line goes to the terminal. A daemon hands it to the process that
        waits for its start, and to its log.
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
    with suppress(ValueError, OSError):  # some systems report an infinite limit but have one
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _OPEN_FILES)), hard))


def _collect_rarely() -> None:
    """Make full garbage collections rare: each one stops every stream.

    Objects loaded by now are never collected. A turn leaves some 35 objects in cycles; these
    thresholds let them grow to about 40 MB.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


def summary(settings: Settings) -> str:
    """The configuration in half a line, for the log and ``--check``."""
    if settings.simulator:
        upstream = f"{_count(settings.simulator.accounts, 'simulated account')}"
    else:
        upstream = _count(len(settings.accounts), "account")
    keys = _count(len(settings.keys), "client key") if settings.keys else "no client keys"
    admin = f"admin on {settings.admin.listen}" if settings.admin.listen else "admin off"
    return f"{upstream}, {keys}, listen on {settings.listen}, {admin}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _fail(line: str) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(1)


def on_signal(reactor: Any, number: int, call: Callable[[], object]) -> None:
    """Call this at each signal from now on, between two events of the reactor."""
    signal.signal(number, lambda *_: reactor.callFromThread(call))


def on_second_stop(reactor: Any, call: Callable[[], object]) -> None:
    """Call this at a signal to stop that comes while the reactor stops already.

    Twisted would try to stop once more, and log that as an error.
    """
    reactor.addSystemEventTrigger("before", "shutdown", _replace_stop_handlers, reactor, call)


def _replace_stop_handlers(reactor: Any, call: Callable[[], object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        # Background jobs of a shell ignore Ctrl-C; they go on ignoring it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            on_signal(reactor, number, call)
