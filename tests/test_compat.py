"""The private parts of Twisted and Autobahn: still there, and touched by ``gateway.compat`` alone.

A failure here after an update says which part the new release moved, and which modules rely on it.
"""

from __future__ import annotations

import ast
import configparser
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from autobahn.twisted.websocket import WebSocketClientProtocol, WebSocketServerProtocol
from packaging.requirements import Requirement
from twisted.internet import abstract, tcp, unix
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.web import client, http

from gateway.compat import write_at_once

ROOT = Path(__file__).parent.parent
COMPAT = ROOT / "gateway" / "compat.py"
SOURCES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "gateway").rglob("*.py"))}
LIBRARIES = ("twisted", "autobahn", "treq")


class Part(NamedTuple):
    """One private part.

    :ivar owner: makes the object that has it.
    :ivar used_by: the name in ``gateway.compat`` that needs it.
    """

    library: str
    owner: Callable[[], Any]
    place: str
    name: str
    used_by: str


def channel() -> Any:
    """A server's channel that has read the line of a request and one of its headers."""
    made = http.HTTPChannel()
    made.makeConnection(StringTransport())
    made.dataReceived(b"GET / HTTP/1.1\r\nhost: here\r\n")
    return made


def http_client_module() -> Any:
    return importlib.import_module("twisted.web._newclient")


CHANNEL = (
    "_buffer",
    "_busyReceiving",
    "_command",
    "_dataBuffer",
    "_networkProducer",
    "_optimisticEagerReadSize",
    "_path",
    "_receivedHeaderCount",
    "_receivedHeaderSize",
    "_respondToBadRequestAndDisconnect",
    "_send100Continue",
    "_version",
)
CHANNEL_AT = "twisted.web.http.HTTPChannel"
CLIENT_AT = "twisted.web._newclient"
PARTS = [
    Part(
        "Twisted", lambda: client, "twisted.web.client", "_HTTP11ClientFactory", "HTTP_CLIENT_LOG"
    ),
    Part(
        "Twisted",
        lambda: tcp,
        "twisted.internet.tcp",
        "_FileDescriptorReservation",
        "FILE_RESERVE_LOG",
    ),
    Part(
        "Twisted",
        lambda: unix.Port("", None),
        "twisted.internet.unix.Port",
        "_fromListeningDescriptor",
        "adopt_unix_port",
    ),
    Part(
        "Twisted",
        lambda: unix.Port("", None),
        "twisted.internet.unix.Port",
        "_preexistingSocket",
        "adopt_unix_port",
    ),
    Part(
        "Twisted",
        lambda: tcp.Port(0, None),
        "twisted.internet.tcp.Port",
        "_shouldShutdown",
        "leave_port",
    ),
    Part(
        "Twisted",
        abstract.FileDescriptor,
        "twisted.internet.abstract.FileDescriptor",
        "_tempDataBuffer",
        "write_at_once",
    ),
    Part("Twisted", http_client_module, CLIENT_AT, "STATUS", "is_reading_head"),
    Part("Twisted", http_client_module, CLIENT_AT, "HEADER", "is_reading_head"),
    Part(
        "Twisted",
        lambda: http_client_module().HTTP11ClientProtocol(),
        f"{CLIENT_AT}.HTTP11ClientProtocol",
        "_parser",
        "is_reading_head",
    ),
    Part(
        "Twisted",
        lambda: client.HTTPConnectionPool(None),
        "twisted.web.client.HTTPConnectionPool",
        "_connections",
        "kept_connections",
    ),
    *(Part("Twisted", channel, CHANNEL_AT, name, "ExtensibleHTTPChannel") for name in CHANNEL),
    Part(
        "autobahn",
        lambda: WebSocketServerProtocol,
        "autobahn.twisted.websocket.WebSocketServerProtocol",
        "_dataReceived",
        "websocket_data_received",
    ),
    Part(
        "Autobahn",
        lambda: WebSocketClientProtocol,
        "autobahn.websocket.protocol.WebSocketProtocol",
        "_fail_connection",
        "ExtensibleWebSocketClient",
    ),
]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def users_of(name: str) -> str:
    """The modules that import a name of ``gateway.compat``."""
    users = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "gateway.compat"
        if name in [alias.name for alias in node.names]
    ]
    return ", ".join(users)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_the_installed_release_has_the_private_part(part: Part) -> None:
    try:
        found = hasattr(part.owner(), part.name)
    except Exception as error:
        pytest.fail(f"{part.place} cannot be made as gateway/compat.py expects: {error!r}")
    assert found, (
        f"{part.library} {version(part.library)} moved {part.place}.{part.name}: "
        f"gateway.compat.{part.used_by} relies on it, and {users_of(part.used_by)} on that"
    )


class Socket:
    """Takes so many bytes at a time, or fails."""

    def __init__(self, *takes: int | OSError) -> None:
        self.takes = list(takes)
        self.got = b""

    def setblocking(self, blocks: bool) -> None:
        assert not blocks

    def fileno(self) -> int:
        return -1

    def send(self, data: memoryview) -> int:
        takes = self.takes.pop(0)
        if isinstance(takes, OSError):
            raise takes
        self.got += data[:takes]
        return min(takes, len(data))


class Reactor:
    """Knows what waits to be written."""

    def __init__(self) -> None:
        self.writers: list[Any] = []

    def addWriter(self, writer: Any) -> None:
        if writer not in self.writers:
            self.writers.append(writer)

    def removeWriter(self, writer: Any) -> None:
        self.writers.remove(writer)


def connection(*takes: int | OSError) -> tuple[Any, Socket, Reactor]:
    """A connected transport, its socket and its reactor."""
    socket, reactor = Socket(*takes), Reactor()
    transport: Any = tcp.Connection(socket, None, reactor)  # type: ignore[arg-type]
    transport.connected = 1
    return transport, socket, reactor


def test_what_the_socket_takes_is_written_at_once() -> None:
    transport, socket, reactor = connection(9)
    write_at_once(transport, b"all of it")
    assert socket.got == b"all of it"
    assert reactor.writers == []


def test_what_the_socket_does_not_take_is_written_in_order() -> None:
    transport, socket, reactor = connection(3, 100)
    write_at_once(transport, b"one two")
    write_at_once(transport, b" three")  # behind what waits
    assert (socket.got, reactor.writers) == (b"one", [transport])
    assert transport.doWrite() is None
    assert (socket.got, reactor.writers) == (b"one two three", [])


def test_a_full_socket_pauses_its_producer() -> None:
    transport, socket, _ = connection(10)
    producer = Paused()
    transport.registerProducer(producer, True)
    write_at_once(transport, b"x" * (transport.bufferSize + 10))
    assert not producer.paused
    write_at_once(transport, b"x")
    assert producer.paused
    assert len(socket.got) == 10


class Paused:
    """A producer that notes whether it is paused."""

    paused = False

    def pauseProducing(self) -> None:
        self.paused = True


def test_an_error_of_the_socket_is_left_to_the_reactor() -> None:
    transport, _, reactor = connection(OSError(32, "broken pipe"), OSError(32, "broken pipe"))
    write_at_once(transport, b"lost")
    assert reactor.writers == [transport]
    assert isinstance(transport.doWrite(), ConnectionLost)


def test_nothing_is_written_past_a_close_that_has_begun() -> None:
    transport, socket, reactor = connection(100)
    transport.disconnecting = 1
    write_at_once(transport, b"last words")
    assert (socket.got, reactor.writers) == (b"", [transport])


def test_other_transports_write_as_they_do() -> None:
    transport = StringTransport()
    write_at_once(transport, b"bytes")
    assert transport.value() == b"bytes"


def test_a_head_is_recognised_by_the_states_of_the_clients_parser() -> None:
    from gateway.compat import is_reading_head

    newclient = http_client_module()
    protocol = newclient.HTTP11ClientProtocol()
    protocol.makeConnection(StringTransport())
    assert not is_reading_head(protocol)
    protocol.request(newclient.Request(b"GET", b"/", http.Headers({b"host": [b"here"]}), None))
    assert is_reading_head(protocol)
    protocol.dataReceived(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n")
    assert is_reading_head(protocol)
    protocol.dataReceived(b"\r\nhel")
    assert not is_reading_head(protocol), (
        f"Twisted {version('Twisted')} changed the states of its HTTP client's parser"
    )


def test_every_part_is_needed_and_every_need_is_tested() -> None:
    """What compat.py touches is what the table above has."""
    touched = {
        node.attr
        for node in ast.walk(SOURCES[COMPAT])
        if isinstance(node, ast.Attribute) and is_private(node.attr)
    }
    for where, _, name in private_imports(SOURCES[COMPAT]):
        touched.add(name)
        assert where in {part.place for part in PARTS}
    assert touched == {part.name for part in PARTS}


@pytest.mark.parametrize("name", sorted({part.used_by for part in PARTS}))
def test_nothing_in_compat_is_left_over(name: str) -> None:
    assert users_of(name), f"no module needs gateway.compat.{name} any more"


# --- nothing beside compat.py ----------------------------------------------------------------


def private_imports(tree: ast.AST) -> Iterator[tuple[str, int, str]]:
    """Imports of private modules and names of the libraries: module, line and name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        else:
            continue
        for module, name in names:
            path = [*module.split("."), name]
            if path[0] in LIBRARIES and any(map(is_private, path)):
                yield module, node.lineno, name


def defined_names(tree: ast.AST) -> Iterator[str]:
    """What a module defines: functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@functools.cache
def private_names_of(owner: type) -> set[str]:
    """The private names that a class's source mentions as its own."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except OSError:
        return set()
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names.update(name for name in vars(owner))
    return set(filter(is_private, names))


def test_no_other_module_imports_private_names() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {module} {name}"
        for path, tree in SOURCES.items()
        if path != COMPAT
        for module, line, name in private_imports(tree)
    ]
    assert not found, "\n".join(found)


def test_no_other_module_names_private_things_in_text() -> None:
    private = re.compile(rf"\b(?:{'|'.join(LIBRARIES)})(?:\.\w+)*\._[a-zA-Z]")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        if path != COMPAT
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if private.search(line)
    ]
    assert not found, f"private names of libraries in {found}"


def test_no_other_module_touches_private_attributes_of_others() -> None:
    """A private attribute that the gateway never defines belongs to a library."""
    ours = {name for tree in SOURCES.values() for name in defined_names(tree)}
    ours |= {"_replace", "_asdict", "_fields", "_make"}  # what a NamedTuple has
    ours.add("_exit")  # of os, where it is public
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.attr}"
        for path, tree in SOURCES.items()
        if path != COMPAT
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in ours
    ]
    assert not found, "\n".join(found)


def test_no_subclass_shares_a_private_name_with_its_library() -> None:
    """Such a name would be overwritten on one side, or is relied on without saying so."""
    found = []
    for path in SOURCES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path == COMPAT or path.name == "__init__.py":
            continue
        for owner in vars(importlib.import_module(name)).values():
            if not inspect.isclass(owner) or owner.__module__ != name:
                continue
            theirs: set[str] = set()
            for base in owner.__mro__[1:]:
                if base.__module__.partition(".")[0] in LIBRARIES:
                    theirs |= private_names_of(base)
            found += [
                f"{name}.{owner.__name__}: {each}" for each in private_names_of(owner) & theirs
            ]
    assert not found, "\n".join(found)


# --- the bounds in setup.cfg -----------------------------------------------------------------


def requirements() -> list[Requirement]:
    """What setup.cfg has installed with the gateway."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"].splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda each: each.name)
def test_releases_that_were_not_tried_are_not_installed(requirement: Requirement) -> None:
    bounds = requirement.specifier
    assert any(each.operator in ("<", "<=") for each in bounds), (
        f"setup.cfg has no upper bound for {requirement.name}: raise it deliberately"
    )
    assert version(requirement.name) in bounds
