"""The OpenAI Python SDK over WebSocket: five tool turns, and their ids usable afterwards."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import CLIENT_KEY, Scene, by_pool, by_transport
from tests.e2e.scripted_model import recall_text, success_text, task_prompt
from tests.e2e.test_codex import MISSES
from tests.support.strict import Mode

if TYPE_CHECKING:
    from openai.types.responses import Response

pytestmark = pytest.mark.e2e

ROUNDS = 5
SECONDS = 60
TOOL = {
    "type": "function",
    "name": "record_round",
    "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}},
}
each_store = pytest.mark.parametrize("store", [None, False], ids=["store unset", "store false"])
each_mode = pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)


class Conversation:
    """One WebSocket of the SDK, asked for one response at a time."""

    def __init__(self, connection: Any, store: bool | None) -> None:
        self._connection = connection
        self._options = {} if store is None else {"store": store}

    def ask(self, given: Any, previous: str | None = None) -> Response:
        """Send one response.create and read up to its terminal event."""
        options = {**self._options, "model": "gpt-5.5", "tools": [TOOL], "input": given}
        if previous is not None:
            options["previous_response_id"] = previous
        self._connection.response.create(**options)
        while True:
            event = self._connection.recv()
            assert event.type != "error", f"the gateway sent an error event: {event}"
            if event.type in ("response.completed", "response.failed", "response.incomplete"):
                assert event.type == "response.completed", f"the turn ended as {event}"
                return event.response  # type: ignore[no-any-return]


@contextmanager
def conversation(base_url: str, store: bool | None) -> Iterator[Conversation]:
    """Connect; the SDK itself would wait for ever, so a timer closes a socket gone silent."""
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key=CLIENT_KEY, max_retries=0)
    with client.responses.connect(websocket_connection_options={"max_size": None}) as connection:
        timer = threading.Timer(SECONDS, connection.close)
        timer.start()
        try:
            yield Conversation(connection, store)
        finally:
            timer.cancel()


def tool_outputs(response: Response, ran: list[int]) -> list[dict[str, Any]]:
    """Run the tools the response asks for, as an application does, from response.output."""
    outputs = []
    for item in response.output:
        if item.type == "function_call":
            number = int(json.loads(item.arguments)["number"])
            ran.append(number)
            outputs.append(tool_output(item.call_id, number))
    return outputs


def tool_output(call_id: str, number: int) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": f"round-{number} ran"}


@by_transport
@by_pool
@each_store
@each_mode
@pytest.mark.always(mode=Mode.STATELESS, store=False, names=("north", "south", "east"))
def test_five_tool_turns_and_their_ids_afterwards(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    mode: Mode,
    store: bool | None,
) -> None:
    scene.need_packages("openai", "websockets")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, scene.proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    pool = [scene.upstream(mode, name) for name in names]
    tap = scene.tap(scene.gateway(*pool).port)
    started = time.monotonic()
    responses: list[Response] = []
    ran: list[int] = []

    with ExitStack() as first_connection:
        first = first_connection.enter_context(conversation(tap.base_url, store))
        responses.append(first.ask(task_prompt(ROUNDS, "the-application")))
        while outputs := tool_outputs(responses[-1], ran):
            responses.append(first.ask(outputs, responses[-1].id))
        assert ran == list(range(1, ROUNDS + 1)), "the tools the SDK was told to run"
        assert responses[-1].output_text == success_text(ROUNDS)
        ids = [response.id for response in responses]
        assert len(set(ids)) == ROUNDS + 1
        if store is not False:  # what must not be stored lives as long as its connection
            first_connection.close()

        with conversation(tap.base_url, store) as second:
            resumed = second.ask("Please recall.", ids[-1])
            assert resumed.output_text == recall_text(ROUNDS), "continued from the last id"
            call = next(item for item in responses[2].output if item.type == "function_call")
            answer = [tool_output(call.call_id, 3), {"role": "user", "content": "Please recall."}]
            fork = second.ask(answer, ids[2])
            assert fork.output_text == recall_text(3), "forked from the third response"
            again = second.ask("Please recall.", resumed.id)
            assert again.output_text == recall_text(ROUNDS), "the fork changed what it forked from"

    assert [each.status for each in tap.connections] == [101, 101], "not one socket each"
    used = [upstream for upstream in pool if upstream.requests]
    assert len(used) == 1, "the conversation did not stay with one account"
    seen = {*ids, resumed.id, fork.id, again.id}
    chained_to = [
        request.previous_response_id for request in used[0].requests if request.response_id in seen
    ]
    assert len(chained_to) == len(seen), "one upstream turn per response"
    trials = len(used[0].requests) - len(chained_to)
    if scene.transport == "websocket" and mode is not Mode.FORGETFUL and store is False:
        # The fork is not from the latest response of the socket.
        assert chained_to == [None, *ids, None, resumed.id], "each turn references its parent"
        assert trials == 0, "something was refused"
    elif scene.transport == "websocket" and mode is Mode.STATELESS:
        # It promises to store, and has only what the socket remembers: nothing of that is learned.
        assert chained_to == [None, *ids, None, None]
        assert trials == 2, "one for each response that is not the latest of its socket"
    elif mode is Mode.STATEFUL or (mode is Mode.STORED_ONLY and store is None):
        assert chained_to == [None, *ids, ids[2], resumed.id], "each turn references its parent"
        assert trials == 0, "something was refused"
    else:
        assert chained_to == [None] * len(chained_to)
        most = MISSES if scene.transport == "websocket" else 1
        assert trials <= most, "chaining was tried again"
    print(
        f"openai SDK, {mode.value}, store={store}: {len(chained_to)} turns, "
        f"{sum(len(each.server_frames) for each in tap.connections)} events received, "
        f"{len(used[0].requests)} upstream requests, {time.monotonic() - started:.1f} s"
    )
