"""The OpenAI Python SDK over HTTP against a whole gateway: every endpoint it knows.

    SDK ──HTTP──▶ gateway (twistd) ──▶ the simulator: "north" and "south" keep responses,
                                       "plain" keeps none, "codex" is the ChatGPT backend,
                                       "grok" knows no `additional_tools`

The accounts serve different models, so that a test chooses whom it talks to by the model's name.
"""

from __future__ import annotations

import gzip
import http.client
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from simulator import SimulatedAccount
from simulator.faults import CloseAfter
from simulator.request_log import LoggedRequest
from tests.simulator.running import RunningSimulator
from tests.support.gateway import CLIENT_KEYS, Gateway, account

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.responses import Response

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.e2e

STORED, PLAIN, CODEX, GROK = "gpt-5.5", "gpt-plain", "gpt-codex", "grok-5"
ALIAS = "our-own-name"
SECONDS = 30.0
BACKGROUND_SECONDS = 0.5
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
CHAT_WEATHER: Any = {
    "type": "function",
    "function": {key: WEATHER[key] for key in ("name", "parameters")},
}


class Parties:
    """One gateway and the simulator behind it, for all tests of this module."""

    def __init__(self, running: RunningSimulator, gateway: Gateway, transport: str) -> None:
        self.running = running
        self.gateway = gateway
        self.transport = transport
        self.base_url = f"http://127.0.0.1:{gateway.port}/v1"

    def client(self, key: str = "laptop") -> OpenAI:
        return openai.OpenAI(
            base_url=self.base_url, api_key=CLIENT_KEYS[key], max_retries=0, timeout=SECONDS
        )

    @property
    def requests(self) -> list[LoggedRequest]:
        """What reached the accounts in this test, the oldest first; without upgrades."""
        return [each for each in self.running.simulator.requests if each.endpoint != "upgrade"]

    def reached(self, path_ending: str) -> list[LoggedRequest]:
        return [entry for entry in self.requests if entry.path.endswith(path_ending)]

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"never came true: {what}"
            time.sleep(0.02)

    def raw(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, Any]:
        """A request the SDK would not send, and its JSON answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=SECONDS)
        sent = {"authorization": f"Bearer {CLIENT_KEYS['laptop']}"}
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


@pytest_twisted.async_yield_fixture(
    scope="module", params=["http", pytest.param("websocket", marks=pytest.mark.all_clients)]
)
async def parties(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Parties]:
    simulated = [
        SimulatedAccount("north", key="upstream-secret-north", models=(STORED,)),
        SimulatedAccount("south", key="upstream-secret-south", models=(STORED,)),
        SimulatedAccount("plain", key="upstream-secret-plain", models=(PLAIN,), mode="stateless"),
        SimulatedAccount(
            "codex",
            key="upstream-secret-codex",
            models=(CODEX,),
            mode="stateless",
            dialect="chatgpt",
        ),
        SimulatedAccount("grok", key="upstream-secret-grok", models=(GROK,), dialect="xai"),
    ]
    running = RunningSimulator(accounts=simulated, background_seconds=BACKGROUND_SECONDS)
    url = running.service.base_url
    accounts = [
        account("north", url("north"), models=[STORED], background=True),
        account("south", url("south"), models=[STORED], background=True),
        account("plain", url("plain"), models=[PLAIN, ALIAS], aliases={ALIAS: PLAIN}),
        account("codex", url("codex"), models=[CODEX], preset="chatgpt"),
        account("grok", url("grok"), models=[GROK], preset="xai"),
    ]
    for entry in accounts:
        entry["transport"] = request.param
    folder: Path = tmp_path_factory.mktemp("gateway")
    gateway = await deferToThread(Gateway, folder, {"accounts": accounts})
    yield Parties(running, gateway, request.param)
    try:
        await deferToThread(gateway.stop)
    finally:
        await running.stop()


def uses_sdk(test: Callable[[OpenAI, Parties], None]) -> Any:
    """A test that blocks, as the SDK does: it runs in a thread beside the simulator's reactor."""

    @pytest_twisted.ensureDeferred
    async def run(parties: Parties) -> None:
        parties.running.simulator.requests.clear()
        start = len(parties.gateway.log())
        try:
            await deferToThread(test, parties.client(), parties)
        except BaseException:
            print(parties.gateway.log()[start:])
            for entry in parties.requests:
                print(entry, entry.path, entry.error)
            raise
        parties.gateway.check_log(start)

    return run


def ask(client: OpenAI, given: Any, model: str = STORED, **more: Any) -> Response:
    return client.responses.create(model=model, input=given, **more)


def tool_output(response: Response, text: str) -> dict[str, Any]:
    (call,) = (item for item in response.output if item.type == "function_call")
    assert json.loads(call.arguments) == {"city": "Paris"}
    return {"type": "function_call_output", "call_id": call.call_id, "output": text}


# ---- POST /v1/responses


@pytest.mark.parametrize("streamed", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("model", [STORED, PLAIN, CODEX, GROK])
@pytest_twisted.ensureDeferred
async def test_a_tool_conversation_by_previous_ids(
    parties: Parties, model: str, streamed: bool
) -> None:
    """Chained or replayed, streamed or not, over any kind of account: the client sees no odds."""

    def conversation() -> None:
        client = parties.client()

        def turn(given: Any, **more: Any) -> Response:
            if not streamed:
                return ask(client, given, model, tools=[WEATHER], **more)
            stream = client.responses.create(
                model=model, input=given, tools=[WEATHER], stream=True, **more
            )
            events = list(stream)
            numbers = [getattr(event, "sequence_number", None) for event in events]
            counted = [number for number in numbers if number is not None]
            assert counted == sorted(set(counted)), "sequence numbers increase"
            assert events[-1].type == "response.completed"
            assert events[0].response.id == events[-1].response.id  # type: ignore[union-attr]
            return events[-1].response

        first = turn("The code word is heron. Call get_weather in Paris.")
        second = turn([tool_output(first, "sunny")], previous_response_id=first.id)
        assert "sunny" in second.output_text
        if model in (STORED, GROK):
            assert second.previous_response_id == first.id
        third = turn("What was the code word?", previous_response_id=second.id)
        assert third.output_text == "The code word is heron."
        fork = turn([tool_output(first, "rainy")], previous_response_id=first.id)
        assert "rainy" in fork.output_text, "an older response can be continued, too"

    parties.running.simulator.requests.clear()
    await deferToThread(conversation)
    answered = [entry for entry in parties.requests if entry.status == 200]
    assert len(answered) == 4
    assert len({entry.account for entry in answered}) == 1, "the conversation changed its account"
    chained = [entry.previous_response_id is not None for entry in answered]
    if parties.transport == "websocket" and model != STORED:
        expected = [False, True, True, False]  # only the latest response of a socket
    else:
        expected = [False, *[model in (STORED, GROK)] * 3]
    assert chained == expected


@uses_sdk
def test_what_the_sdk_makes_of_a_stream(client: OpenAI, parties: Parties) -> None:
    with client.responses.stream(model=STORED, input="hello there") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "hello there" in final.output_text
    assert "".join(deltas) == final.output_text


@uses_sdk
def test_a_client_that_leaves_ends_the_generation(client: OpenAI, parties: Parties) -> None:
    simulator = parties.running.simulator
    simulator.event_delay = 0.2
    try:
        with client.responses.create(model=STORED, input="hello", stream=True) as stream:
            next(stream)
        entry = parties.requests[-1]
        parties.wait_for(lambda: entry.outcome == "cancelled", "the upstream's stream is left")
    finally:
        simulator.event_delay = 0.0


@uses_sdk
def test_a_client_that_waits_no_longer_ends_the_generation(
    client: OpenAI, parties: Parties
) -> None:
    simulator = parties.running.simulator
    simulator.event_delay = 0.5
    try:
        with pytest.raises(openai.APITimeoutError):
            ask(client.with_options(timeout=1.0), "hello")
        entry = parties.requests[-1]
        parties.wait_for(lambda: entry.outcome == "cancelled", "the upstream's stream is left")
        assert len(parties.requests) == 1
    finally:
        simulator.event_delay = 0.0


@uses_sdk
def test_an_upstream_lost_after_output_is_a_failed_response(
    client: OpenAI, parties: Parties
) -> None:
    """What was seen cannot be taken back; whoever saw nothing gets an answer after all."""
    faults = parties.running.simulator.faults
    for name in ("north", "south"):
        faults.push(name, CloseAfter(6))
    events = list(client.responses.create(model=STORED, input="hello", stream=True))
    failed = events[-1]
    assert failed.type == "response.failed"
    assert failed.response.error is not None
    assert failed.response.error.code == "server_error"
    assert failed.response.id == events[0].response.id  # type: ignore[union-attr]
    assert len(parties.requests) == 1, "a turn was sent again after its output was seen"
    for name in ("north", "south"):
        faults.clear(name)
    assert "hello" in ask(client, "hello").output_text


@uses_sdk
def test_refusals_have_the_apis_shape(client: OpenAI, parties: Parties) -> None:
    orphan: Any = {"type": "function_call_output", "call_id": "call_1", "output": "x"}
    with pytest.raises(openai.BadRequestError, match="No tool call found") as caught:
        ask(client, [orphan])
    assert caught.value.param == "input"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "x", previous_response_id="resp_nobody")
    assert caught.value.code == "previous_response_not_found"
    with pytest.raises(openai.APIStatusError) as unserved:
        ask(client, "x", "gpt-unknown")
    assert unserved.value.status_code in (400, 404)
    assert unserved.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="nobody").responses.create(model=STORED, input="x")
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/responses/resp_1", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/chat/completions", 405),
    ):
        answered, body = parties.raw(method, path)
        assert (answered, set(body)) == (status, {"error"}), (method, path)
        assert {"message", "type", "param", "code"} <= set(body["error"])


@uses_sdk
def test_compressed_requests(client: OpenAI, parties: Parties) -> None:
    import zstandard

    body = json.dumps({"model": STORED, "input": "hello"}).encode()
    for name, packed in (("gzip", gzip.compress(body)), ("zstd", zstandard.compress(body))):
        for path in ("/v1/responses", "/backend-api/codex/responses"):
            status, answer = parties.raw(
                "POST", path, packed, content_type="application/json", content_encoding=name
            )
            assert (status, answer.get("status")) == (200, "completed"), (name, path, answer)
    assert {entry.content_encoding for entry in parties.requests} == {None}


@uses_sdk
def test_tools_that_come_as_an_item(client: OpenAI, parties: Parties) -> None:
    """Also where the service knows no such item: there they become plain tools."""
    for model in (STORED, PLAIN, CODEX, GROK):
        brought: Any = {"type": "additional_tools", "role": "developer", "tools": [WEATHER]}
        order: Any = {"role": "user", "content": "Call get_weather in Paris."}
        first = ask(client, [brought, order], model)
        second = ask(client, [tool_output(first, "sunny")], model, previous_response_id=first.id)
        assert "sunny" in second.output_text, model


@uses_sdk
def test_a_model_by_the_operators_own_name(client: OpenAI, parties: Parties) -> None:
    assert "hello" in ask(client, "hello", ALIAS).output_text
    client.chat.completions.create(model=ALIAS, messages=[{"role": "user", "content": "hello"}])
    assert [entry.body["model"] for entry in parties.requests] == [PLAIN, PLAIN]
    assert client.models.retrieve(ALIAS).id == ALIAS


@uses_sdk
def test_answers_name_their_account(client: OpenAI, parties: Parties) -> None:
    for stream in (False, True):
        raw = client.responses.with_raw_response.create(model=STORED, input="hello", stream=stream)
        assert raw.headers["x-gateway-account"] == parties.requests[-1].account
        assert raw.headers["x-gateway-route"]
        assert raw.headers["x-request-id"]


@uses_sdk
def test_many_at_once(client: OpenAI, parties: Parties) -> None:
    """Twenty conversations side by side, streamed and not: none hears of another."""

    def conversation(number: int) -> str:
        word = f"heron-{number}"
        model = (STORED, PLAIN, CODEX, GROK)[number % 4]
        first = ask(client, f"The code word is {word}.", model)
        stream = client.responses.create(
            model=model,
            input="What was the code word?",
            previous_response_id=first.id,
            stream=True,
        )
        answer = [event.response for event in stream if event.type == "response.completed"]
        assert answer[0].output_text == f"The code word is {word}."
        return answer[0].id

    with ThreadPoolExecutor(20) as pool:
        ids = list(pool.map(conversation, range(20)))
    assert len(set(ids)) == 20


# ---- stored responses


@uses_sdk
def test_each_response_is_read_where_it_was_made(client: OpenAI, parties: Parties) -> None:
    made = [ask(client, f"conversation {number}") for number in range(4)]
    used = {entry.account for entry in parties.requests}
    assert used == {"north", "south"}, "new conversations go round"
    for response in made:
        read = client.responses.retrieve(response.id, include=["reasoning.encrypted_content"])
        assert read.id == response.id
        assert read.output_text == response.output_text
    reads = [entry for entry in parties.requests if entry.endpoint == "retrieve"]
    assert [entry.status for entry in reads] == [200] * 4, "an account was asked in vain"


@uses_sdk
def test_deleting(client: OpenAI, parties: Parties) -> None:
    made, other = ask(client, "hello"), ask(client, "hello again")
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.APIStatusError) as refused:
        ask(client, "go on", previous_response_id=made.id)
    assert refused.value.code == "previous_response_not_found"
    assert client.responses.retrieve(other.id).id == other.id
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(made.id)


@uses_sdk
def test_input_items_over_several_pages(client: OpenAI, parties: Parties) -> None:
    said: Any = [{"role": "user", "content": str(number)} for number in range(7)]
    made = ask(client, said)
    page = client.responses.input_items.list(made.id, limit=3, order="asc")
    texts = [item.content[0].text for item in page if item.type == "message"]
    assert texts == [str(number) for number in range(7)]
    newest = client.responses.input_items.list(made.id, limit=1).data[0]
    assert newest.content[0].text == "6"
    with pytest.raises(openai.BadRequestError):
        client.responses.input_items.list(made.id, limit=1000)


@uses_sdk
def test_what_is_not_stored_is_not_found(client: OpenAI, parties: Parties) -> None:
    unstored = ask(client, "hello", store=False)
    for call in (
        client.responses.retrieve,
        client.responses.delete,
        client.responses.input_items.list,
    ):
        with pytest.raises(openai.NotFoundError):
            call(unstored.id)
        with pytest.raises(openai.NotFoundError):
            call("resp_nobody")


@uses_sdk
def test_another_clients_responses_are_not_there(client: OpenAI, parties: Parties) -> None:
    made = ask(client, "hello", background=True)
    stranger = parties.client("desk")
    before = len(parties.requests)
    for call in (
        stranger.responses.retrieve,
        stranger.responses.delete,
        stranger.responses.cancel,
        stranger.responses.input_items.list,
    ):
        with pytest.raises(openai.APIStatusError) as refused:
            call(made.id)
        assert refused.value.status_code in (400, 404)
    with pytest.raises(openai.APIStatusError) as refused:
        ask(stranger, "go on", previous_response_id=made.id)
    assert refused.value.code == "previous_response_not_found"
    with pytest.raises(openai.APIStatusError):
        stranger.responses.compact(model=STORED, previous_response_id=made.id)
    assert len(parties.requests) == before, "an account was asked for a stranger"
    assert client.responses.retrieve(made.id).id == made.id


# ---- background


@uses_sdk
def test_a_background_response_is_polled(client: OpenAI, parties: Parties) -> None:
    made = ask(client, "hello", background=True)
    assert made.status in ("queued", "in_progress")
    parties.wait_for(
        lambda: client.responses.retrieve(made.id).status == "completed", "the response completes"
    )
    more = ask(client, "what did I say first?", previous_response_id=made.id)
    assert "hello" in more.output_text
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(made.id)


@uses_sdk
def test_a_background_response_is_cancelled(client: OpenAI, parties: Parties) -> None:
    simulator = parties.running.simulator
    simulator.background_seconds = 600.0
    try:
        made = ask(client, "hello", background=True)
        assert client.responses.cancel(made.id).status == "cancelled"
        assert client.responses.retrieve(made.id).status == "cancelled"
    finally:
        simulator.background_seconds = BACKGROUND_SECONDS
    plain = ask(client, "hello")
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(plain.id)


@uses_sdk
def test_a_background_stream_is_left_and_taken_up_again(client: OpenAI, parties: Parties) -> None:
    with client.responses.create(
        model=STORED, input="hello", background=True, stream=True
    ) as stream:
        seen = [next(stream) for _ in range(3)]
    assert seen[0].type == "response.created"
    made = seen[0].response
    last = seen[-1].sequence_number
    rest = list(client.responses.retrieve(made.id, stream=True, starting_after=last))
    numbers = [event.sequence_number for event in rest]
    assert numbers == list(range(last + 1, last + 1 + len(rest)))
    assert rest[-1].type == "response.completed"
    assert "hello" in rest[-1].response.output_text
    assert client.responses.retrieve(made.id).status == "completed"


@uses_sdk
def test_background_where_no_account_has_it(client: OpenAI, parties: Parties) -> None:
    for model in (PLAIN, CODEX):
        with pytest.raises(openai.APIStatusError) as refused:
            ask(client, "hello", model, background=True)
        assert refused.value.status_code == 400
        assert refused.value.param == "background"


# ---- compacting and counting


@uses_sdk
def test_compacting_and_going_on(client: OpenAI, parties: Parties) -> None:
    first = ask(client, "The code word is heron.")
    made_by = parties.requests[-1].account
    compacted = client.responses.compact(model=STORED, previous_response_id=first.id)
    assert compacted.object == "response.compaction"
    assert [item.type for item in compacted.output] == ["message", "compaction"]
    given: Any = [item.to_dict(warnings=False) for item in compacted.output]
    for _again in range(3):
        answer = ask(client, [*given, {"role": "user", "content": "What was the code word?"}])
        assert answer.output_text == "The code word is heron."
    assert {entry.account for entry in parties.requests} == {made_by}, "only it can open the item"


@uses_sdk
def test_compacting_a_whole_input(client: OpenAI, parties: Parties) -> None:
    said: Any = [{"role": "user", "content": "The code word is heron."}]
    for model in (STORED, PLAIN, CODEX, GROK):
        compacted = client.responses.compact(model=model, input=said)
        given: Any = [item.to_dict(warnings=False) for item in compacted.output]
        answer = ask(
            client, [*given, {"role": "user", "content": "What was the code word?"}], model
        )
        assert answer.output_text == "The code word is heron."


@uses_sdk
def test_counting_input_tokens(client: OpenAI, parties: Parties) -> None:
    counted = client.responses.input_tokens.count(model=STORED, input="hello", tools=[WEATHER])
    made = ask(client, "hello", tools=[WEATHER])
    assert made.usage is not None
    assert counted.input_tokens == made.usage.input_tokens
    more = client.responses.input_tokens.count(
        model=STORED, input="more", previous_response_id=made.id
    )
    assert more.input_tokens > 0


# ---- models


@uses_sdk
def test_models(client: OpenAI, parties: Parties) -> None:
    names = [model.id for model in client.models.list()]
    assert {STORED, PLAIN, CODEX, GROK, ALIAS} <= set(names)
    assert len(names) == len(set(names)), "a model is listed twice"
    assert client.models.retrieve(STORED).id == STORED
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-unknown")
    status, catalogue = parties.raw("GET", "/backend-api/codex/models?client_version=0.169.0")
    assert status == 200
    assert "models" in catalogue, "Codex asks for its own shape"


# ---- chat completions


@uses_sdk
def test_a_chat_with_tools(client: OpenAI, parties: Parties) -> None:
    order: Any = {"role": "user", "content": "Call get_weather in Paris"}
    first = client.chat.completions.create(
        model=STORED, messages=[order], tools=[CHAT_WEATHER]
    ).choices[0]
    assert first.message.tool_calls
    call = first.message.tool_calls[0]
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    messages: Any = [order, first.message, result]
    second = client.chat.completions.create(model=STORED, messages=messages, tools=[CHAT_WEATHER])
    assert "sunny" in str(second.choices[0].message.content)
    assert second.usage is not None
    with pytest.raises(openai.BadRequestError, match="tool_call_id"):
        client.chat.completions.create(model=STORED, messages=messages[:2])


@uses_sdk
def test_a_chat_in_chunks(client: OpenAI, parties: Parties) -> None:
    for usage in (True, False):
        options: Any = {"stream_options": {"include_usage": True}} if usage else {}
        chunks = list(
            client.chat.completions.create(
                model=PLAIN,
                messages=[{"role": "user", "content": "hello there"}],
                stream=True,
                **options,
            )
        )
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert "hello there" in text
        assert (chunks[-1].usage is not None) == usage, "usage is for who asked for it"
    assert [entry.outcome for entry in parties.reached("/chat/completions")] == ["completed"] * 2


@uses_sdk
def test_a_chat_that_is_left_ends(client: OpenAI, parties: Parties) -> None:
    simulator = parties.running.simulator
    simulator.event_delay = 0.2
    try:
        with client.chat.completions.create(
            model=PLAIN, messages=[{"role": "user", "content": "hello"}], stream=True
        ) as stream:
            next(stream)
        entry = parties.requests[-1]
        parties.wait_for(lambda: entry.outcome == "cancelled", "the upstream's stream is left")
    finally:
        simulator.event_delay = 0.0


@uses_sdk
def test_a_chat_where_no_account_serves_any(client: OpenAI, parties: Parties) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model=CODEX, messages=[{"role": "user", "content": "hello"}])
    assert refused.value.status_code in (400, 404)
    assert parties.requests == []


# ---- the two doors together


@uses_sdk
def test_what_was_said_by_websocket_goes_on_by_http(client: OpenAI, parties: Parties) -> None:
    pytest.importorskip("websockets")
    with client.responses.connect() as connection:
        connection.response.create(model=STORED, input="The code word is heron.")
        while (event := connection.recv()).type != "response.completed":
            assert event.type != "error", event
        made = event.response
        answer = ask(client, "What was the code word?", previous_response_id=made.id)
        assert answer.output_text == "The code word is heron."
        assert client.responses.retrieve(made.id).output_text == made.output_text
        connection.response.create(
            model=STORED, input="What was the code word again?", previous_response_id=answer.id
        )
        while (event := connection.recv()).type != "response.completed":
            assert event.type != "error", event
        assert "heron" in event.response.output_text
