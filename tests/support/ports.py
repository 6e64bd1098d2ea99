"""Ports for the processes that tests start."""

from __future__ import annotations

import itertools
import os
import socket

#: Below where systems take the ports of outgoing connections from, one of which may otherwise
#: have the port by the time the process listens.
_FIRST, _LAST = 20_000, 32_000

#: Processes begin far apart; nothing is handed out twice before all was.
_begin = os.getpid() * 97 % (_LAST - _FIRST)
_ports = itertools.cycle(range(_FIRST, _LAST))
next(itertools.islice(_ports, _begin, None))


def free_port(and_the_next: int = 0) -> int:
    """A port of 127.0.0.1 that nobody listens on.

    :param and_the_next: so many ports after it are free, too.
    """
    for _ in range(_LAST - _FIRST):
        port = next(_ports)
        if all(map(_is_free, range(port, port + 1 + and_the_next))):
            for _ in range(and_the_next):
                next(_ports)
            return port
    raise AssertionError(f"no port from {_FIRST} to {_LAST} is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
