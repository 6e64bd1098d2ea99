"""What a preset fills in, and that the operator's word counts for more."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml

from gateway.config import (
    AccountSettings,
    ConfigError,
    UpstreamWebSocketSettings,
    load_settings,
)
from gateway.config.presets import PRESETS
from gateway.config.settings import Preset

LOCAL = ("vllm", "ollama", "lmstudio")
AZURE = "https://r.openai.azure.com/openai/v1"


def account(preset: str, **entry: object) -> AccountSettings:
    whole = {"name": "a", "preset": preset, **entry}
    return load_settings(yaml.safe_dump({"accounts": [whole]}), {}, "f").accounts[0]


def whole(preset: str, **entry: object) -> AccountSettings:
    """The account of an entry that gives what has no default."""
    given = {} if preset in LOCAL else {"key": "k"}
    return account(preset, **({"base_url": AZURE} if preset == "azure" else {}), **given, **entry)


def test_there_is_a_preset_for_every_name() -> None:
    assert set(PRESETS) == set(get_args(Preset))


@pytest.mark.parametrize(
    ("preset", "base_url"),
    [
        ("openai", "https://api.openai.com/v1"),
        ("azure", AZURE),
        ("xai", "https://api.x.ai/v1"),
        ("openrouter", "https://openrouter.ai/api/v1"),
        ("vllm", "http://127.0.0.1:8000/v1"),
        ("ollama", "http://127.0.0.1:11434/v1"),
        ("lmstudio", "http://127.0.0.1:1234/v1"),
        ("chatgpt", "https://chatgpt.com/backend-api/codex"),
    ],
)
def test_a_preset_knows_where_its_service_is(preset: str, base_url: str) -> None:
    assert whole(preset).base_url == base_url
    assert whole(preset).preset == preset


@pytest.mark.parametrize("preset", PRESETS)
def test_only_services_that_keep_responses_are_asked_to_continue_them(preset: str) -> None:
    stateful = preset in ("openai", "azure", "xai")
    assert whole(preset).continuity == ("auto" if stateful else "replay")


@pytest.mark.parametrize("preset", PRESETS)
def test_tools_in_the_input_go_only_to_those_who_know_them(preset: str) -> None:
    knows = preset in ("openai", "azure", "chatgpt")
    assert whole(preset).tools == ("as-sent" if knows else "hoisted")
    assert ("client_metadata" in whole(preset).strip) is (preset not in ("openai", "chatgpt"))


def test_the_codex_backend_of_chatgpt_gets_what_it_insists_on() -> None:
    backend = whole("chatgpt")
    assert (backend.store, backend.background, backend.chat_completions) == ("never", False, False)
    refused = {"max_output_tokens", "temperature", "top_p", "user", "metadata", "truncation"}
    assert refused <= set(backend.strip)
    assert backend.websocket.beta == "responses_websockets=2026-02-06"
    assert not {"client_metadata", "include", "prompt_cache_key"} & set(backend.strip)


def test_azure_takes_the_bare_key_but_tokens_as_anybody_does(tmp_path: Path) -> None:
    assert whole("azure").auth_header == "api-key"
    oauth = {
        "token_url": "https://login.test/token",
        "client_id": "c",
        "refresh_token": "r",
        "token_file": str(tmp_path / "tokens.json"),
    }
    assert account("azure", base_url=AZURE, oauth=oauth).auth_header == "authorization"


@pytest.mark.parametrize("preset", LOCAL)
def test_servers_on_this_machine_need_no_key_but_may_have_one(preset: str, tmp_path: Path) -> None:
    assert account(preset).key == "unused"
    assert account(preset, key=None).key == "unused"
    assert account(preset, key="mine").key == "mine"
    (tmp_path / "key").write_text("from-file\n")
    with_file = account(preset, key_file=str(tmp_path / "key"))
    assert (with_file.key, with_file.key_file) == (None, str(tmp_path / "key"))


@pytest.mark.parametrize("preset", PRESETS)
def test_whatever_the_entry_says_counts(preset: str) -> None:
    own = {
        "base_url": "http://h/v1",
        "key": "mine",
        "auth_header": "x-key",
        "continuity": "chain",
        "store": "client",
        "strip": [],
        "tools": "as-sent",
        "instructions": "as-sent",
        "background": False,
        "chat_completions": True,
        "transport": "websocket",
        "websocket": {
            "beta": None,
            "continues_unstored": True,
            "controls": [],
            "max_age_minutes": 3,
            "reuses_ids": False,
        },
    }
    assert set(PRESETS[preset]) <= set(own), "this test must know every member of a preset"
    got = account(preset, **own)
    websocket = UpstreamWebSocketSettings(max_age_minutes=3)
    expected = {**own, "strip": (), "websocket": websocket}
    assert {name: getattr(got, name) for name in own} == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_turns_go_over_a_websocket_where_a_service_has_one(preset: str) -> None:
    native = preset in ("openai", "azure", "chatgpt")
    assert whole(preset).transport == ("auto" if native else "http")


@pytest.mark.parametrize("preset", PRESETS)
def test_only_services_that_know_a_control_message_get_it(preset: str) -> None:
    known = {"openai": ("steer", "inject"), "chatgpt": ("interrupt",)}
    assert whole(preset).websocket.controls == known.get(preset, ())


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, (24.0, False, 50)),
        ({"websocket": None}, (24.0, False, 50)),
        ({"websocket": {}}, (24.0, False, 50)),
        ({"websocket": {"max_sockets": 7}}, (24.0, False, 7)),
        ({"websocket": {"max_age_minutes": 10}}, (10.0, False, 50)),
        ({"websocket": {"continues_unstored": True, "max_sockets": 7}}, (24.0, True, 7)),
    ],
)
def test_a_section_is_filled_in_member_by_member(
    own: dict[str, object], expected: tuple[float, bool, int]
) -> None:
    got = whole("xai", transport="auto", **own)
    found = got.websocket
    assert got.transport == "auto"
    assert (found.max_age_minutes, found.continues_unstored, found.max_sockets) == expected


def test_without_a_preset_nothing_is_filled_in() -> None:
    text = "accounts: [{name: a, base_url: http://h, key: k}]"
    plain = load_settings(text, {}, "f").accounts[0]
    assert plain == AccountSettings("a", "http://h", "k")


def test_a_preset_may_come_from_the_environment() -> None:
    text = "accounts: [{name: a, preset: '${SERVICE}'}]"
    got = load_settings(text, {"SERVICE": "ollama"}, "f").accounts[0]
    assert got.base_url == "http://127.0.0.1:11434/v1"


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ("preset: openai", "accounts[0]: expected one of key, key_file, oauth; got none"),
        (
            "preset: azure, key: k",
            "accounts[0].base_url: missing; every entry needs it, such as "
            "https://NAME.openai.azure.com/openai/v1",
        ),
        ("key: k", "accounts[0].base_url: missing; every entry needs it, unless its preset knows"),
        ("preset: open-ai", "accounts[0].preset: 'open-ai': expected one of azure, chatgpt, "),
    ],
)
def test_what_a_preset_cannot_know_is_asked_for(entry: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(f"accounts: [{{name: a, {entry}}}]", {}, "f")
    assert str(caught.value).startswith(f"f: {line}"), f"expected {line!r}, got {caught.value}"
