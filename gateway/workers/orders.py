"""What a supervisor and a worker say to each other about the worker itself.

Everything travels over their link; the settings with their secrets do, too, and so are in no
environment and on no command line.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from gateway.config import Settings

#: Methods that the supervisor answers.
ORDER = "worker.order"
READY = "worker.ready"
FAILED = "worker.failed"

#: Methods that a worker answers.
RECONFIGURE = "worker.reconfigure"
ACCEPT = "worker.accept"
STOP = "worker.stop"
ABANDON = "worker.abandon"
REOPEN = "worker.reopen"
PING = "worker.ping"


class LogOrder(msgspec.Struct, array_like=True):
    """Where a worker logs.

    :ivar path: of the file, or None for standard output.
    :ivar syslog: the prefix of lines in syslog, or None when syslog is not used.
    """

    path: str | None = None
    syslog: str | None = None


class WorkerOrder(msgspec.Struct, array_like=True):
    """What a worker needs for its start.

    :ivar settings: those in force.
    :ivar log: where it logs.
    """

    settings: Settings
    log: LogOrder


class Reconfiguration(msgspec.Struct, array_like=True):
    """The settings to put into force, and those before.

    :ivar settings: the new ones.
    :ivar before: the old ones.
    """

    settings: Settings
    before: Settings


class StopOrder(msgspec.Struct, array_like=True):
    """How a worker ends.

    :ivar handed_over: whether a successor serves on the listening sockets already.
    """

    handed_over: bool = False


_T = TypeVar("_T")

_encoder = msgspec.msgpack.Encoder()


def encode(order: Any) -> bytes:
    """An order as a payload."""
    return _encoder.encode(order)


def decode(payload: bytes, kind: type[_T]) -> _T:
    """An order of this kind.

    :raises msgspec.DecodeError: it is none.
    """
    return msgspec.msgpack.decode(payload, type=kind)
