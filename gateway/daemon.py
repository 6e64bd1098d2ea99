"""What a process has from twistd: its log, its pidfile, its signals, and a start that may fail."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any, NoReturn

from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized

from gateway.config import LogSettings
from gateway.inheritance import Succession
from gateway.log import LogFile, LogThreshold, log_observer

_log = Logger(namespace="gateway.service")

#: The limit of open files, if the system allows it.
_OPEN_FILES = 1_048_576

#: What twistd calls its log when it has no other name and no terminal.
_DEFAULT_LOG = "twistd.log"


class Daemon:
    """The part of a process that twistd made: the operator's log, pidfile and status pipe.

    :param twistd: the options of twistd itself.
    :ivar log_file: the file that is logged to; None for standard output and syslog.
    """

    def __init__(self, twistd: MutableMapping[str, Any] | None) -> None:
        self._twistd: MutableMapping[str, Any] = {} if twistd is None else twistd
        self.log_file: LogFile | None = None
        self._status_pipe: int | None = None

    @property
    def syslog_prefix(self) -> str | None:
        """The prefix of lines in syslog; None when syslog is not used."""
        return str(self._twistd.get("prefix")) if self._twistd.get("syslog") else None

    @property
    def pidfile(self) -> str:
        """The path of the pidfile that twistd removes at the end; empty without one."""
        return self._twistd.get("pidfile") or ""

    @property
    def log_path(self) -> str | None:
        """The path of the log file; None for standard output and syslog."""
        return None if self.log_file is None else self.log_file.path

    def open_log(self, parent: Any, settings: LogSettings, threshold: LogThreshold) -> None:
        """Set the application's log, unless the operator chose syslog.

        :param parent: the application, or a service that is none.
        """
        if isinstance(parent, Componentized) and self.syslog_prefix is None:
            self.log_file = self._opened()
            observer = log_observer(settings, self.log_file, threshold)
            parent.setComponent(ILogObserver, observer)

    @property
    def succession(self) -> Succession:
        """What a successor gets of it."""
        return Succession(self.pidfile, self.log_path)

    def succeed(self, former: Succession) -> None:
        """Take over the pidfile of the process before this one."""
        path = former.pidfile
        if not path:
            return
        try:
            with open(f"{path}.new", "w") as file:
                file.write(str(os.getpid()))
            os.replace(f"{path}.new", path)
        except OSError as error:
            _log.error("the pidfile {path}: {error}", path=path, error=error.strerror)
        self._twistd["pidfile"] = path

    def hand_over(self) -> None:
        """Leave the pidfile and the rotation of the log to a successor."""
        self._twistd["pidfile"] = ""
        if self.log_file is not None:
            self.log_file.rotates = False

    def hold_status(self) -> None:
        """Let the process that waits for the start of a daemon wait for more than this start."""
        self._status_pipe = self._twistd.get("statusPipe")
        self._twistd["statusPipe"] = None

    def release_status(self) -> None:
        """Let it wait for twistd again."""
        self._twistd["statusPipe"], self._status_pipe = self._status_pipe, None

    def started(self) -> None:
        """Tell the process that waits for the start of a daemon that it was good."""
        self._report(b"0")

    def fail(self, line: str) -> NoReturn:
        """End a start that failed after twistd has gone on, without a traceback."""
        self._remove_pidfile()
        self._report(b"1 " + line.encode())
        _log.error("{line}", line=line)
        if self.log_file is not None or self.syslog_prefix is not None:
            print(line, file=sys.__stderr__, flush=True)
        os._exit(1)  # the reactor would go on after an exception

    def _report(self, status: bytes) -> None:
        pipe, self._status_pipe = self._status_pipe, None
        if pipe is not None:
            with suppress(OSError):  # nobody waits any more
                os.write(pipe, status)
            os.close(pipe)

    def _remove_pidfile(self) -> None:
        if self.pidfile and os.path.exists(self.pidfile):
            os.unlink(self.pidfile)

    def give_up(self, line: str) -> NoReturn:
        """End a start that failed as twistd does, without a traceback.

        In the foreground the line goes to the terminal. A daemon hands it to the process that
        waits for its start, and to its log.
        """
        self._remove_pidfile()
        status_pipe = self._twistd.get("statusPipe")
        if status_pipe is not None:
            os.write(status_pipe, b"1 " + line.encode())
            _log.error("{line}", line=line)
        else:
            print(line, file=sys.__stderr__)
        raise SystemExit(1)

    def _opened(self) -> LogFile | None:
        """The file to log to, or None for standard output."""
        path = self._logfile()
        try:
            return None if path is None else LogFile(path)
        except OSError as error:
            self.give_up(f"responses-gateway: --logfile '{path}': {error.strerror}")

    def _logfile(self) -> str | None:
        logfile = self._twistd.get("logfile")
        if logfile == "-" or (not logfile and self._twistd.get("nodaemon", True)):
            return None
        return logfile or _DEFAULT_LOG


# --- the process ---------------------------------------------------------------------------


def allow_open_files() -> None:
    """A connection takes two files while a turn runs; the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems report an infinite limit but have one
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _OPEN_FILES)), hard))


def collect_rarely() -> None:
    """Make full garbage collections rare: each one stops every stream.

    Objects loaded by now are never collected. A turn leaves some 35 objects in cycles; these
    thresholds let them grow to about 40 MB.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


# --- signals -------------------------------------------------------------------------------


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
