"""Giving a connection to another protocol, and what all of them make of its first head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.protocols.policies import ProtocolWrapper


def asks_for_websocket(method: bytes, upgrade: str) -> bool:
    """Whether a request wants to become a WebSocket (RFC 6455 §4.2.1).

    :param upgrade: its ``Upgrade`` header; empty when there is none.
    """
    return method == b"GET" and "websocket" in upgrade.lower()


def headers_of(head: bytes) -> dict[str, str]:
    """The headers of a raw head; see :func:`header_texts`."""
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return header_texts(
        (name.strip(b" \t"), value.strip(b" \t")) for name, _, value in lines if name
    )


def header_texts(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by name in lower case; values of the same name joined by commas.

    Each character stands for one byte (ISO 8859-1, RFC 9110 §5.5): only so a value in any
    encoding goes on as it came.
    """
    texts: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        texts[name] = f"{texts[name]}, {value}" if name in texts else value
    return texts


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
