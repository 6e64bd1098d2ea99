"""What HTTP serves beside turns (protocol.md §7, §10.82-83), and whose it is (design law 14)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.conftest import Rig, Stage
from tests.support.checks import completed
from tests.support.events import Json, error_body, text_item, user
from tests.support.gateway import account
from tests.support.httpclient import Answer, HttpClient
from tests.support.upstream import Exchange, Upstream

pytestmark = pytest.mark.conformance

ACCEPT = [("content-type", "application/json")]
SEALED: Json = {"id": "cmp_1", "type": "compaction", "encrypted_content": "sealed-by-south"}


class Door:
    """One client over HTTP."""

    def __init__(self, port: int, key: str = "key-laptop") -> None:
        self.client = HttpClient(port, key)

    def get(self, path: str, *headers: tuple[str, str]) -> Answer:
        return self.client.ask("GET", path, headers=headers)

    def delete(self, path: str) -> Answer:
        return self.client.ask("DELETE", path)

    def post(self, path: str, **members: Any) -> Answer:
        return self.client.ask("POST", path, json.dumps(members).encode(), ACCEPT)


@pytest.fixture
def laptop(any_rig: Rig) -> Iterator[Door]:
    door = Door(any_rig.gateway.port)
    yield door
    door.client.drop()


@pytest.fixture
def desk(any_rig: Rig) -> Iterator[Door]:
    door = Door(any_rig.gateway.port, "key-desk")
    yield door
    door.client.drop()


def stored(rig: Rig, by: str) -> str:
    """A stored response of the client `laptop`, made over one of the doors."""
    if by == "websocket":
        return str(completed(rig.connect().turn(input=[user("hi")], store=True))["id"])
    door = Door(rig.gateway.port)
    answer = door.post("/v1/responses", model="gpt-5.5", input="hi", store=True)
    door.client.drop()
    return str(answer.json["id"])


def listing(body: Json, etag: str | None = None) -> Any:
    headers = {} if etag is None else {"ETag": etag}
    return lambda exchange: exchange.json(200, body, headers)


def test_10_82_models_come_in_the_platforms_shape_and_in_codexs(stage: Stage) -> None:
    models = {"object": "list", "data": [{"id": "gpt-5.5", "object": "model", "created": 1}]}
    catalogue = {"models": [{"slug": "gpt-5.5", "priority": 1, "unknown": {"kept": True}}]}

    def answer(exchange: Exchange) -> None:
        codex = "client_version=0.169.0" in exchange.request.target
        exchange.json(200, catalogue if codex else models, {"ETag": '"7"'} if codex else {})

    upstream = stage.upstream(answer)
    gateway = stage.gateway(account("solo", upstream, aliases={"mine": "gpt-5.5"}))
    door = Door(gateway.port)
    listed = door.get("/v1/models").json
    assert [model["id"] for model in listed["data"]] == ["mine", "gpt-5.5"]
    assert listed["data"][1] == models["data"][0], "expected the upstream's own entry"
    assert door.get("/v1/models/mine").json["id"] == "mine"
    assert door.get("/v1/models/none").status == 404
    for prefix in ("/v1", "/backend-api/codex"):
        found = door.get(f"{prefix}/models?client_version=0.169.0")
        assert found.json == catalogue
        assert found.headers["etag"] == '"7"'
    again = door.get("/v1/models?client_version=0.169.0", ("if-none-match", '"7"'))
    assert (again.status, again.body) == (304, b"")
    assert door.get("/v1/models").status == 200, "expected the connection to live on"
    assert len(upstream.requests) == 2, "expected the upstream to be asked once for each shape"


def test_10_83_a_compaction_starts_a_chain_at_the_account_that_sealed_it(stage: Stage) -> None:
    compacted = {"id": "resp_c", "object": "response.compaction", "output": [user("hi"), SEALED]}

    def answer(exchange: Exchange) -> None:
        if exchange.request.target.endswith("/compact"):
            exchange.json(200, compacted)
        else:
            exchange.answer()

    upstreams = {name: stage.upstream(answer) for name in ("north", "south")}
    gateway = stage.gateway(*(account(name, each) for name, each in upstreams.items()))
    door = Door(gateway.port)
    door.post("/v1/responses", model="gpt-5.5", input="first", store=True)  # north's
    by = door.post("/v1/responses/compact", model="gpt-5.5", input=[user("hi")])
    assert by.json == compacted
    sealer = by.headers["x-gateway-account"]
    before = {name: len(each.requests) for name, each in upstreams.items()}
    for number in range(4):
        items = [*compacted["output"], user(f"go on {number}")]  # type: ignore[misc]
        assert door.post("/v1/responses", model="gpt-5.5", input=items, store=False).status == 200
    assert len(upstreams[sealer].requests) == before[sealer] + 4
    assert upstreams[sealer].requests[-1].input[1] == SEALED
    for name, each in upstreams.items():
        assert name == sealer or len(each.requests) == before[name]


def test_10_83_what_is_compacted_is_the_whole_conversation(stage: Stage) -> None:
    """This upstream shows nothing of previous responses, so the gateway sends them along."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.target.endswith("/compact"):
            exchange.json(200, {"output": [SEALED]})
        else:
            exchange.answer()

    upstream = stage.upstream(answer)
    gateway = stage.gateway(account("solo", upstream, continuity="replay"))
    door = Door(gateway.port)
    first = door.post("/v1/responses", model="gpt-5.5", input=[user("one")], store=True).json
    answer_to = door.post(
        "/v1/responses/compact", model="gpt-5.5", previous_response_id=first["id"]
    )
    assert answer_to.json == {"output": [SEALED]}
    sent = upstream.requests[-1]
    assert sent.previous_response_id is None
    assert sent.input == [user("one"), *first["output"]]


@pytest.mark.parametrize("by", ["websocket", "http"])
def test_a_tenant_finds_its_own_responses_over_every_door(
    any_rig: Rig, laptop: Door, by: str
) -> None:
    mine = stored(any_rig, by)
    answer = {"id": mine, "object": "response", "as": ["it", "is"]}
    for method, suffix in (("GET", ""), ("GET", "/input_items?limit=3"), ("POST", "/cancel")):
        any_rig.upstream.queue(listing(answer))
        found = laptop.client.ask(method, f"/v1/responses/{mine}{suffix}")
        assert found.json == answer
        sent = any_rig.upstream.requests[-1]
        assert (sent.method, sent.target) == (method, f"/v1/responses/{mine}{suffix}")
    any_rig.upstream.queue(listing({"id": mine, "deleted": True}))
    assert laptop.delete(f"/v1/responses/{mine}").json["deleted"] is True
    again = laptop.post("/v1/responses", model="gpt-5.5", previous_response_id=mine, input="x")
    assert again.error["code"] == "previous_response_not_found"


@pytest.mark.parametrize("by", ["websocket", "http"])
def test_no_tenant_finds_anothers_over_any_door(any_rig: Rig, desk: Door, by: str) -> None:
    theirs = stored(any_rig, by)
    known = len(any_rig.upstream.requests)
    path = f"/v1/responses/{theirs}"
    for answer in (
        desk.get(path),
        desk.get(f"{path}?stream=true"),
        desk.get(f"{path}/input_items"),
        desk.delete(path),
        desk.post(f"{path}/cancel"),
    ):
        assert answer.status == 404
        assert answer.error == {
            "message": f"Response with id '{theirs}' not found.",
            "type": "invalid_request_error",
            "code": None,
            "param": None,
        }
    for endpoint in ("", "/compact", "/input_tokens"):
        answer = desk.post(
            f"/v1/responses{endpoint}", model="gpt-5.5", previous_response_id=theirs, input="x"
        )
        assert answer.status == 400
        assert answer.error["code"] == "previous_response_not_found"
    events = any_rig.connect(key="key-desk").turn(previous_response_id=theirs)
    assert events[-1]["error"]["code"] == "previous_response_not_found"
    assert len(any_rig.upstream.requests) == known, "expected the upstream to hear nothing of it"
    completed(any_rig.connect().turn(previous_response_id=theirs, store=True))


def test_chat_completions_pass_byte_for_byte(any_rig: Rig, laptop: Door) -> None:
    body = b'{ "model":"gpt-4o", "messages":[{"role":"user","content":"\\u00e9"}], "n": 1.0 }'
    said = b'{"id": "c-1",  "choices": [ ], "usage": {"prompt_tokens": 1}}'
    any_rig.upstream.queue(
        lambda exchange: exchange.reply(200, said, {"Content-Type": "application/json"})
    )
    answer = laptop.client.ask("POST", "/v1/chat/completions", body, ACCEPT)
    assert answer.body == said
    sent = any_rig.upstream.requests[-1]
    assert (sent.target, sent.raw) == ("/v1/chat/completions", body)
    assert sent.header("authorization") == "Bearer upstream-secret-solo"


def test_a_streamed_chat_completion_arrives_as_it_is_made(any_rig: Rig, laptop: Door) -> None:
    pieces = [b'data: {"n": 1}\n\n', b'data: {"n": 2}\n\n', b"data: [DONE]\n\n"]

    def answer(exchange: Exchange) -> None:
        for piece in pieces:
            exchange.chunks(piece)
            if piece is pieces[0]:
                go_on.wait(10)
        exchange.end()

    go_on = threading.Event()
    any_rig.upstream.queue(answer)
    body = json.dumps({"model": "m", "messages": [], "stream": True}).encode()
    laptop.client.send("POST", "/v1/chat/completions", body, ACCEPT)
    head = laptop.client.begin()
    assert head.headers["content-type"].startswith("text/event-stream")
    assert laptop.client.chunk() == pieces[0], "expected the first before there was a second"
    go_on.set()
    rest = b""
    while piece := laptop.client.chunk():
        rest += piece
    assert rest == b"".join(pieces[1:])


def test_a_client_that_leaves_cancels_its_chat_completion(any_rig: Rig, laptop: Door) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.chunks(b"data: {}\n\n")
        exchange.hold()

    any_rig.upstream.queue(answer)
    body = json.dumps({"model": "m", "messages": [], "stream": True}).encode()
    laptop.client.send("POST", "/v1/chat/completions", body, ACCEPT)
    laptop.client.begin()
    laptop.client.drop()
    assert any_rig.upstream.requests[-1].wait_gone(), "expected the upstream to be let go"


def test_one_accounts_trouble_is_never_shown_while_another_can_serve(stage: Stage) -> None:
    def refuse(exchange: Exchange) -> None:
        exchange.json(429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}})

    def answer(exchange: Exchange) -> None:
        exchange.json(200, {"made": "it"})

    refusing: Upstream = stage.upstream(refuse)
    gateway = stage.gateway(account("limited", refusing), account("fine", stage.upstream(answer)))
    door = Door(gateway.port)
    for path in ("/v1/chat/completions", "/v1/responses/compact", "/v1/responses/input_tokens"):
        said = door.post(path, model=path, input="hi", messages=[])
        assert (said.status, said.json) == (200, {"made": "it"}), f"at {path}"
    assert refusing.requests


# --- background ----------------------------------------------------------------------------


def in_background(status: str, **more: Any) -> Any:
    """A script that answers with one object of this status, as it was asked for."""

    def answer(exchange: Exchange) -> None:
        body = exchange.request.body
        assert (body["background"], body["stream"]) == (True, False)
        assert exchange.request.header("accept") == "application/json"
        events = exchange.turn(response_id="resp_later", background=True)
        exchange.json(200, {**events[0]["response"], "status": status, **more})

    return answer


@pytest.mark.parametrize("stream", [None, False])
@pytest.mark.parametrize("status", ["queued", "in_progress", "completed"])
def test_background_is_asked_for_without_a_stream(
    stage: Stage, stream: bool | None, status: str
) -> None:
    """Services give their discounts for that; the client gets the object as it came."""
    made = text_item() if status == "completed" else None
    north = stage.upstream(in_background(status, output=[made] if made else []))
    south = stage.upstream()
    accounts = [account("north", north, background=True), account("south", south)]
    door = Door(stage.gateway(*accounts).port)
    answer = door.post("/v1/responses", model="gpt-5.5", input="hi", background=True, stream=stream)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert (answer.json["id"], answer.json["status"]) == ("resp_later", status)
    assert answer.headers["x-gateway-account"] == "north"
    done = {"id": "resp_later", "object": "response", "status": "completed"}
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        north.queue(lambda exchange: exchange.json(200, done))
        told = door.client.ask(
            method, f"/v1/responses/resp_later{path}", b"" if path == "/cancel" else None
        )
        assert told.json == done
        assert north.requests[-1].target == f"/v1/responses/resp_later{path}"
    desk = Door(stage.gateway(*accounts).port, "key-desk")
    assert desk.get("/v1/responses/resp_later").status == 404
    assert [request.target for request in south.requests] == []
    north.queue(Exchange.answer)
    again = door.post(
        "/v1/responses", model="gpt-5.5", input="on", previous_response_id="resp_later"
    )
    assert (again.status, north.requests[-1].previous_response_id) == (200, "resp_later")
    door.client.drop()
    desk.client.drop()


def test_background_with_a_stream_stays_one(stage: Stage) -> None:
    north = stage.upstream()
    door = Door(stage.gateway(account("north", north, background=True)).port)
    answer = door.post("/v1/responses", model="gpt-5.5", input="hi", background=True, stream=True)
    assert answer.events[-1]["type"] == "response.completed"
    body = north.requests[0].body
    assert (body["background"], body["stream"]) == (True, True)
    door.client.drop()


def test_background_moves_unseen_and_fails_with_a_status(stage: Stage) -> None:
    north = stage.upstream(
        lambda exchange: exchange.json(429, error_body("rate_limit_exceeded", "Slow down."))
    )
    south = stage.upstream(in_background("queued"))
    both = [
        account(name, each, background=True) for name, each in (("north", north), ("south", south))
    ]
    door = Door(stage.gateway(*both).port)
    for _ in range(2):
        answer = door.post("/v1/responses", model="gpt-5.5", input="hi", background=True)
        assert (answer.status, answer.json["status"]) == (200, "queued")
    assert len(north.requests) == 1
    south.queue(lambda exchange: exchange.json(400, error_body("invalid", "No such tool.")))
    answer = door.post("/v1/responses", model="gpt-5.5", input="hi", background=True)
    assert (answer.status, answer.error["message"]) == (400, "No such tool.")
    door.client.drop()


def test_background_at_an_account_that_insists_on_a_stream(stage: Stage) -> None:
    """It is asked once more with one, and from then on."""

    def insists(exchange: Exchange) -> object:
        if not exchange.request.body["stream"]:
            return exchange.json(400, {"detail": "Stream must be set to true"})
        return exchange.answer()

    north = stage.upstream(insists)
    door = Door(stage.gateway(account("north", north, background=True)).port)
    for _ in range(2):
        answer = door.post("/v1/responses", model="gpt-5.5", input="hi", background=True)
        assert answer.status == 200
    assert [request.body["stream"] for request in north.requests] == [False, True, True]
    door.client.drop()
