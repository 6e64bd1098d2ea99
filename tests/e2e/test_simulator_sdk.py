"""The OpenAI Python SDK against the simulator itself: every endpoint, typed as the SDK has it.

What holds here holds for the platform as far as the SDK can tell; the tests of the gateway rest on
it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from simulator import SimulatedAccount
from simulator.faults import PauseAfter, Refuse
from tests.simulator.running import RunningSimulator

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.responses import Response

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.e2e

MODEL = "gpt-5.5"
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


@pytest_twisted.async_yield_fixture()
async def running() -> AsyncIterator[RunningSimulator]:
    running = RunningSimulator(
        accounts=[
            SimulatedAccount("stateful", models=(MODEL, "gpt-5.5-mini")),
            SimulatedAccount("codex", dialect="chatgpt", mode="stateless"),
        ]
    )
    yield running
    await running.stop()


def uses_sdk(test: Callable[[OpenAI, RunningSimulator], None]) -> Any:
    """A test that blocks, as the SDK does: it runs in a thread beside the simulator's reactor."""

    @pytest_twisted.ensureDeferred
    async def run(running: RunningSimulator) -> None:
        await deferToThread(test, client_of(running, "stateful"), running)

    return run


def client_of(running: RunningSimulator, account: str) -> OpenAI:
    key = running.simulator.account(account).key
    return openai.OpenAI(
        base_url=running.service.base_url(account), api_key=key, max_retries=0, timeout=30
    )


def ask(client: OpenAI, given: Any, **more: Any) -> Response:
    return client.responses.create(model=MODEL, input=given, **more)


@uses_sdk
def test_a_tool_conversation(client: OpenAI, running: RunningSimulator) -> None:
    first = ask(client, "Call get_weather in Paris, please", tools=[WEATHER])
    (call,) = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Paris"}
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = ask(client, [output], tools=[WEATHER], previous_response_id=first.id)
    assert "sunny" in second.output_text
    assert second.previous_response_id == first.id
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens > 0
    with pytest.raises(openai.BadRequestError, match="No tool call found"):
        ask(client, [output])


@uses_sdk
def test_streaming(client: OpenAI, running: RunningSimulator) -> None:
    events = list(client.responses.create(model=MODEL, input="hello", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == text
    with client.responses.stream(model=MODEL, input="hello") as stream:
        stream.until_done()
        assert "hello" in stream.get_final_response().output_text


@uses_sdk
def test_retrieve_and_delete(client: OpenAI, running: RunningSimulator) -> None:
    made = ask(client, "hello")
    read = client.responses.retrieve(made.id, include=["reasoning.encrypted_content"])
    assert read.to_dict() == made.to_dict()
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(made.id)


@uses_sdk
def test_input_items_over_several_pages(client: OpenAI, running: RunningSimulator) -> None:
    said: Any = [{"role": "user", "content": str(number)} for number in range(7)]
    made = ask(client, said)
    page = client.responses.input_items.list(made.id, limit=3, order="asc")
    assert (len(page.data), page.has_next_page()) == (3, True)
    texts = [item.content[0].text for item in page if item.type == "message"]
    assert texts == [str(number) for number in range(7)]
    newest = client.responses.input_items.list(made.id, limit=1).data[0]
    assert newest.content[0].text == "6"


@uses_sdk
def test_background(client: OpenAI, running: RunningSimulator) -> None:
    made = ask(client, "hello", background=True)
    assert made.status == "queued"
    while made.status in ("queued", "in_progress"):
        made = client.responses.retrieve(made.id)
    assert "hello" in made.output_text
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(made.id)


@uses_sdk
def test_background_cancelled(client: OpenAI, running: RunningSimulator) -> None:
    running.simulator.background_seconds = 600.0
    made = ask(client, "hello", background=True)
    assert client.responses.cancel(made.id).status == "cancelled"
    assert client.responses.cancel(made.id).status == "cancelled"
    assert client.responses.retrieve(made.id).status == "cancelled"


@uses_sdk
def test_background_stream_left_and_taken_up_again(
    client: OpenAI, running: RunningSimulator
) -> None:
    with client.responses.create(
        model=MODEL, input="hello", background=True, stream=True
    ) as stream:
        seen = [next(stream) for _ in range(3)]
    assert [event.type for event in seen][:2] == ["response.created", "response.queued"]
    made = seen[0].response  # type: ignore[union-attr]
    rest = list(
        client.responses.retrieve(
            made.id, stream=True, starting_after=seen[-1].sequence_number, include=[]
        )
    )
    assert [event.sequence_number for event in rest] == list(range(3, 3 + len(rest)))
    assert rest[-1].type == "response.completed"
    assert "hello" in rest[-1].response.output_text


@uses_sdk
def test_compact(client: OpenAI, running: RunningSimulator) -> None:
    first = ask(client, "The code word is heron.")
    compacted = client.responses.compact(model=MODEL, previous_response_id=first.id)
    assert compacted.object == "response.compaction"
    assert [item.type for item in compacted.output] == ["message", "compaction"]
    given: Any = [item.to_dict(warnings=False) for item in compacted.output]
    answer = ask(client, [*given, {"role": "user", "content": "What was the code word?"}])
    assert answer.output_text == "The code word is heron."
    assert compacted.usage.total_tokens > 0


@uses_sdk
def test_input_tokens(client: OpenAI, running: RunningSimulator) -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input="hello", tools=[WEATHER])
    made = ask(client, "hello", tools=[WEATHER])
    assert made.usage is not None
    assert counted.input_tokens == made.usage.input_tokens


@uses_sdk
def test_models(client: OpenAI, running: RunningSimulator) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "gpt-5.5-mini"]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-1")


@uses_sdk
def test_chat(client: OpenAI, running: RunningSimulator) -> None:
    order: Any = {"role": "user", "content": "Call get_weather in Paris"}
    first = client.chat.completions.create(
        model=MODEL, messages=[order], tools=[CHAT_WEATHER]
    ).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.tool_calls
    call = first.message.tool_calls[0]
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    messages: Any = [order, first.message, result]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=[CHAT_WEATHER])
    assert "sunny" in str(second.choices[0].message.content)
    with pytest.raises(openai.BadRequestError, match="tool_call_id"):
        client.chat.completions.create(model=MODEL, messages=messages[:2])


@uses_sdk
def test_chat_stream(client: OpenAI, running: RunningSimulator) -> None:
    with client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": "Call get_weather in Paris"}],
        tools=[CHAT_WEATHER],
        stream_options={"include_usage": True},
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls
    arguments = final.choices[0].message.tool_calls[0].function.arguments
    assert json.loads(arguments) == {"city": "Paris"}
    assert final.usage is not None
    assert final.usage.total_tokens > 0


@uses_sdk
def test_refusals_and_headers(client: OpenAI, running: RunningSimulator) -> None:
    running.simulator.faults.push("stateful", Refuse.rate_limited(3))
    with pytest.raises(openai.RateLimitError) as limited:
        ask(client, "hello")
    assert limited.value.response.headers["retry-after"] == "3"
    assert limited.value.request_id
    raw = client.responses.with_raw_response.create(model=MODEL, input="hello")
    assert raw.headers["x-ratelimit-limit-requests"] == "10000"
    running.simulator.faults.push("stateful", PauseAfter(5.0))
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).models.list()
    stranger = client.with_options(api_key="sk-nobody")
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


@uses_sdk
def test_the_chatgpt_backend(client: OpenAI, running: RunningSimulator) -> None:
    client = client_of(running, "codex")
    given: Any = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input=given, stream=True)
    assert refused.value.response.json() == {"detail": "Store must be set to false"}
    events = list(client.responses.create(model=MODEL, input=given, stream=True, store=False))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output == []
    assert "response.output_item.done" in [event.type for event in events]
