"""Codex CLI where WebSocket is switched off: 426 sends it to HTTP, and the user sees nothing."""

from __future__ import annotations

import base64
import functools
import json
import time
from typing import Any

import pytest
import zstandard

from tests.e2e import codex
from tests.e2e.codex import CodexClient
from tests.e2e.conftest import Scene, by_transport
from tests.e2e.tap import Tap
from tests.e2e.test_codex import ROUNDS, assert_done, drive, each_client
from tests.support.events import Json, error_body
from tests.support.gateway import CLIENT_KEYS, Gateway
from tests.support.strict import Mode, Strict
from tests.support.upstream import Exchange

pytestmark = pytest.mark.e2e


def http_gateway(scene: Scene, *upstreams: Strict, **config: Any) -> Gateway:
    """The gateway with one account per upstream, its WebSocket door shut."""
    config.setdefault("session", {"websocket": False})
    accounts = [scene.account(each) for each in upstreams]
    gateway = Gateway(scene.directory, {"accounts": accounts, **config})
    scene.enter(_stopping(gateway))
    scene.logs["the gateway's log"] = gateway.log
    return gateway


class _stopping:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def __enter__(self) -> Gateway:
        return self.gateway

    def __exit__(self, *_: object) -> None:
        self.gateway.stop()


def posted(tap: Tap, path: str = "/v1/responses") -> list[Json]:
    """The bodies of all requests to `path`, in the order of their connections."""
    bodies: list[Json] = []
    for connection in tap.connections:
        rest = bytes(connection.sent)
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            fields = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in lines[1:])}
            length = int(fields.get("content-length", 0))
            body, rest = rest[:length], rest[length:]
            if fields.get("content-encoding") == "zstd":
                body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
            if lines[0].startswith(f"POST {path} "):
                bodies.append(json.loads(body))
    return bodies


def assert_http_only(tap: Tap) -> list[Json]:
    """Upgrades were answered 426 and nothing else; the rest is one POST per turn."""
    asked = [(each.request_line.split(" ")[0], each.status) for each in tap.connections]
    upgrades = [status for method, status in asked if method == "GET"]
    assert upgrades, "Codex did not try WebSocket"
    assert set(upgrades) == {426}, "upgrades were not refused by 426"
    assert {status for method, status in asked if method == "POST"} == {200}
    bodies = posted(tap)
    assert len(bodies) == ROUNDS + 1, "Codex repeated a request, or left one out"
    assert all("previous_response_id" not in body for body in bodies), "over HTTP all is sent"
    return bodies


@by_transport
@each_client
@pytest.mark.parametrize("mode", [Mode.STATEFUL, Mode.STATELESS], ids=lambda mode: mode.value)
def test_ten_tool_rounds_over_http(scene: Scene, client: CodexClient, mode: Mode) -> None:
    north, south = scene.upstream(mode, "north"), scene.upstream(mode, "south")
    tap = scene.tap(http_gateway(scene, north, south).port)
    run = drive(scene, client, tap.base_url)
    assert_done(run, scene.directory)
    bodies = assert_http_only(tap)
    used = [upstream for upstream in (north, south) if upstream.requests]
    assert len(used) == 1, "the conversation did not stay with one account"
    assert [request for request in used[0].requests if request.refused] == []
    assert len(used[0].requests) == len(bodies)
    assert scene.models[used[0].name].transcripts[-1] == bodies[-1]["input"]
    print(f"{client}, {mode.value}: {len(run.commands)} rounds over HTTP, {run.seconds:.1f} s")


@each_client
def test_a_key_without_websocket(scene: Scene, client: CodexClient) -> None:
    upstream = scene.upstream(Mode.STATELESS)
    keys = [{"name": name, "key": key, "websocket": False} for name, key in CLIENT_KEYS.items()]
    gateway = http_gateway(scene, upstream, session={}, keys=keys)
    tap = scene.tap(gateway.port)
    assert_done(drive(scene, client, tap.base_url), scene.directory)
    assert_http_only(tap)


def _exhaust(upstream: Strict, exhausted: list[Strict], exchange: Exchange) -> bool:
    if len(upstream.order) == 3 and not exhausted:
        exhausted.append(upstream)
    if upstream not in exhausted:
        return False
    error = {
        "type": "usage_limit_reached",
        "message": "The usage limit has been reached",
        "plan_type": "plus",
        "resets_in_seconds": 3600,
    }
    exchange.json(429, {"error": error})
    return True


@by_transport
@each_client
def test_an_exhausted_account_is_never_seen(scene: Scene, client: CodexClient) -> None:
    """The account of the conversation hits its usage limit at the fourth turn."""
    both = [scene.upstream(Mode.STATEFUL, "north"), scene.upstream(Mode.STATEFUL, "south")]
    exhausted: list[Strict] = []
    for upstream in both:
        upstream.before_answer = functools.partial(_exhaust, upstream, exhausted)
    tap = scene.tap(http_gateway(scene, *both).port)
    run = drive(scene, client, tap.base_url)
    assert_done(run, scene.directory)
    assert_http_only(tap)
    (first,) = exhausted
    (second,) = (upstream for upstream in both if upstream is not first)
    assert [request.response_id is None for request in first.requests] == [False] * 3 + [True]
    assert len(second.requests) == ROUNDS + 1 - 3, "the other account did not answer the rest"
    for request in second.requests:
        assert b"sealed:%b:" % first.name.encode() not in request.raw, "encrypted_content moved"
    print(f"{client}: 3 turns by {first.name}, 429, {ROUNDS - 2} by {second.name} over HTTP")


# --- a ChatGPT login, whose requests come compressed ---------------------------------------


def signed_in() -> str:
    """A token as Codex keeps one after a login; it reads the claims and checks nothing."""
    about = {"chatgpt_plan_type": "plus", "chatgpt_account_id": "acc-1", "chatgpt_user_id": "u-1"}
    now = int(time.time())
    claims = {
        "email": "user@example.test",
        "iat": now,
        "exp": now + 86400,
        "https://api.openai.com/auth": about,
    }
    parts = [json.dumps(part).encode() for part in ({"alg": "none", "typ": "JWT"}, claims)]
    return ".".join(base64.urlsafe_b64encode(x).rstrip(b"=").decode() for x in [*parts, b"sig"])


def login_config(client: CodexClient, base_url: str, websockets: bool) -> str:
    """The built-in provider instead of one of ours."""
    usual = USUAL_CONFIG(client, base_url, websockets)
    top, _, rest = usual.replace('model_provider = "gateway"\n', "").partition("[model_providers")
    features = rest.partition("[features]")[2]
    backend = base_url.removesuffix("codex")
    return (
        f'{top}openai_base_url = "{base_url}"\nchatgpt_base_url = "{backend}"\n'
        f'cli_auth_credentials_store = "file"\n[features]{features}'
    )


USUAL_CONFIG = codex._config


def _without_models(exchange: Exchange) -> bool:
    if exchange.request.method == "GET":
        exchange.json(404, error_body(None, "no models here"))
        return True
    return False


def test_10_84_codex_sends_zstd_after_a_chatgpt_login(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the oldest; newer ones also want a backend with HTTPS and answers of its own."""
    client = CodexClient(codex.OLDEST, "gpt-5.4")
    token = signed_in()
    upstream = scene.upstream(Mode.STATELESS)
    upstream.before_answer = _without_models
    tap = scene.tap(http_gateway(scene, upstream, keys=[{"name": "login", "key": token}]).port)
    home = scene.directory / "codex" / "home" / ".codex"
    home.mkdir(parents=True)
    tokens = {"id_token": token, "access_token": token, "refresh_token": "r", "account_id": "acc-1"}
    login = {"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens}
    login["last_refresh"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    (home / "auth.json").write_text(json.dumps(login))
    monkeypatch.setattr(codex, "_config", login_config)
    run = drive(scene, client, f"http://127.0.0.1:{tap.port}/backend-api/codex")
    assert_done(run, scene.directory)
    compressed = [
        each for each in tap.connections if b"content-encoding: zstd" in each.sent.lower()
    ]
    assert len(compressed) == ROUNDS + 1, "Codex did not compress; nothing was shown"
    bodies = posted(tap, "/backend-api/codex/responses")
    assert scene.models[upstream.name].transcripts[-1] == bodies[-1]["input"]
