"""Responses that follow a steered one by themselves, over WebSockets: protocol.md §3.6."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from simulator import SimulatedAccount
from tests.conformance.conftest import Rig, Stage
from tests.conformance.test_controls import incomplete, started, websockets
from tests.support.checks import assert_one_terminal, completed, output_text, types
from tests.support.events import Json, call_item, call_output, new_id, text_item, turn_events, user
from tests.support.gateway import account
from tests.support.simulation import SimulatorProcess
from tests.support.upstream import Exchange
from tests.support.websocket_upstream import WebSocketUpstream, over
from tests.support.wsclient import WsClient

pytestmark = pytest.mark.conformance

STEERS = {"transport": "websocket", "websocket": {"controls": ["steer"]}}


@pytest.fixture(scope="module")
def shared(module_stage: Stage) -> Rig:
    upstream = WebSocketUpstream()
    module_stage.on_close(upstream.stop)
    return Rig(upstream, module_stage.gateway(account("steers", upstream, **STEERS)))


@pytest.fixture
def rig(shared: Rig) -> Iterator[Rig]:
    with shared.borrowed() as rig:
        yield rig


class Steered:
    """A response that is steered, and what the service makes of that.

    :param then: says what comes after the steering input was accepted.
    """

    def __init__(self, then: Callable[[Steered], None], items: list[Json] | None = None) -> None:
        self._then = then
        self.items = [text_item("whole"), text_item("cut")] if items is None else items
        self.successor_id = new_id("resp")
        self.exchange: Exchange

    def __call__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.events = exchange.turn(self.items)
        self.number = self.events[-1]["sequence_number"]
        socket = over(exchange).socket
        before = len(socket.messages)
        exchange.sse(*self.events[:-2])
        exchange.upstream.wait(lambda: len(socket.messages) > before, "a steer")  # type: ignore[attr-defined]
        self.message = socket.messages[before]
        assert self.message["type"] == "response.steer"
        self.say("accepted", self.number)
        self._then(self)
        exchange.complete = True

    def say(self, verdict: str, number: int, **more: object) -> None:
        steer = {"id": "steer_1", "previous_response_id": self.exchange.request.response_id}
        if verdict == "failed":
            steer["input"] = self.message["input"]
        event = {"type": f"response.steer.{verdict}", "sequence_number": number, "steer": steer}
        self.exchange.sse({**event, **more})

    def end_steered(self) -> None:
        self.exchange.sse(incomplete(self.exchange, "steered", self.number + 1, self.items[:1]))

    def begin(self, *items: Json) -> None:
        """The response that follows."""
        request = self.exchange.request
        store = request.body.get("store", True)
        parent, request.response_id = request.response_id, self.successor_id
        about = {"previous_response_id": parent, "store": store}
        self.exchange.sse(*turn_events(list(items), self.successor_id, **about))


def steer(client: WsClient, response_id: str, text: str = "to the left") -> None:
    client.send({"type": "response.steer", "previous_response_id": response_id, "input": text})


def follows(steered: Steered) -> None:
    steered.end_steered()
    steered.begin(text_item("steered"))


@pytest.mark.parametrize("lane", [None, "left"])
def test_10_100_the_response_that_follows_is_a_turn_of_its_lane(rig: Rig, lane: str | None) -> None:
    script = Steered(follows)
    rig.upstream.queue(script)
    client = rig.connect()
    on_lane = {} if lane is None else {"stream_id": lane}
    first = started(client, input=[user("one")], store=False, **on_lane)
    client.create(input=[user("queued")], store=False, previous_response_id=script.successor_id,
                  **on_lane)  # fmt: skip
    steer(client, first)
    ending = client.until_terminal(lane="*")
    assert types(ending)[-2:] == ["response.steer.accepted", "response.incomplete"]
    assert ending[-1]["response"]["incomplete_details"] == {"reason": "steered"}
    following = client.until_terminal(lane="*")
    assert_one_terminal(following)
    response = completed(following)
    assert (response["id"], response["previous_response_id"]) == (script.successor_id, first)
    completed(client.until_terminal(lane="*"))
    assert {e.get("stream_id") for e in (*ending, *following)} == {lane}
    queued = rig.upstream.requests[-1]
    assert queued.previous_response_id == script.successor_id, "continued on its socket"
    assert len(rig.upstream.requests) == 2
    assert len(websockets(rig).sockets) == 1
    log = rig.gateway.log()
    assert f"response={script.successor_id} chained_to={first}" in log, "a turn of its own"


def test_10_100_what_was_said_is_remembered(rig: Rig) -> None:
    rig.upstream.queue(Steered(follows))
    client = rig.connect()
    steer(client, started(client, input=[user("one")], store=False))
    client.until_terminal()
    response_id = completed(client.until_terminal())["id"]
    websockets(rig).sockets[0].drop()
    websockets(rig).sockets[0].wait_gone()
    completed(client.turn(input=[user("two")], previous_response_id=response_id, store=False))
    sent = rig.upstream.requests[-1]
    assert sent.previous_response_id is None
    texts = [part["text"] for item in sent.input for part in texts_of(item)]
    assert texts == ["one", "whole", "to the left", "steered", "two"]


def texts_of(item: Json) -> list[Json]:
    content = item["content"]
    return [{"text": content}] if isinstance(content, str) else list(content)


def test_10_100_a_response_that_ended_well_can_be_followed_too(rig: Rig) -> None:
    def whole(steered: Steered) -> None:
        steered.exchange.sse(*steered.events[-2:])
        steered.begin(text_item("steered"))

    rig.upstream.queue(Steered(whole))
    client = rig.connect()
    steer(client, started(client, input="one"))
    completed(client.until_terminal())
    assert output_text(client.until_terminal()) == "steered"


def test_10_100_input_may_wait_for_the_clients_next_turn(rig: Rig) -> None:
    call = call_item("call_1")

    def pending(steered: Steered) -> None:
        steered.exchange.sse(*steered.events[-2:])
        stub = {"type": "function_call_output", "call_id": "call_1", "name": "shell"}
        reason = "waiting_for_required_input"
        steered.say("pending", steered.number + 1, reason=reason, required_input=[stub])

    rig.upstream.queue(Steered(pending, [text_item("thinking"), call]))
    client = rig.connect()
    first = started(client, input=[user("one")], store=False)
    steer(client, first)
    completed(client.until_terminal())
    assert client.event()["type"] == "response.steer.pending"
    output = call_output("call_1", "done")
    events = client.turn(input=[output], previous_response_id=first, store=False)
    second = completed(events)["id"]
    sent = rig.upstream.requests[-1]
    assert (sent.previous_response_id, sent.input) == (first, [output]), "the service adds it"
    websockets(rig).sockets[0].drop()
    websockets(rig).sockets[0].wait_gone()
    completed(client.turn(input=[user("two")], previous_response_id=second, store=False))
    kinds = [item.get("type", "message") for item in rig.upstream.requests[-1].input]
    assert kinds == [
        *("message", "message", "function_call"),  # one, thinking, the call
        *("message", "function_call_output", "message", "message"),  # left, done, an answer, two
    ]
    assert "to the left" in json.dumps(rig.upstream.requests[-1].input[3])


def test_10_100_input_that_cannot_be_committed_goes_back(rig: Rig) -> None:
    def fails(steered: Steered) -> None:
        steered.exchange.sse(*steered.events[-2:])
        error = {"type": "invalid_request_error", "code": "successor_creation_failed"}
        steered.say("failed", steered.number + 1, error={**error, "message": "no"})

    rig.upstream.queue(Steered(fails))
    client = rig.connect()
    first = started(client, input="one", store=False)
    steer(client, first)
    completed(client.until_terminal())
    failed = client.event()
    assert failed["type"] == "response.steer.failed"
    assert failed["steer"]["input"] == "to the left"
    completed(client.turn(input="two", previous_response_id=first, store=False))
    assert rig.upstream.requests[-1].previous_response_id == first
    assert len(websockets(rig).sockets) == 1


def test_10_100_a_socket_that_is_lost_in_between_costs_nothing(rig: Rig) -> None:
    def lost(steered: Steered) -> None:
        steered.end_steered()
        over(steered.exchange).socket.drop()

    rig.upstream.queue(Steered(lost))
    client = rig.connect()
    first = started(client, input=[user("one")], store=False, instructions="Be kind.")
    steer(client, first)
    client.until_terminal()
    response = completed(client.until_terminal())
    assert response["previous_response_id"] == first
    sent = rig.upstream.requests[-1]
    texts = [part["text"] for item in sent.input for part in texts_of(item)]
    assert texts == ["one", "whole", "to the left"], "the gateway sent it itself, all of it"
    assert sent.body["instructions"] == "Be kind.", "with the settings of the steered turn"


def test_10_100_silence_after_the_end_is_a_refusal(rig: Rig) -> None:
    def unanswered(exchange: Exchange) -> None:
        events = exchange.turn([text_item("whole")])
        exchange.sse(*events[:-1])
        socket = over(exchange).socket
        exchange.upstream.wait(lambda: socket.messages, "a steer")  # type: ignore[attr-defined]
        exchange.sse(*events[-1:])

    rig.upstream.queue(unanswered)
    client = rig.connect()
    first = started(client, input="one")
    steer(client, first)
    completed(client.until_terminal())
    failed = client.event(timeout=12)
    assert (failed["type"], failed["steer"]["input"]) == ("response.steer.failed", "to the left")
    completed(client.turn(input="two", previous_response_id=first))


def test_10_100_a_strict_service_is_steered_and_interrupted_on_one_socket(stage: Stage) -> None:
    """The simulator shares no code with the gateway, and refuses what is not the protocol."""
    simulated = SimulatorProcess([SimulatedAccount("a")], event_delay=0.02)
    stage.on_close(simulated.stop)
    entry = account("a", simulated.base_url("a"), key=simulated.key("a"), transport="websocket")
    entry["websocket"] = {"controls": ["steer", "interrupt"]}
    client = stage.gateway(entry).connect()
    parents: list[str | None] = [None]
    first = started(client, input=[user("a long story about the sea")], store=False)
    steer(client, first, "a short one")
    assert client.until_terminal()[-1]["response"]["incomplete_details"]["reason"] == "steered"
    following = completed(client.until_terminal())
    assert following["previous_response_id"] == first
    parents.append(following["id"])
    second = started(
        client, input=[user("and on")], store=False, previous_response_id=following["id"]
    )
    client.send({"type": "response.interrupt", "response_id": second})
    ended = client.until_terminal()[-1]
    assert ended["response"]["incomplete_details"]["reason"] == "interrupted"
    parents.append(second)
    completed(client.turn(input=[user("go on")], store=False, previous_response_id=second))
    assert [each.previous_response_id for each in simulated.requests("a")] == parents
    assert len(simulated.sockets("a")) == 1


def test_10_100_a_client_that_leaves_meanwhile_frees_the_socket(rig: Rig) -> None:
    def silent(steered: Steered) -> None:
        steered.end_steered()
        steered.exchange.hold()

    rig.upstream.queue(Steered(silent))
    client = rig.connect()
    steer(client, started(client, input="one"))
    client.until_terminal()
    client.close()
    assert websockets(rig).sockets[0].wait_gone()
    completed(rig.connect().turn(input="two"))
