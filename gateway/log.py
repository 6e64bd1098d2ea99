"""The log: text or flat JSON, one line for each event, to a file or standard output."""

from __future__ import annotations

import os
import re
import sys
from functools import lru_cache
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
from twisted.python.logfile import LogFile

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


def log_file(path: str) -> LogFile:
    """The file to log to; ``reopen`` it after another program has renamed it."""
    folder, name = os.path.split(os.path.abspath(path))
    return LogFile(name, folder, rotateLength=_FILE_BYTES, maxRotatedFiles=_FILES_KEPT)


def log_observer(
    settings: LogSettings, file: LogFile | None, threshold: LogThreshold | None = None
) -> ILogObserver:
    """The observer that the settings ask for.

    :param file: the file of :func:`log_file`, or None for standard output.
    :param threshold: by default that of the settings.
    """
    threshold = threshold or LogThreshold(settings.level)
    out: Any = sys.stdout if file is None else file
    format = json_line if settings.format == "json" else text_line
    observer = FileLogObserver(out, format)
    return FilteringLogObserver(observer, [threshold.predicate])


def text_line(event: LogEvent) -> str | None:
    """An event as ``time [namespace] message``, its traceback indented below it."""
    if event.get("log_namespace") == FILE_RESERVE_LOG:
        return None
    message = _BREAKS.sub(_escaped, _message(event))
    failure = event.get("log_failure")
    if failure is not None:
        message = f"{message}\n{failure.getTraceback()}".rstrip().replace("\n", "\n    ")
    if not message:
        return None
    namespace = event.get("log_namespace", "-")
    return f"{_time(int(event['log_time']))} [{namespace}] {message}\n"


def json_line(event: LogEvent) -> str | None:
    """An event as a flat JSON object: time, level, namespace, message and its own fields."""
    message = _message(event)
    if event.get("log_namespace") == FILE_RESERVE_LOG or not (message or "log_failure" in event):
        return None
    line: dict[str, Any] = {
        "time": _time(int(event["log_time"])),
        "level": getattr(event.get("log_level"), "name", "info"),
        "namespace": event.get("log_namespace", "-"),
        "message": message,
    }
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
