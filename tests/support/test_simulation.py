"""The simulator in a process of its own, as other tests use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from simulator import SimulatedAccount
from simulator.accounts import SocketOptions
from simulator.faults import Refuse
from simulator.websocket_faults import BreakAt
from tests.support.simulation import SimulatorProcess
from tests.support.wsclient import Refused, SocketClosed, WsClient

ACCOUNTS = [
    SimulatedAccount("a", websocket=SocketOptions(age_seconds=0.0)),
    SimulatedAccount("b"),
]


@pytest.fixture
def simulated() -> Iterator[SimulatorProcess]:
    simulated = SimulatorProcess(ACCOUNTS, event_delay=0.001)
    yield simulated
    simulated.stop()


def connect(simulated: SimulatorProcess, account: str) -> WsClient:
    port = int(simulated.base_url(account).rsplit(":", 1)[1].split("/")[0])
    return WsClient(port, key=simulated.key(account))


def test_it_serves_and_says_what_it_received(simulated: SimulatorProcess) -> None:
    client = connect(simulated, "b")
    first = client.turn(store=False)[-1]["response"]
    again = client.turn(store=False, previous_response_id=first["id"])
    assert again[-1]["type"] == "response.completed"
    simulated.wait_for(lambda: len(simulated.requests("b")) == 2)
    (record,) = simulated.sockets("b")
    assert (record.requests, record.chained) == (2, 1)
    assert simulated.requests("b")[1].previous_response_id == first["id"]
    assert simulated.sockets("a") == []
    simulated.drop_sockets()
    assert client.wait_closed() == 1006
    client.drop()


def test_it_takes_options_and_faults(simulated: SimulatorProcess) -> None:
    client = connect(simulated, "a")
    assert client.turn()[-1]["error"]["code"] == "websocket_connection_limit_reached"
    client.drop()
    simulated.push("b", Refuse(503), to="upgrade")
    simulated.always("b", BreakAt("output"), to="create")
    with pytest.raises(Refused):
        connect(simulated, "b")
    client = connect(simulated, "b")
    with pytest.raises(SocketClosed):
        client.turn()
    client.drop()
    simulated.clear("b")
    client = connect(simulated, "b")
    assert client.turn()[-1]["type"] == "response.completed"
    client.drop()


def test_a_question_that_fails_says_so(simulated: SimulatorProcess) -> None:
    with pytest.raises(AssertionError, match="KeyError"):
        simulated.base_url("nobody")
