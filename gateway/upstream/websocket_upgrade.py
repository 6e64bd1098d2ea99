"""The request that upgrades a connection to a WebSocket, and how it is refused (RFC 6455 §4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from gateway.protocol.http_head import HttpHead

#: How long the answer to the upgrade may take once there is a connection, in seconds.
UPGRADE_SECONDS = 15.0


class Handshake(NamedTuple):
    """An upgrade request.

    :ivar url: with the scheme ``http`` or ``https``.
    :ivar headers: each character of a value stands for one byte.
    :ivar subprotocols: that are offered.
    """

    url: str
    headers: Mapping[str, str]
    subprotocols: Sequence[str] = ()


class UpgradeRefused(Exception):
    """The upstream answered the upgrade with something else than 101.

    :ivar head: its status and headers.
    :ivar body: as much of its body as was read.
    """

    def __init__(self, head: HttpHead, body: bytes) -> None:
        super().__init__(f"the upgrade was answered with {head.status}")
        self.head = head
        self.body = body


class UpgradeFailed(Exception):
    """The upgrade has no valid answer."""


class UpgradeTimedOut(UpgradeFailed):
    """The upgrade has no answer in time."""


def upgrade_request(handshake: Handshake, key: bytes) -> bytes:
    """Write the request.

    :param key: ``Sec-WebSocket-Key``, which the answer has to prove that it has read.
    """
    target = urlsplit(handshake.url)
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    headers = {
        "host": target.netloc.rpartition("@")[2],
        "upgrade": "websocket",
        "connection": "Upgrade",
        **handshake.headers,
        "sec-websocket-key": key.decode(),
        "sec-websocket-version": "13",
    }
    if handshake.subprotocols:
        headers["sec-websocket-protocol"] = ", ".join(handshake.subprotocols)
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
