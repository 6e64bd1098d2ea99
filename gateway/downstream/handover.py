"""Giving a connection to another protocol, whatever its transport is wrapped in."""

from __future__ import annotations

import re
from typing import Any

from twisted.protocols.policies import ProtocolWrapper

_UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:([^\r\n]*)", re.IGNORECASE)


def asks_for_websocket(method: bytes, upgrade: str) -> bool:
    """Whether a request wants to become a WebSocket (RFC 6455 §4.2.1).

    :param upgrade: its ``Upgrade`` header; empty when there is none.
    """
    return method == b"GET" and "websocket" in upgrade.lower()


def head_asks_for_websocket(head: bytes) -> bool:
    """The same of a raw head."""
    found = _UPGRADE.search(head)
    upgrade = found.group(1).decode("latin-1") if found is not None else ""
    return asks_for_websocket(head[: head.find(b" ")], upgrade)


def hand_over(transport: Any, protocol: Any, data: bytes) -> None:
    """Connect ``protocol`` to a transport in use; its first bytes are ``data``.

    TLS and the PROXY protocol sit between socket and protocol as a ``ProtocolWrapper``,
    which then is the transport.
    """
    if isinstance(transport, ProtocolWrapper):
        transport.wrappedProtocol = protocol
    else:
        transport.protocol = protocol
    protocol.makeConnection(transport)
    protocol.dataReceived(data)
