"""What the operator is shown of every setting, and where it says it comes from."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway import config
from gateway.config import ConfigError, Setting, Settings, in_force

SECRET = "sk-leak-0123456789"
TEXT = f"""
listen: "tcp:${{PORT:-8080}}:interface=127.0.0.1"
admin: {{token: "${{TOKEN}}"}}
keys: [{{name: laptop, key: {SECRET}}}]
accounts:
  - name: one
    preset: openai
    key: {SECRET}
    proxy: "http://user:{SECRET}@proxy.test:3128"
    headers: {{OpenAI-Project: "${{PROJECT}}-${{TOKEN}}"}}
    background: false
  - {{name: two, preset: "${{SERVICE}}", proxy: null}}
  - {{name: three, preset: xai, key: {SECRET}, websocket: {{max_age_minutes: "${{AGE:-9}}"}}}}
session:
  keepalive_seconds: ${{KEEPALIVE:-20}}
routing: {{return: stay}}
ledger:
"""
ENVIRON = {"TOKEN": SECRET, "PROJECT": SECRET, "SERVICE": "ollama", "KEEPALIVE": "7"}


def describe(text: str | None, environ: dict[str, str]) -> list[Setting]:
    return config.described(None if text is None else config.load(text, environ, "gateway.yaml"))


def described(text: str | None = TEXT, **environ: str) -> dict[str, Setting]:
    settings = describe(text, {**ENVIRON, **environ})
    by_path = {setting.path: setting for setting in settings}
    assert len(by_path) == len(settings), "expected every path once"
    return by_path


@pytest.mark.parametrize(
    ("path", "value", "origin"),
    [
        ("session.keepalive_seconds", 7.0, "environment KEEPALIVE"),
        ("session.hold_seconds", 5.0, "default"),
        ("routing.return", "stay", "file"),
        ("routing.strategy", "round-robin", "default"),
        ("ledger.ttl_minutes", 60.0, "default"),
        ("admin.token", "<hidden>", "environment TOKEN"),
        ("keys[0].name", "laptop", "file"),
        ("keys[0].key", "<hidden>", "file"),
        ("keys[0].models", ["*"], "default"),
        ("accounts[0].base_url", "https://api.openai.com/v1", "preset openai"),
        ("accounts[0].background", False, "file"),
        ("accounts[0].continuity", "auto", "default"),
        ("accounts[0].proxy", "http://<hidden>@proxy.test:3128", "file"),
        ("accounts[0].headers", {"OpenAI-Project": "<hidden>"}, "environment PROJECT, TOKEN"),
        ("accounts[1].preset", "ollama", "environment SERVICE"),
        ("accounts[1].key", "<hidden>", "preset ollama"),
        ("accounts[1].proxy", None, "file"),
        ("accounts[1].strip", "*", "preset ollama"),
        ("accounts[0].transport", "auto", "preset openai"),
        ("accounts[0].websocket.continues_unstored", True, "default"),
        ("accounts[2].websocket.continues_unstored", False, "preset xai"),
        ("accounts[2].websocket.max_age_minutes", 9.0, "file"),
        ("accounts[2].websocket.max_sockets", 50, "default"),
        ("simulator", None, "default"),
    ],
)
def test_every_setting_has_its_value_and_its_origin(path: str, value: object, origin: str) -> None:
    setting = described()[path]
    assert setting.origin == origin
    if value != "*":
        assert setting.value == value


@pytest.mark.parametrize(
    ("environ", "origin"),
    [({}, "file"), ({"PORT": ""}, "file"), ({"PORT": "1"}, "environment PORT")],
)
def test_a_variable_is_the_origin_only_when_its_value_is_used(
    environ: dict[str, str], origin: str
) -> None:
    assert described(**environ)["listen"].origin == origin


def test_nothing_shown_is_a_secret_and_all_of_it_is_json() -> None:
    shown = json.dumps(list(described().values()))
    assert SECRET not in shown
    assert "user" not in shown.replace("user name", "")


def test_oauth_is_shown_without_its_secrets(tmp_path: object) -> None:
    oauth = {
        "token_url": "https://login.test/token",
        "client_id": "public",
        "client_secret": SECRET,
        "refresh_token": SECRET,
        "token_file": f"{tmp_path}/tokens.json",
    }
    entry = {"name": "a", "base_url": "http://h", "oauth": oauth}
    shown = described(yaml.safe_dump({"accounts": [entry]}))
    assert shown["accounts[0].oauth.client_id"] == ("accounts[0].oauth.client_id", "public", "file")
    assert shown["accounts[0].oauth.refresh_token"].value == "<hidden>"
    assert shown["accounts[0].oauth.refresh_before_seconds"].origin == "default"
    assert SECRET not in json.dumps(list(shown.values()))


def test_a_start_without_a_file_is_all_defaults() -> None:
    shown = described(None)
    assert {setting.origin for setting in shown.values()} == {"default"}
    assert shown["simulator.accounts"].value == 2
    assert shown["keys"].value == []


def test_every_section_is_described() -> None:
    sections = {path.partition(".")[0].partition("[")[0] for path in described()}
    assert sections == set(Settings.__struct_encode_fields__)


def test_a_mistake_is_the_same_line_as_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"^gateway.yaml: listen: 5: expected text"):
        described("accounts: [{name: a, preset: ollama}]\nlisten: 5")


@given(st.dictionaries(st.sampled_from(["PORT", "KEEPALIVE"]), st.integers(1, 999).map(str)))
def test_values_that_are_set_are_named_as_their_origin(environ: dict[str, str]) -> None:
    shown = {s.path: s for s in describe(TEXT, {**ENVIRON, "KEEPALIVE": "", **environ})}
    for name, path in (("PORT", "listen"), ("KEEPALIVE", "session.keepalive_seconds")):
        expected = f"environment {name}" if name in environ else "file"
        assert shown[path].origin == expected


# --- after a reload ------------------------------------------------------------------------


def test_what_waits_for_a_restart_is_shown_as_it_still_is() -> None:
    started = describe(TEXT, ENVIRON)
    moved = TEXT.replace("PORT:-8080", "PORT:-9090").replace("stay", "sticky")
    shown = in_force(started, describe(moved, ENVIRON), ["listen"])
    by_path = {each.path: each for each in shown}
    assert by_path["listen"].value == "tcp:8080:interface=127.0.0.1"
    assert by_path["listen"].origin == "file, until a restart"
    assert by_path["routing.return"].value == "sticky", "this one is in force"
    assert [each.path for each in shown] == [each.path for each in started], "each in its place"


def test_a_simulator_that_waits_is_not_shown() -> None:
    one, other = "simulator: {accounts: 3}", "accounts: [{name: a, preset: ollama}]"
    for before, after in ((one, other), (other, one)):
        started = describe(before, {})
        shown = in_force(started, describe(after, {}), ["simulator"])
        simulated = [(each.path, each.value) for each in shown if "simulator" in each.path]
        assert simulated == [(s.path, s.value) for s in started if "simulator" in s.path]
    assert [each.origin for each in shown if "simulator" in each.path] == [
        "default, until a restart"
    ]
