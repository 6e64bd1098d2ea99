"""What is set on every connection that a listener accepts."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


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
