"""Codex CLI through the gateway over WebSocket: a ten-round tool loop keeps its thread."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.codex import NEWEST, OLDEST, CodexClient, CodexRun, run_codex
from tests.e2e.conftest import CLIENT_KEY, Scene, by_pool, by_transport
from tests.e2e.scripted_model import recall_text, success_text, task_prompt
from tests.e2e.tap import Connection, Tap
from tests.support.events import Json, error_body
from tests.support.strict import Mode, Strict
from tests.support.upstream import Exchange, Recorded
from tests.support.websocket_upstream import WebSocketUpstream, refused

pytestmark = pytest.mark.e2e

ROUNDS = 10
MISSES = 3  # on sockets, until the gateway believes that they forget
CLIENTS = [
    CodexClient(OLDEST, "gpt-5.4"),
    CodexClient(NEWEST, "gpt-5.5"),
    CodexClient(NEWEST, "gpt-6.2-sol"),
]
each_client = pytest.mark.parametrize("client", CLIENTS, ids=str)
each_mode = pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)


def drive(scene: Scene, client: CodexClient, base_url: str, **options: Any) -> CodexRun:
    """One `codex exec`, with the tool loop as its prompt unless `prompt` says otherwise."""
    if client.binary() is None:
        scene.unavailable(f"{client} is not installed (make clients)")
    options.setdefault("prompt", task_prompt(ROUNDS, scene.directory / "ran.txt"))
    options.setdefault("directory", scene.directory / "codex")
    run = run_codex(
        client,
        base_url=base_url,
        key=CLIENT_KEY,
        proxy=scene.proxy.url,
        **options,
    )
    scene.logs["codex"] = run.report
    return run


def assert_done(run: CodexRun, directory: Path, rounds: int = ROUNDS) -> None:
    """The user saw nothing but success, and every tool ran exactly once."""
    assert run.error_lines == [], "Codex reported errors"
    assert run.returncode == 0, "Codex did not exit with 0"
    assert run.messages == [success_text(rounds)], "not the model's one closing message"
    ran = (directory / "ran.txt").read_text().split()
    assert ran == [f"round-{number}" for number in range(1, rounds + 1)], "commands that ran"
    assert [command["exit_code"] for command in run.commands] == [0] * rounds


def assert_one_socket(tap: Tap) -> Connection:
    """No reconnect and no HTTP request: one upgrade was all that Codex ever sent."""
    requests = [(each.request_line, each.status) for each in tap.connections]
    assert requests == [("GET /v1/responses HTTP/1.1", 101)], "not one WebSocket and nothing else"
    connection = tap.connections[0]
    errors = [frame for frame in connection.server_frames if frame["type"] == "error"]
    assert errors == [], "the gateway sent error events"
    frames = connection.client_frames
    assert len(frames) == ROUNDS + 2, "a warm-up, the prompt and one frame per round"
    assert frames[0]["generate"] is False, "the first frame is the warm-up"
    named = [frame.get("previous_response_id") for frame in frames]
    assert named == [None, *connection.completed_ids[:-1]], "each names the response before it"
    return connection


def assert_thread_kept(scene: Scene, upstream: Strict, connection: Connection) -> None:
    """The upstream saw the whole conversation, and chained turns where it can chain.

    Over a socket it can whatever it stores, and has the warm-up, too.
    """
    turns = relayed_turns(upstream, connection)
    assert len(turns) == ROUNDS + 1, "one upstream turn per frame, the warm-up aside"
    assert scene.models[upstream.name].transcripts[-1] == expected_transcript(connection)
    chained_to = [turn.previous_response_id for turn in turns]
    if scene.transport == "websocket":
        assert {request.transport for request in upstream.requests} == {"websocket"}
        if upstream.mode is Mode.FORGETFUL:
            assert chained_to == [None] * len(turns), "chained to what the upstream forgets"
            assert len(upstream.requests) == len(turns) + 1 + MISSES, "chaining was tried again"
            assert len(upstream.websockets.sockets) == 1 + MISSES, "sockets were not kept"
            return
        assert len(upstream.websockets.sockets) == 1, "one conversation, one socket"
        assert len(upstream.requests) == len(turns) + 1, "not one message a turn and a warm-up"
        ids = [turn.response_id for turn in upstream.requests]
        assert chained_to == ids[:-1], "each turn references the one before"
    elif upstream.mode is Mode.STATEFUL:
        ids = [turn.response_id for turn in turns]
        assert chained_to == [None, *ids[:-1]], "each turn references the one before"
        assert len(upstream.requests) == len(turns), "something was refused"
    else:
        assert chained_to == [None] * len(turns), "chained to what the upstream does not keep"
        # One trial is how the gateway finds out; it must not repeat it every turn.
        assert len(upstream.requests) <= len(turns) + 1, "chaining was tried again"


def relayed_turns(upstream: Strict, connection: Connection) -> list[Recorded]:
    """The upstream requests whose answers reached the client: no refusal, no abandoned trial.

    Without the warm-up, which goes to accounts over WebSocket.
    """
    seen = set(connection.completed_ids)
    return [request for request in upstream.generated if request.response_id in seen]


def rate_limit(exchange: Exchange) -> None:
    """As the platform says it."""
    message = "Rate limit reached. Please try again in 20s."
    body = error_body("rate_limit_exceeded", message, kind="rate_limit_error")
    exchange.json(429, body, {"Retry-After": "20"})


def usage_limit(exchange: Exchange) -> None:
    """As the ChatGPT backend says it."""
    exchange.json(429, *_used_up())


def usage_limit_at_the_upgrade(exchange: Exchange) -> None:
    """The socket ends before an answer, and the account gets no other one."""
    upstream = exchange.upstream
    assert isinstance(upstream, WebSocketUpstream), "this limit is one of WebSockets"
    upstream.upgrade = refused(429, *_used_up())
    exchange.close()


def _used_up() -> tuple[Json, dict[str, str]]:
    """A limit as the ChatGPT backend says it: for hours, and in the body and the headers."""
    body = error_body(None, "The usage limit has been reached", kind="usage_limit_reached")
    reset = int(time.time()) + 5 * 3600
    body["error"].update(plan_type="plus", resets_at=reset, resets_in_seconds=5 * 3600)
    return body, {"x-codex-primary-used-percent": "100", "x-codex-primary-reset-at": str(reset)}


def _throttle(
    upstream: Strict,
    throttled: list[Strict],
    limit: Callable[[Exchange], None],
    exchange: Exchange,
) -> bool:
    if len(upstream.order) == 3 and not throttled:
        throttled.append(upstream)
    if upstream not in throttled:
        return False
    limit(exchange)
    return True


def _sealed_by(upstream: Strict, item: Json) -> bool:
    return str(item.get("encrypted_content")).startswith(f"sealed:{upstream.name}:")


def expected_transcript(connection: Connection) -> list[Json]:
    """What the model must have seen at its last turn: all that either side said, once, in order."""
    transcript: list[Json] = []
    events = iter(connection.server_frames)
    for number, frame in enumerate(connection.client_frames, 1):
        transcript += frame["input"]
        if number == len(connection.client_frames):
            break
        for event in events:
            if event["type"] == "response.output_item.done":
                transcript.append(event["item"])
            elif event["type"] == "response.completed":
                break
    return transcript


@by_transport
@by_pool
@each_client
@each_mode
@pytest.mark.always(client=CLIENTS[1], mode=Mode.STATEFUL, names=("north", "south", "east"))
@pytest.mark.always(client=CLIENTS[0], mode=Mode.STATELESS, names=("north", "south", "east"))
def test_ten_tool_rounds_through_the_gateway(
    scene: Scene, names: tuple[str, ...], client: CodexClient, mode: Mode
) -> None:
    pool = [scene.upstream(mode, name) for name in names]
    tap = scene.tap(scene.gateway(*pool).port)
    run = drive(scene, client, tap.base_url)
    assert_done(run, scene.directory)
    connection = assert_one_socket(tap)
    used = [upstream for upstream in pool if upstream.requests]
    assert len(used) == 1, "the conversation did not stay with one account"
    assert_thread_kept(scene, used[0], connection)
    print(
        f"{client}, {mode.value}: {len(run.commands)} rounds, "
        f"{len(connection.client_frames)} frames sent, {len(connection.server_frames)} received, "
        f"{len(used[0].requests)} upstream requests, {run.seconds:.1f} s"
    )


@each_client
@pytest.mark.parametrize(
    ("transport", "limit"),
    [
        ("http", rate_limit),
        ("http", usage_limit),
        pytest.param("websocket", rate_limit, marks=pytest.mark.all_clients),
        pytest.param("websocket", usage_limit, marks=pytest.mark.all_clients),
        pytest.param("websocket", usage_limit_at_the_upgrade, marks=pytest.mark.all_clients),
    ],
)
@pytest.mark.always(client=CLIENTS[2], limit=usage_limit_at_the_upgrade)
def test_a_limited_account_is_never_seen(
    scene: Scene, client: CodexClient, limit: Callable[[Exchange], None]
) -> None:
    """The account of the conversation answers 429 on its fourth turn, and from then on."""
    pool = [scene.upstream(Mode.STATEFUL, name) for name in ("north", "south", "east")]
    throttled: list[Strict] = []
    for upstream in pool:
        upstream.before_answer = functools.partial(_throttle, upstream, throttled, limit)
    tap = scene.tap(scene.gateway(*pool).port)
    run = drive(scene, client, tap.base_url)
    assert_done(run, scene.directory)
    connection = assert_one_socket(tap)
    (first,) = throttled
    (second,) = (each for each in pool if each is not first and each.requests)
    answered = 4 if scene.transport == "websocket" else 3  # the warm-up, too
    refusals = [request.response_id is None for request in first.requests]
    assert refusals == [False] * answered + [True]
    turns = relayed_turns(second, connection)
    assert len(turns) == ROUNDS + 1 - 3, "the other account did not answer the rest"
    chained_to = [turn.previous_response_id for turn in turns]
    assert chained_to == [None, *(turn.response_id for turn in turns[:-1])]
    for request in second.requests:
        assert b"sealed:%b:" % first.name.encode() not in request.raw, "encrypted_content moved"
    foreign = [item for item in expected_transcript(connection) if not _sealed_by(first, item)]
    assert scene.models[second.name].transcripts[-1] == foreign
    print(
        f"{client}: 3 turns by {first.name}, 429, {len(turns)} by {second.name}, "
        f"{len(connection.client_frames)} frames sent, {run.seconds:.1f} s"
    )


@by_transport
@each_client
@pytest.mark.parametrize("mode", [Mode.STATEFUL, Mode.STATELESS], ids=lambda mode: mode.value)
def test_a_conversation_resumed_by_a_new_process(
    scene: Scene, client: CodexClient, mode: Mode
) -> None:
    both = [scene.upstream(mode, "north"), scene.upstream(mode, "south")]
    tap = scene.tap(scene.gateway(*both).port)
    assert_done(drive(scene, client, tap.base_url), scene.directory)
    run = drive(scene, client, tap.base_url, prompt="Please recall.", resume=True)
    assert run.error_lines == [], "Codex reported errors"
    assert run.messages == [recall_text(ROUNDS)]
    assert [each.status for each in tap.connections] == [101, 101], "one socket per process"


@each_client
def test_the_script_works_without_a_gateway(scene: Scene, client: CodexClient) -> None:
    """Codex over HTTP, straight to the upstream: what fails here is not the gateway's fault."""
    upstream = scene.upstream(Mode.STATELESS)
    run = drive(scene, client, upstream.server.base_url, websockets=False)
    assert_done(run, scene.directory)
    assert [request for request in upstream.requests if request.refused] == []


@each_client
@pytest.mark.parametrize("keep_thread", [True, False], ids=["kept", "lost"])
def test_these_checks_see_a_lost_thread(
    scene: Scene, client: CodexClient, keep_thread: bool
) -> None:
    """The control: behind a front that drops previous_response_id, Codex fails as users saw it."""
    scene.need_packages("websockets")
    from tests.e2e.lossy_front import LossyFront

    upstream = scene.upstream(Mode.STATEFUL)
    front = scene.enter(LossyFront(upstream.server.base_url, keep_thread=keep_thread))
    tap = scene.tap(front.port)
    run = drive(scene, client, tap.base_url)
    if keep_thread:
        assert_done(run, scene.directory)
        assert_thread_kept(scene, upstream, assert_one_socket(tap))
    else:
        assert run.returncode != 0, "Codex was content without its thread"
        assert any("No tool call found for" in line for line in run.error_lines)
        with pytest.raises(AssertionError, match="Codex reported errors"):
            assert_done(run, scene.directory)
