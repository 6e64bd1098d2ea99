"""The log: text or flat JSON, one line for each event, to a file or standard output."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

import msgspec
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    formatTime,
)

from gateway.compat import FILE_RESERVE_LOG, HTTP_CLIENT_LOG
from gateway.config import LogSettings

#: A log file is rotated at this size, and so many old ones are kept: a gigabyte in all.
_FILE_BYTES = 100_000_000
_FILES_KEPT = 9

#: Twisted classes that log every connection, or every one that they cannot accept.
_CHATTY = (HTTP_CLIENT_LOG, "twisted.internet.tcp.Port")


#: Characters that let a client's text (a model's name) forge a line or send terminal codes.
_BREAKS = re.compile(r"[\x00-\x08\n-\x1f\x7f-\x9f\u2028\u2029]")


class LogThreshold:
    """The lowest level that is logged; it may change while the gateway runs.

    :param level: ``debug``, ``info``, ``warn`` or ``error``.
    """

    def __init__(self, level: str) -> None:
        self.predicate = LogLevelFilterPredicate(LogLevel.lookupByName(level))
        for namespace in _CHATTY:
            self.predicate.setLogLevelForNamespace(namespace, LogLevel.warn)
        self._level = level

    @property
    def level(self) -> str:
        """The lowest level that is logged."""
        return self._level

    @level.setter
    def level(self, level: str) -> None:
        self.predicate.setLogLevelForNamespace("", LogLevel.lookupByName(level))
        self._level = level


class LogFile:
    """A file that several processes may append lines to; one of them rotates it.

    Each line is one write at the end of the file, so that lines of others are never cut.  A
    rotated file has the number 1, older ones higher numbers.

    :param path: of the file.
    :param rotates: whether this process puts the file aside when it is large; may change.
    """

    def __init__(self, path: str, rotates: bool = True) -> None:
        self.path = os.path.abspath(path)
        self.rotates = rotates
        self._file = self._opened()

    def write(self, text: str) -> None:
        """Append a line."""
        if self.rotates:
            self.rotate_if_large()
        data = text.encode("utf-8", "backslashreplace")
        while data:  # a disk that is nearly full takes a part
            data = data[os.write(self._file, data) :]

    def flush(self) -> None:
        """Everything is written already."""

    def reopen(self) -> None:
        """Open the file of that name: another program has renamed the one so far."""
        opened = self._opened()
        os.close(self._file)
        self._file = opened

    def rotate_if_large(self) -> bool:
        """Put the file aside if it has reached its size.

        :return: whether a new file was begun.
        """
        if os.fstat(self._file).st_size < _FILE_BYTES:
            return False
        try:
            for number in range(_FILES_KEPT, 0, -1):
                older = f"{self.path}.{number - 1}" if number > 1 else self.path
                with suppress(FileNotFoundError):
                    os.replace(older, f"{self.path}.{number}")
            self.reopen()
        except OSError:  # it goes on in the file that it has
            return False
        return True

    def _opened(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)


def log_observer(
    settings: LogSettings,
    file: LogFile | None,
    threshold: LogThreshold | None = None,
    worker: int | None = None,
) -> ILogObserver:
    """The observer that the settings ask for.

    :param file: the file of :func:`log_file`, or None for standard output.
    :param threshold: by default that of the settings.
    :param worker: the number of this worker, which each of its lines names.
    """
    threshold = threshold or LogThreshold(settings.level)
    out: Any = sys.stdout if file is None else file
    line = json_line if settings.format == "json" else text_line
    observer = FileLogObserver(out, partial(line, worker=worker))
    return FilteringLogObserver(observer, [threshold.predicate])


def text_line(event: LogEvent, worker: int | None = None) -> str | None:
    """An event as ``time [namespace] message``, its traceback indented below it.

    :param worker: stands before the namespace, as ``[worker 2, namespace]``.
    """
    if event.get("log_namespace") == FILE_RESERVE_LOG:
        return None
    message = _BREAKS.sub(_escaped, _message(event))
    failure = event.get("log_failure")
    if failure is not None:
        message = f"{message}\n{failure.getTraceback()}".rstrip().replace("\n", "\n    ")
    if not message:
        return None
    namespace = event.get("log_namespace", "-")
    if worker is not None:
        namespace = f"worker {worker}, {namespace}"
    return f"{_time(int(event['log_time']))} [{namespace}] {message}\n"


def json_line(event: LogEvent, worker: int | None = None) -> str | None:
    """An event as a flat JSON object: time, level, namespace, message and its own fields.

    :param worker: the field of that name.
    """
    message = _message(event)
    if event.get("log_namespace") == FILE_RESERVE_LOG or not (message or "log_failure" in event):
        return None
    line: dict[str, Any] = {
        "time": _time(int(event["log_time"])),
        "level": getattr(event.get("log_level"), "name", "info"),
        "namespace": event.get("log_namespace", "-"),
        "message": message,
    }
    if worker is not None:
        line["worker"] = worker
    if event.get("log_namespace", "").startswith("gateway"):
        line.update((name, value) for name, value in event.items() if not name.startswith("log_"))
        if "log_fields" in event:  # made only where they are shown
            line.update(event["log_fields"]())
    failure = event.get("log_failure")
    if failure is not None:
        line["traceback"] = failure.getTraceback()
    return msgspec.json.encode(line, enc_hook=str).decode() + "\n"


def _message(event: LogEvent) -> str:
    """An event's message.  One that brings its text is not formatted: that would take 150 us."""
    return str(event["log_text"]) if "log_text" in event else formatEvent(event)


@lru_cache(maxsize=1)
def _time(second: int) -> str:
    """A time as the log shows it; made once a second."""
    return formatTime(float(second))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
