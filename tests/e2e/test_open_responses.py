"""What the Open Responses specification checks of its WebSocket mode, over both transports.

Specification of April 2026, section on WebSocket: basic, sequential, continuation without
storage, recovery after a reconnect, an unknown id, eviction, and a compacted window. The service
behind the gateway is a simulator in a process of its own, which recalls what it was told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator import SimulatedAccount
from simulator.faults import Refuse
from tests.support.checks import assert_error, completed
from tests.support.events import Json, user
from tests.support.gateway import Gateway
from tests.support.httpclient import HttpClient
from tests.support.simulation import SimulatorProcess

pytestmark = pytest.mark.e2e

TRANSPORTS = ("http", "websocket")
WORD = "marmalade"


class Served:
    """A gateway whose two accounts are one service over each transport."""

    def __init__(self, folder: Path) -> None:
        self.simulated = SimulatorProcess(
            [SimulatedAccount(name) for name in TRANSPORTS], event_delay=0.0
        )
        accounts = [
            {
                "name": name,
                "base_url": self.simulated.base_url(name),
                "key": self.simulated.key(name),
                "transport": name,
                "models": [f"{name}-*"],
                "aliases": {f"{name}-model": "gpt-5.2"},
            }
            for name in TRANSPORTS
        ]
        self.gateway = Gateway(folder, {"accounts": accounts})

    def stop(self) -> None:
        self.gateway.stop()
        self.simulated.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("open-responses"))
    yield served
    served.stop()


def said(response: Json) -> str:
    parts = [part for item in response["output"] for part in item.get("content", ())]
    return " ".join(part.get("text", "") for part in parts)


def asks(**members: Any) -> Json:
    return {"input": [user("Which code word did I give before?")], **members}


def told(**members: Any) -> Json:
    return {"input": [user(f"Remember: the code word is {WORD}.")], **members}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_basic(served: Served, transport: str) -> None:
    client = served.gateway.connect()
    response = completed(client.turn(model=f"{transport}-model", input=[user("Say hello.")]))
    assert response["status"] == "completed"
    assert said(response)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_sequential(served: Served, transport: str) -> None:
    client = served.gateway.connect()
    ids = {
        completed(client.turn(model=f"{transport}-model", input=[user(f"Say {n}.")]))["id"]
        for n in range(3)
    }
    assert len(ids) == 3, "expected a response of its own for each request"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("store", [False, True])
def test_continuation(served: Served, transport: str, store: bool) -> None:
    client = served.gateway.connect()
    model = f"{transport}-model"
    first = completed(client.turn(model=model, **told(store=store)))
    second = completed(
        client.turn(model=model, **asks(store=store, previous_response_id=first["id"]))
    )
    assert WORD in said(second), "the thread was lost"
    sent = served.simulated.requests(transport)[-1]
    if store or transport == "websocket":
        assert len(sent.body["input"]) == 1, "expected only what is new"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_recovery_after_a_reconnect(served: Served, transport: str) -> None:
    model = f"{transport}-model"
    client = served.gateway.connect()
    first = completed(client.turn(model=model, **told(store=False)))
    client.close()
    client = served.gateway.connect()
    refused = client.turn(model=model, **asks(store=False, previous_response_id=first["id"]))
    assert_error(refused[-1], 400, "previous_response_not_found")
    whole = [*told()["input"], *first["output"], *asks()["input"]]
    again = completed(client.turn(model=model, input=whole, store=False))
    assert WORD in said(again)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_unknown_id(served: Served, transport: str) -> None:
    client = served.gateway.connect()
    model = f"{transport}-model"
    refused = client.turn(model=model, **asks(previous_response_id="resp_unknown"))
    assert_error(refused[-1], 400, "previous_response_not_found")
    completed(client.turn(model=model, input=[user("Say hello.")]))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_eviction(served: Served, transport: str) -> None:
    client = served.gateway.connect()
    model = f"{transport}-model"
    first = completed(client.turn(model=model, **told(store=False)))
    served.simulated.push(transport, Refuse(400), to="create")
    failed = client.turn(model=model, **asks(store=False, previous_response_id=first["id"]))
    assert failed[-1]["type"] == "error"
    gone = client.turn(model=model, **asks(store=False, previous_response_id=first["id"]))
    assert_error(gone[-1], 400, "previous_response_not_found")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_compacted_window_starts_a_new_chain(served: Served, transport: str) -> None:
    client = served.gateway.connect()
    model = f"{transport}-model"
    first = completed(client.turn(model=model, **told(store=False)))
    whole = [*told()["input"], *first["output"]]
    http = HttpClient(served.gateway.port)
    body = json.dumps({"model": model, "input": whole}).encode()
    compacted = http.ask("POST", "/v1/responses/compact", body)
    assert compacted.status == 200, compacted.body
    window = [*compacted.json["output"], *asks()["input"]]
    second = completed(client.turn(model=model, input=window, store=False))
    assert WORD in said(second)
    third = completed(
        client.turn(
            model=model, input=[user("Go on.")], store=False, previous_response_id=second["id"]
        )
    )
    assert third["previous_response_id"] == second["id"]
