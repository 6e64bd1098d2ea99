"""The sockets of a supervisor: how many, who accepts from them, and what is in the way."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor

from gateway.listening import CannotListen
from gateway.workers.sockets import SharedListener, shares
from tests.support.ports import free_port


@pytest.fixture
def listeners() -> Iterator[list[SharedListener]]:
    made: list[SharedListener] = []
    yield made
    for each in made:
        each.leave()


def listening(
    listeners: list[SharedListener],
    endpoint: str,
    queues: int = 3,
    inherited: Sequence[int] = (),
) -> SharedListener:
    made = SharedListener(reactor, endpoint, "listen", queues, inherited)
    listeners.append(made)
    made.startService()
    return made


def test_a_port_has_a_queue_for_each_worker(listeners: list[SharedListener]) -> None:
    made = listening(listeners, "tcp:0:interface=127.0.0.1")
    assert len({each.getsockname() for each in made.sockets}) == 1
    assert len(made.descriptors) == 3
    address = made.sockets[0].getsockname()
    clients = [socket.create_connection(address, 5) for _ in range(60)]
    queued = []
    for each in made.sockets:
        count = 0
        while True:
            try:
                each.accept()[0].close()
            except BlockingIOError:
                break
            count += 1
        queued.append(count)
    for client in clients:
        client.close()
    assert sum(queued) == 60
    assert all(queued), f"the kernel gave {queued}"


def test_a_port_that_another_gateway_shares_among_its_workers_is_taken(
    listeners: list[SharedListener],
) -> None:
    port = free_port()
    listening(listeners, f"tcp:{port}:interface=127.0.0.1")
    with pytest.raises(CannotListen) as caught:
        listening(listeners, f"tcp:{port}:interface=127.0.0.1")
    assert str(caught.value) == (
        f"listen: 'tcp:{port}:interface=127.0.0.1': cannot listen there: Address already in use"
    )


def test_a_unix_socket_has_one_queue_and_its_mode(
    listeners: list[SharedListener], tmp_path: Path
) -> None:
    path = tmp_path / "clients.sock"
    made = listening(listeners, f"unix:{path}:mode=660")
    assert len(made.sockets) == 1
    assert path.stat().st_mode & 0o777 == 0o660
    with pytest.raises(CannotListen, match="Address already in use"):
        listening(listeners, f"unix:{path}")
    made.stopService()
    assert not path.exists()


def test_a_unix_socket_that_a_crash_left_behind_is_replaced(
    listeners: list[SharedListener], tmp_path: Path
) -> None:
    path = tmp_path / "clients.sock"
    listening(listeners, f"unix:{path}").leave()
    assert path.exists()
    listening(listeners, f"unix:{path}")


def test_what_is_inherited_is_not_bound_again(listeners: list[SharedListener]) -> None:
    first = listening(listeners, "tcp:0:interface=127.0.0.1", 2)
    address = first.sockets[0].getsockname()
    successor = listening(
        listeners, "tcp:0:interface=127.0.0.1", 3, [os.dup(each) for each in first.descriptors]
    )
    first.leave()
    assert [each.getsockname() for each in successor.sockets] == [address, address]


@given(
    sockets=st.integers(1, 9),
    workers=st.integers(1, 9),
    absent=st.sets(st.integers(1, 9), max_size=9),
)
def test_every_queue_is_served_while_there_is_a_worker(
    sockets: int, workers: int, absent: set[int]
) -> None:
    ready = set(range(1, workers + 1)) - absent
    served = shares(sockets, workers, ready)
    assert set(served) == ready
    places = [place for each in served.values() for place in each]
    if not ready:
        assert places == []
    elif sockets == 1:
        assert places == [0] * len(ready), "workers share one queue"
    else:
        assert sorted(places) == list(range(sockets)), "each queue has one worker"
        for worker in ready:
            assert all(place in served[worker] for place in range(worker - 1, sockets, workers)), (
                "its own"
            )
