"""Services that differ from the platform; encodings of requests; headers of answers."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from simulator import SimulatedAccount
from simulator.accounts import CodexLimits, RateLimits, Window
from simulator.faults import Refuse, ResponseHeaders
from simulator.server import decoded
from simulator.validation import Refusal
from tests.simulator.running import RunningSimulator, parsed

CODEX = {"model": "m", "input": [{"role": "user", "content": "hi"}], "store": False, "stream": True}
TOOLS = {"type": "additional_tools", "tools": []}


@pytest_twisted.async_yield_fixture()
async def running() -> AsyncIterator[RunningSimulator]:
    primary = Window(used_percent=42.5, window_minutes=300, resets_in_seconds=60)
    running = RunningSimulator(
        accounts=[
            SimulatedAccount("stateful", rate_limits=RateLimits(remaining_requests=7)),
            SimulatedAccount(
                "codex",
                dialect="chatgpt",
                mode="stateless",
                turn_state="turn-1",
                codex_limits=CodexLimits(primary=primary),
            ),
            SimulatedAccount("grok", dialect="xai", headers={"x-grok": "1"}),
            SimulatedAccount("text-only", chat_completions=False, encodings=("gzip",)),
        ]
    )
    yield running
    await running.stop()


def header(response: Any, name: str) -> str | None:
    values = response.headers.getRawHeaders(name)
    return values[0] if values else None


@pytest_twisted.ensureDeferred
async def test_the_chatgpt_backend_answers_with_limits_and_an_empty_output(
    running: RunningSimulator,
) -> None:
    response = await running.post(CODEX, "codex")
    events = parsed(await response.text())
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "codex.rate_limits"]
    limits = events[2]["rate_limits"]["primary"]
    assert (limits["used_percent"], limits["window_minutes"]) == (42.5, 300)
    assert events[-1]["response"]["output"] == []
    assert "response.output_item.done" in kinds
    numbers = [event["sequence_number"] for event in events if "sequence_number" in event]
    assert numbers == list(range(len(events) - 1)), "its own event has no number"
    assert header(response, "x-codex-primary-used-percent") == "42.5"
    assert header(response, "x-codex-primary-reset-at") == str(limits["reset_at"])
    assert header(response, "x-codex-turn-state") == "turn-1"
    assert header(response, "x-ratelimit-limit-requests") is None
    assert running.service.base_url("codex").endswith("/backend-api/codex")
    assert running.service.base_url().endswith("/v1")


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"store": True}, "Store must be set to false"),
        ({"store": None}, "Store must be set to false"),
        ({"stream": False}, "Stream must be set to true"),
        ({"input": "hi"}, "Input must be a list"),
        *(
            ({name: value}, f"Unsupported parameter: {name}")
            for name, value in {
                "previous_response_id": "resp_1",
                "user": "u",
                "temperature": 1.0,
                "max_output_tokens": 10,
                "metadata": {},
                "context_management": [],
                "background": True,
                "truncation": "auto",
            }.items()
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_the_chatgpt_backend_refuses(
    running: RunningSimulator, change: Any, detail: str
) -> None:
    response = await running.post({**CODEX, **change}, "codex")
    assert response.code == 400
    assert await response.json() == {"detail": detail}
    assert running.simulator.requests[-1].error["message"] == detail


@pytest_twisted.ensureDeferred
async def test_the_chatgpt_backend_has_few_endpoints(running: RunningSimulator) -> None:
    for method, path in (("GET", "/responses/resp_1"), ("POST", "/chat/completions")):
        response = await running.request(
            method, path, "codex", json={} if method == "POST" else None
        )
        assert (response.code, await response.json()) == (404, {"detail": "Not Found"})
    infos = await running.send("GET", "/models?client_version=0.169.0", "codex")
    assert infos["models"][0]["supported_in_api"] is True
    compacted = await running.send(
        "POST", "/responses/compact", "codex", json={"model": "m", "input": CODEX["input"]}
    )
    assert compacted["output"][-1]["type"] == "compaction"


@pytest_twisted.ensureDeferred
async def test_an_engine_that_knows_no_additional_tools(running: RunningSimulator) -> None:
    body = {"model": "m", "input": [TOOLS, {"role": "user", "content": "hi"}]}
    response = await running.post(body, "grok")
    assert (response.code, header(response, "x-grok")) == (422, "1")
    assert "ModelInput" in (await response.json())["error"]
    first = await running.create({"input": "hi"}, "grok")
    assert (await running.create({"input": "x", "previous_response_id": first["id"]}, "grok"))["id"]
    assert (await running.create(body))["status"] == "completed"


@pytest_twisted.ensureDeferred
async def test_who_serves_no_chats(running: RunningSimulator) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    assert (await running.request("POST", "/chat/completions", "text-only", json=body)).code == 404


PACKERS: dict[str, Any] = {"gzip": gzip.compress, "zstd": zstandard.compress}


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest_twisted.ensureDeferred
async def test_compressed_bodies_are_for_those_who_take_them(
    running: RunningSimulator, encoding: str
) -> None:
    packed = PACKERS[encoding](json.dumps(CODEX).encode())
    headers = {"content-type": "application/json", "content-encoding": encoding}
    for account, status in (("codex", 200), ("stateful", 400), ("text-only", 400)):
        status = 200 if (account, encoding) == ("text-only", "gzip") else status
        response = await running.request(
            "POST", "/responses", account, data=packed, headers=dict(headers)
        )
        await response.content()
        assert response.code == status, account
        entry = running.simulator.requests[-1]
        assert entry.content_encoding == encoding
        assert entry.body == (CODEX if status == 200 else None)
        assert entry.size == len(packed)


@given(st.binary(max_size=60), st.sampled_from(["gzip", "zstd"]), st.booleans())
def test_damaged_bodies_are_refused(junk: bytes, encoding: str, behind: bool) -> None:
    packed = PACKERS[encoding](b'{"a": 1}')
    raw = packed[: -1 - len(junk) % 8] if behind else junk
    with pytest.raises(Refusal) as caught:
        decoded(raw, "application/json", encoding, ("gzip", "zstd"))
    assert caught.value.status == 400


def test_a_body_that_unpacks_to_no_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.server._LONGEST", 1000)
    for packer in (gzip.compress, zstandard.compress):
        packed = packer(b'"' + b"x" * 2000 + b'"')
        name = "gzip" if packer is gzip.compress else "zstd"
        with pytest.raises(Refusal):
            decoded(packed, "application/json", name, ("gzip", "zstd"))
    assert decoded(gzip.compress(b"[1]"), "application/json; charset=utf-8", "GZIP", ["gzip"]) == [
        1
    ]
    with pytest.raises(Refusal):
        decoded(zlib.compress(b"[1]"), "application/json", "deflate", ["deflate"])


@pytest_twisted.ensureDeferred
async def test_every_answer_has_the_platforms_headers(running: RunningSimulator) -> None:
    body = {"model": "m", "input": "hi"}
    answers = [
        await running.post(body),
        await running.post({"model": "m"}),
        await running.request("GET", "/models"),
        await running.request("GET", "/nothing"),
    ]
    for answer in answers:
        await answer.content()
        assert str(header(answer, "x-request-id")).startswith("req_")
        assert int(str(header(answer, "openai-processing-ms"))) >= 0
        assert header(answer, "openai-version")
    assert len({header(answer, "x-request-id") for answer in answers}) == len(answers)
    remaining = [header(answer, "x-ratelimit-remaining-requests") for answer in answers]
    assert remaining == ["7", "7", None, None], "limits are told where they count"


@pytest_twisted.ensureDeferred
async def test_faults_have_the_last_word_on_headers(running: RunningSimulator) -> None:
    told = {"x-ratelimit-remaining-requests": "0", "x-request-id": "req_mine"}
    running.simulator.faults.push("stateful", ResponseHeaders(told), Refuse(429, {}, told))
    for status in (200, 429):
        answer = await running.post({"model": "m", "input": "hi"})
        await answer.content()
        assert answer.code == status
        assert {name: header(answer, name) for name in told} == told


@pytest_twisted.ensureDeferred
async def test_a_key_counts_only_in_the_header_of_its_service() -> None:
    running = RunningSimulator(accounts=[SimulatedAccount("stateful", auth_header="api-key")])
    key = running.simulator.account("stateful").key
    for headers, status in (({"api-key": key}, 200), ({}, 401), ({"api-key": "k"}, 401)):
        response = await running.request("GET", "/models", headers=headers)
        await response.content()
        assert response.code == status, headers
    await running.stop()


def test_an_unknown_dialect_is_refused() -> None:
    with pytest.raises(ValueError):
        SimulatedAccount("a", dialect="klingon")  # type: ignore[arg-type]
