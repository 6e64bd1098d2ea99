"""Stored responses over HTTP: reading, deleting, input items, counting; the models; the routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from twisted.web.client import ResponseFailed

from simulator import SimulatedAccount
from simulator.faults import DropAfter, PauseAfter, Refuse
from tests.simulator.running import RunningSimulator


@pytest_twisted.async_yield_fixture()
async def running() -> AsyncIterator[RunningSimulator]:
    running = RunningSimulator(
        accounts=[
            SimulatedAccount("stateful"),
            SimulatedAccount("other", models=("gpt-a", "team/gpt-b"), codex_catalogue=True),
            SimulatedAccount("stateless", mode="stateless"),
        ]
    )
    yield running
    await running.stop()


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest_twisted.ensureDeferred
async def test_a_stored_response_is_read_as_it_was_answered(running: RunningSimulator) -> None:
    made = await running.create({"input": "hello"})
    path = f"/responses/{made['id']}"
    assert await running.send("GET", path) == made
    assert await running.send("GET", path + "?include[]=reasoning.encrypted_content") == made
    wrong = await running.send("GET", path + "?include[]=everything")
    assert (wrong["error"]["param"], wrong["error"]["code"]) == ("include[0]", "invalid_value")
    foreign = await running.request("GET", path, "other")
    assert foreign.code == 404, "an account sees only its own responses"
    assert (await foreign.json())["error"]["message"].endswith("not found.")


@pytest_twisted.ensureDeferred
async def test_what_is_not_stored_is_not_found(running: RunningSimulator) -> None:
    for account, more in (("stateful", {"store": False}), ("stateless", {})):
        made = await running.create({"input": "hello", **more}, account)
        for method, ending in (("GET", ""), ("DELETE", ""), ("GET", "/input_items")):
            response = await running.request(method, f"/responses/{made['id']}{ending}", account)
            assert response.code == 404, (account, method, ending)
            await response.content()


@pytest_twisted.ensureDeferred
async def test_only_background_responses_are_streamed_again(running: RunningSimulator) -> None:
    made = await running.create({"input": "hello"})
    refused = await running.request("GET", f"/responses/{made['id']}?stream=true")
    assert refused.code == 400
    assert (await refused.json())["error"]["param"] == "stream"


@pytest_twisted.ensureDeferred
async def test_a_deleted_response_is_gone(running: RunningSimulator) -> None:
    made = await running.create({"input": "hello"})
    path = f"/responses/{made['id']}"
    assert await running.send("DELETE", path) == {
        "id": made["id"],
        "object": "response",
        "deleted": True,
    }
    assert (await running.request("GET", path)).code == 404
    assert (await running.request("DELETE", path)).code == 404
    continued = await running.create({"input": "more", "previous_response_id": made["id"]})
    assert continued["error"]["code"] == "previous_response_not_found"


@pytest_twisted.ensureDeferred
async def test_input_items_come_in_pages(running: RunningSimulator) -> None:
    made = await running.create({"input": [user(str(number)) for number in range(5)]})
    path = f"/responses/{made['id']}/input_items"
    newest = await running.send("GET", path)
    texts = [item["content"][0]["text"] for item in newest["data"]]
    assert texts == ["4", "3", "2", "1", "0"], "the newest comes first unless asked otherwise"
    assert (newest["object"], newest["has_more"]) == ("list", False)
    first = await running.send("GET", path + "?order=asc&limit=2")
    assert [item["content"][0]["text"] for item in first["data"]] == ["0", "1"]
    assert first["has_more"] is True
    assert first["last_id"] == first["data"][-1]["id"]
    rest = await running.send("GET", f"{path}?order=asc&after={first['last_id']}&limit=100")
    assert [item["content"][0]["text"] for item in rest["data"]] == ["2", "3", "4"]
    assert {item["status"] for item in rest["data"]} == {"completed"}
    past = await running.send("GET", f"{path}?order=asc&after={rest['last_id']}")
    assert past == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest_twisted.ensureDeferred
async def test_input_items_are_the_requests_own(running: RunningSimulator) -> None:
    first = await running.create({"input": "one"})
    second = await running.create({"input": "two", "previous_response_id": first["id"]})
    page = await running.send("GET", f"/responses/{second['id']}/input_items")
    assert [item["content"][0]["text"] for item in page["data"]] == ["two"]


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("limit=0", "integer_below_min_value", "limit"),
        ("limit=101", "integer_above_max_value", "limit"),
        ("limit=many", "invalid_type", "limit"),
        ("order=random", "invalid_value", "order"),
        ("after=msg_nobody", None, "after"),
        ("include[]=x", "invalid_value", "include[0]"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_pages_that_do_not_exist(
    running: RunningSimulator, query: str, code: str, param: str
) -> None:
    made = await running.create({"input": "one"})
    response = await running.request("GET", f"/responses/{made['id']}/input_items?{query}")
    assert response.code == 400
    error = (await response.json())["error"]
    assert (error["code"], error["param"]) == (code, param)


@pytest_twisted.ensureDeferred
async def test_input_tokens_are_what_the_response_will_count(running: RunningSimulator) -> None:
    first = await running.create({"input": "a longer first message"})
    body = {
        "model": "m",
        "instructions": "Be brief.",
        "input": "and another",
        "previous_response_id": first["id"],
    }
    counted = await running.send("POST", "/responses/input_tokens", json=body)
    answered = await running.create(body)
    assert counted == {
        "object": "response.input_tokens",
        "input_tokens": answered["usage"]["input_tokens"],
    }
    without_model = await running.send("POST", "/responses/input_tokens", json={"input": "x"})
    assert without_model["input_tokens"] > 0
    refused = await running.send(
        "POST", "/responses/input_tokens", json={"input": "x", "store": True}
    )
    assert refused["error"]["code"] == "unknown_parameter"
    orphan = {"type": "function_call_output", "call_id": "call_1", "output": ""}
    lost = await running.send("POST", "/responses/input_tokens", json={"input": [orphan]})
    assert lost["error"]["message"].startswith("No tool call found")


@pytest_twisted.ensureDeferred
async def test_models_are_listed_and_shown(running: RunningSimulator) -> None:
    listed = await running.send("GET", "/models", "other")
    assert [each["id"] for each in listed["data"]] == ["gpt-a", "team/gpt-b"]
    assert await running.send("GET", "/models/gpt-a", "other") == listed["data"][0]
    assert await running.send("GET", "/models/team%2Fgpt-b", "other") == listed["data"][1]
    missing = await running.request("GET", "/models/gpt-z", "other")
    assert missing.code == 404
    assert (await missing.json())["error"]["code"] == "model_not_found"


@pytest_twisted.ensureDeferred
async def test_codex_gets_its_catalogue_where_there_is_one(running: RunningSimulator) -> None:
    response = await running.request("GET", "/models?client_version=0.169.0", "other")
    infos = (await response.json())["models"]
    assert [info["slug"] for info in infos] == ["gpt-a", "team/gpt-b"]
    again = await running.request("GET", "/models?client_version=0.118.0", "other")
    await again.content()
    tags = [each.headers.getRawHeaders("etag") for each in (response, again)]
    assert tags[0] == tags[1] != [None]
    plain = await running.send("GET", "/models?client_version=0.169.0")
    assert plain["object"] == "list", "an account without a catalogue lists as the platform does"


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nothing", 404, None),
        ("GET", "/responses/resp_1/nothing", 404, None),
        ("GET", "/responses//input_items", 404, None),
        ("GET", "/responses", 405, ["POST"]),
        ("PUT", "/responses/resp_1", 405, ["GET, DELETE"]),
        ("DELETE", "/models", 405, ["GET"]),
        ("GET", "/responses/nonsense", 400, None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_paths_and_methods_that_are_refused(
    running: RunningSimulator, method: str, path: str, status: int, allow: Any
) -> None:
    response = await running.request(method, path)
    assert response.code == status
    assert response.headers.getRawHeaders("allow") == allow
    assert (await response.json())["error"]["type"] == "invalid_request_error"
    entry = running.simulator.requests[-1]
    assert (entry.method, entry.outcome, entry.status) == (method, "refused", status)


@pytest_twisted.ensureDeferred
async def test_faults_strike_every_endpoint(running: RunningSimulator) -> None:
    made = await running.create({"input": "hello"})
    path = f"/responses/{made['id']}"
    running.simulator.faults.push("stateful", Refuse.rate_limited(2), to="retrieve")
    running.simulator.faults.push("stateful", DropAfter(0), to="models")
    assert (await running.create({"input": "not the one"}))["status"] == "completed"
    refused = await running.request("GET", path)
    assert (refused.code, refused.headers.getRawHeaders("retry-after")) == (429, ["2"])
    with pytest.raises(ResponseFailed):
        await running.send("GET", "/models")
    assert running.simulator.requests[-1].outcome == "dropped"
    running.simulator.faults.push("stateful", PauseAfter(0.01))
    assert await running.send("GET", path) == made


@pytest_twisted.ensureDeferred
async def test_the_log_says_what_was_asked(running: RunningSimulator) -> None:
    made = await running.create({"input": "hello"})
    await running.send("GET", f"/responses/{made['id']}?include[]=a&include[]=b")
    entry = running.simulator.requests[-1]
    assert (entry.method, entry.path) == ("GET", f"/v1/responses/{made['id']}")
    assert entry.query == {"include[]": ["a", "b"]}
    assert (entry.response_id, entry.endpoint) == (made["id"], "retrieve")
    posted = running.simulator.requests.of("stateful", "/responses")
    assert [each.body["input"] for each in posted] == ["hello"]
