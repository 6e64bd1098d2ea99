"""The sockets that listeners accept: what is set on each, and whether there can be more."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.logger import Logger

#: The part of the files that may be open which clients leave to upstreams, operators and the log,
#: as one in so many.
_RESERVED = 4

#: How long a shortage is told of after its last sign, in seconds.
_SHORT_SECONDS = 60.0

_log = Logger(namespace="gateway.sockets")


def set_up(transport: Any) -> None:
    """Send what is written at once, and have the kernel notice a peer that is gone.

    Without TCP_NODELAY the kernel holds back a small segment until the one before it was
    acknowledged, which clients delay by up to 40 ms: the first delta of a steady stream would
    come that late.

    :param transport: of the socket, or what TLS or the PROXY protocol wraps around it.
    """
    with suppress(AttributeError, OSError):  # a UNIX socket has neither
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(1)


class OpenFiles:
    """Whether this process may open enough files for one more client.

    The kernel gives each new one the lowest free number: a high one says that all below it are
    in use, and costs nothing to look at.

    :param now: in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._short_at: float | None = None

    @property
    def are_short(self) -> bool:
        """Whether they were short a moment ago."""
        return self._short_at is not None and self._now() - self._short_at < _SHORT_SECONDS

    def suffice(self, transport: Any, reserved: int = _RESERVED) -> bool:
        """Whether the client behind ``transport`` leaves enough to everything else.

        :param reserved: the part that is enough, as one in so many.
        """
        try:
            number: int = transport.fileno()
        except AttributeError:
            return True
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit == resource.RLIM_INFINITY or number < limit - limit // reserved:
            return True
        self.ran_short(limit)
        return False

    def ran_short(self, limit: int) -> None:
        """There are too few: say so once, as long as it lasts."""
        if not self.are_short:
            _log.error(
                "clients are turned away: nearly all of the {limit} files that this process may"
                " open are open; raise LimitNOFILE (ulimit -n)",
                limit=limit,
            )
        self._short_at = self._now()
