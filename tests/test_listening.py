"""Listening on sockets that another process has bound: by endpoint, shared, and left again."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from gateway.listening import CannotListen, ListenerService


class Greeting(Protocol):
    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"here")
        self.transport.loseConnection()


FACTORY = Factory.forProtocol(Greeting)


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def listener(endpoint: str, *inherited: int, shared: bool = False) -> ListenerService:
    return ListenerService(reactor, endpoint, FACTORY, "listen", inherited, shared)


def pause(seconds: float = 0.02) -> Deferred[Any]:
    return deferLater(reactor, seconds)  # type: ignore[arg-type]


def ask(address: Any, family: int = socket.AF_INET) -> socket.socket:
    client = socket.socket(family)
    client.settimeout(10)
    client.connect(address)
    client.setblocking(False)
    return client


def answer(client: socket.socket) -> bytes:
    with client:
        try:
            return client.recv(100)
        except BlockingIOError:
            return b""


@pytest.mark.parametrize("endpoint", ["tcp:1", "systemd:domain=INET:name=clients"])
@pytest.mark.parametrize("shared", [False, True])
@pytest_twisted.inlineCallbacks
def test_an_inherited_socket_is_adopted_whatever_the_endpoint_names(
    endpoint: str, shared: bool, bound: socket.socket
) -> Any:
    number = os.dup(bound.fileno())
    service = listener(endpoint, number, shared=shared)
    service.startService()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    clients = [ask(bound.getsockname()) for _ in range(3)]
    yield pause()
    assert [answer(client) for client in clients] == [b"here"] * 3
    yield service.stopService()
    client = ask(bound.getsockname())
    assert answer(client) == b"", "the queue of the socket lives on"


@pytest_twisted.inlineCallbacks
def test_a_socket_of_its_own_is_left_to_another_process(bound: socket.socket) -> Any:
    service = listener("tcp:0:interface=127.0.0.1")
    service.startService()
    (number,) = service.descriptors
    with socket.socket(fileno=os.dup(number)) as handed_on:
        service.leave()
        assert service.descriptors == []
        waiting = ask(handed_on.getsockname())
        successor = listener("tcp:0", os.dup(handed_on.fileno()))
        successor.startService()
        yield pause()
        assert answer(waiting) == b"here"
        yield successor.stopService()
    yield service.stopService()


@pytest_twisted.inlineCallbacks
def test_a_unix_socket_keeps_its_file_and_mode(tmp_path: Path) -> Any:
    path = str(tmp_path / "clients.sock")
    service = listener(f"unix:{path}:mode=600")
    service.startService()
    (number,) = service.descriptors
    successor = listener(f"unix:{path}:mode=600", os.dup(number))
    successor.startService()
    service.leave()
    client = ask(path, socket.AF_UNIX)
    yield pause()
    assert answer(client) == b"here"
    assert os.stat(path).st_mode & 0o777 == 0o600
    yield successor.stopService()
    assert os.path.exists(path)


@pytest_twisted.inlineCallbacks
def test_of_several_sockets_some_may_be_left_to_others() -> Any:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        service = listener("tcp:1", os.dup(one.fileno()), os.dup(two.fileno()))
        service.startService()
        answers = []
        for places in ({0}, {1}, {0, 1}):
            service.accept_from(places)
            clients = [ask(each.getsockname()) for each in (one, two)]
            yield pause()
            answers.append([answer(client) for client in clients])
        yield service.stopService()
    # What waited in a queue is served when somebody accepts from it again.
    assert answers == [[b"here", b""], [b"", b"here"], [b"here", b"here"]]


def test_what_is_no_socket_is_one_line() -> None:
    number = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(CannotListen, match=r"^listen: 'tcp:1': cannot listen there: "):
        listener("tcp:1", number).startService()
