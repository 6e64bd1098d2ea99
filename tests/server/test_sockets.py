"""What is written to an accepted connection goes out at once, whatever it was accepted by."""

from __future__ import annotations

from collections.abc import Callable
from os import fsdecode
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.protocol import Factory, Protocol

from gateway.config import Settings
from gateway.server.connections import ConnectionLimiter
from gateway.server.http_site import ClientSite
from tests.admin.stage import Admin
from tests.support.certificates import self_signed


def clients() -> Any:
    """The listener of both doors; nobody sends a head here."""
    nobody: Any = None
    return ClientSite(reactor, {}, Settings(), nobody, ConnectionLimiter(10), nobody)


def admin() -> Any:
    return Admin().site


async def accepted(factory: Any, endpoint: str, look: Callable[[Any], Any]) -> Any:
    """What ``look`` sees of the gateway's transport of a connection to such a listener."""
    seen: Deferred[Any] = Deferred()
    build = factory.buildProtocol

    def build_and_look(address: Any) -> Any:
        protocol = build(address)
        connection_made = protocol.connectionMade

        def made_and_look() -> None:
            connection_made()
            seen.callback(look(protocol.transport))

        protocol.connectionMade = made_and_look
        return protocol

    factory.buildProtocol = build_and_look
    listening = await serverFromString(reactor, endpoint).listen(factory)
    address = listening.getHost()
    if isinstance(address, UNIXAddress):
        to = f"unix:{fsdecode(address.name)}"
    else:
        to = f"tcp:127.0.0.1:{address.port}"
    client: Any = await clientFromString(reactor, to).connect(Factory.forProtocol(Protocol))
    try:
        return await seen
    finally:
        client.transport.abortConnection()
        await listening.stopListening()


@pytest.mark.parametrize("make", [clients, admin])
@pytest.mark.parametrize("kind", ["tcp", "ssl", "haproxy:tcp"])
@pytest_twisted.ensureDeferred
async def test_no_write_waits_for_an_acknowledgement(
    tmp_path: Path, make: Callable[[], Any], kind: str
) -> None:
    endpoint = f"{kind}:0:interface=127.0.0.1"
    if kind == "ssl":
        key, certificate = self_signed(tmp_path)
        endpoint += f":privateKey={key}:certKey={certificate}"
    at_once, watched = await accepted(
        make(), endpoint, lambda made: (made.getTcpNoDelay(), made.getTcpKeepAlive())
    )
    assert at_once, "small writes wait for the peer's acknowledgement"
    assert watched


@pytest.mark.parametrize("make", [clients, admin])
@pytest_twisted.ensureDeferred
async def test_a_unix_socket_is_accepted_as_it_is(tmp_path: Path, make: Callable[[], Any]) -> None:
    endpoint = f"unix:{tmp_path / 'socket'}"
    assert not await accepted(make(), endpoint, lambda made: made.disconnecting)
