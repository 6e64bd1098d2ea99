"""Commands, replies and deadlines of a connection to Redis, byte by byte."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure

from gateway.state.backend import StateError
from gateway.state.redis_connection import RedisConnection, RedisRefusal, checked
from gateway.state.redis_servers import redis_address

SECONDS = 2.0


class Line:
    """A connection whose server is the test.

    :ivar lost: why it was lost, each time that it was told.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.lost: list[StateError] = []
        self.connection = RedisConnection(self.clock, SECONDS)
        self.connection.lost = self.lost.append
        self.transport = StringTransportWithDisconnection()
        self.transport.protocol = self.connection
        self.transport.abortConnection = self.transport.loseConnection  # type: ignore[method-assign]
        self.connection.makeConnection(self.transport)

    def says(self, data: bytes) -> None:
        self.connection.dataReceived(data)


def outcome(deferred: Deferred[Any]) -> list[Any]:
    """What it fired with, or nothing yet; of an error, the error."""
    found: list[Any] = []
    deferred.addCallbacks(found.append, lambda failure: found.append(failure.value))
    return found


def test_commands_are_sent_at_once_and_answered_in_order() -> None:
    line = Line()
    first = outcome(line.connection.command("GET", b"\xff"))
    second = outcome(line.connection.commands([("INCR", "n"), ("SET", "a", 1)]))
    assert line.transport.value() == (
        b"*2\r\n$3\r\nGET\r\n$1\r\n\xff\r\n"
        b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n"
    )
    line.says(b"$-1\r\n:7\r\n")
    assert first == [None]
    assert second == []
    line.says(b"+OK\r\n")
    assert second == [[7, b"OK"]]


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.data())
def test_replies_may_come_in_any_pieces(values: list[bytes], data: st.DataObject) -> None:
    line = Line()
    answer = outcome(line.connection.commands([("GET", "x")] * len(values)))
    wire = b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in values)
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        assert answer == []
        line.says(wire[:size])
        wire = wire[size:]
    assert answer == [values]


def test_a_refusal_is_the_error_of_its_command_alone() -> None:
    line = Line()
    one = outcome(line.connection.command("SET", "a", "b"))
    three = outcome(line.connection.commands([("A",), ("B",), ("C",)]))
    line.says(
        b"-OOM command not allowed when used memory > 'maxmemory'.\r\n:1\r\n-ERR no\r\n:3\r\n"
    )
    assert isinstance(one[0], RedisRefusal)
    assert one[0].code == "OOM"
    replies = three[0]
    assert [replies[0], str(replies[1]), replies[2]] == [1, "no", 3]
    with pytest.raises(RedisRefusal, match="no"):
        checked(replies)
    assert line.lost == []


def test_a_refusal_quotes_no_arguments() -> None:
    refusal = RedisRefusal("ERR unknown command 'AUTH2', with args beginning with: 'secret' ")
    assert str(refusal) == "unknown command 'AUTH2'"


def test_a_server_that_owes_a_reply_for_too_long_is_left() -> None:
    line = Line()
    line.clock.advance(100)  # it owes nothing
    waits = [outcome(line.connection.command("PING")) for _ in range(3)]
    line.clock.advance(SECONDS * 0.9)
    line.says(b"+PONG\r\n")
    line.clock.advance(SECONDS * 0.9)
    assert waits[1] == []
    line.clock.advance(SECONDS * 0.2)
    assert [str(each[0]) for each in waits[1:]] == ["Redis did not answer within 2 s"] * 2
    assert len(line.lost) == 1
    assert not line.transport.connected
    after = outcome(line.connection.command("PING"))
    assert str(after[0]) == "Redis did not answer within 2 s"
    assert line.clock.getDelayedCalls() == []


def test_a_long_reply_may_take_its_time() -> None:
    line = Line()
    answer = outcome(line.connection.command("GET", "x"))
    line.says(b"$10\r\n")
    for _ in range(10):
        line.clock.advance(SECONDS * 0.9)
        line.says(b"y")
    line.says(b"\r\n")
    assert answer == [b"y" * 10]


def test_the_end_of_the_connection_fails_what_waits() -> None:
    line = Line()
    answer = outcome(line.connection.command("PING"))
    line.connection.connectionLost(Failure(ConnectionLost()))
    assert str(answer[0]) == "Redis closed the connection"
    assert len(line.lost) == 1
    later = outcome(line.connection.command("PING"))
    assert str(later[0]) == "Redis closed the connection"


def test_who_closes_it_is_not_told() -> None:
    line = Line()
    answer = outcome(line.connection.command("PING"))
    line.connection.close()
    assert isinstance(answer[0], StateError)
    assert line.lost == []


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b":1\r\n"])
def test_what_is_no_reply_ends_it(data: bytes) -> None:
    line = Line()
    line.says(data)
    assert "does not speak Redis' protocol" in str(line.lost[0])


def test_an_answer_that_nobody_waits_for_any_longer_is_dropped() -> None:
    line = Line()
    gone = line.connection.command("GET", "a")
    found = outcome(gone)
    stays = outcome(line.connection.command("GET", "b"))
    gone.cancel()
    line.says(b"$1\r\na\r\n$1\r\nb\r\n")
    assert len(found) == 1
    assert stays == [b"b"]


def test_messages_come_between_replies() -> None:
    line = Line()
    heard: list[bytes] = []
    line.connection.received = heard.append
    subscribed = outcome(line.connection.command("SUBSCRIBE", "c"))
    line.says(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")
    pinged = outcome(line.connection.command("PING"))
    line.says(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n")
    assert subscribed == [[b"subscribe", b"c", 1]]
    assert heard == [b"hi"]
    assert pinged == [[b"pong", b""]]


# --- addresses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "places", "name", "login"),
    [
        ("redis://host", [("host", 6379)], "redis host:6379/0", ("", "")),
        ("redis://:p%40ss@[::1]:1/7", [("::1", 1)], "redis [::1]:1/7", ("", "p@ss")),
        ("rediss://me:x:y@host/", [("host", 6379)], "redis host:6379/0", ("me", "x:y")),
        (
            "redis+sentinel://me:p@a,b:7/main/2",
            [("a", 26379), ("b", 7)],
            "redis a:26379,b:7/main/2",
            ("me", "p"),
        ),
    ],
)
def test_addresses(
    url: str, places: list[tuple[str, int]], name: str, login: tuple[str, str]
) -> None:
    address = redis_address(url)
    assert list(address.places) == places
    assert address.name == name
    assert (address.user, address.password) == login
    assert address.tls == url.startswith("rediss")
    assert address.service == ("main" if "sentinel" in url else "")
