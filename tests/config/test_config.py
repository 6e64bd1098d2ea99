"""The configuration: what a file means, what stays hidden, and that nothing else can happen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.config import (
    AccountSettings,
    AdminSettings,
    ConfigError,
    KeySettings,
    Settings,
    SimulatorSettings,
    load_settings,
    read_settings,
)

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "config").glob("*.yaml"))
ACCOUNT = "accounts: [{name: a, base_url: 'http://x/v1', key: k}]\n"
SECRET = "sk-leak-0123456789"


def load(text: str, **environ: str) -> Settings:
    return load_settings(text, environ, "gateway.yaml")


# What a file means


def test_no_file_means_two_stateful_simulated_accounts_on_loopback() -> None:
    settings = Settings()
    assert settings.simulator == SimulatorSettings(accounts=2, mode="stateful")
    assert (settings.accounts, settings.keys) == ((), ())
    assert settings.listen == "tcp:8080:interface=127.0.0.1"
    assert settings.admin == AdminSettings(listen="tcp:8081:interface=127.0.0.1", token=None)


def test_the_issue_s_example_is_read_as_written() -> None:
    text = """
listen: "tcp:8080:interface=127.0.0.1"
admin:
  listen: "tcp:8081:interface=127.0.0.1"
  token: "${GATEWAY_ADMIN_TOKEN}"
keys:
  - {name: laptop, key: "${GATEWAY_KEY}"}
accounts:
  - name: primary
    base_url: "https://api.openai.com/v1"
    key: "${OPENAI_API_KEY}"
    continuity: auto
    models: ["*"]
    headers: {}
routing: {strategy: round-robin, max_attempts: 3}
session: {chaining: auto, keepalive_seconds: 20, max_age_minutes: 60, max_message_bytes: 67108864}
ledger: {max_bytes: 268435456, ttl_minutes: 60}
"""
    settings = load(text, GATEWAY_ADMIN_TOKEN="t", GATEWAY_KEY="g", OPENAI_API_KEY="o")
    assert settings == Settings(
        admin=AdminSettings(token="t"),
        keys=(KeySettings("laptop", "g"),),
        accounts=(AccountSettings("primary", "https://api.openai.com/v1", "o"),),
    )
    assert settings.simulator is None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    environ = dict.fromkeys(("OPENAI_API_KEY", "GATEWAY_ADMIN_TOKEN"), "x")
    environ |= {"OPENAI_API_KEY_2": "y", "GATEWAY_KEY_LAPTOP": "l", "GATEWAY_KEY_CI": "c"}
    assert isinstance(read_settings(str(path), environ), Settings)


def test_the_pool_example_shows_the_defaults_and_every_setting() -> None:
    names = ("OPENAI_API_KEY", "OPENAI_API_KEY_2", "GATEWAY_ADMIN_TOKEN")
    environ = dict.fromkeys((*names, "GATEWAY_KEY_LAPTOP"), "x") | {"GATEWAY_KEY_CI": "c"}
    path = ROOT / "config" / "pool.yaml"
    settings, given_ = read_settings(str(path), environ), yaml.safe_load(path.read_text())
    for name in ("routing", "session", "ledger", "timeouts", "limits"):
        assert getattr(settings, name) == getattr(Settings(), name), f"{name} is not the default"
        expected = set(getattr(settings, name).__struct_encode_fields__)
        assert set(given_[name]) == expected, f"{name} does not show every setting"
    assert len(settings.accounts) == 3


def test_a_section_whose_lines_are_all_commented_out_has_its_defaults() -> None:
    empty = "session:\nkeys:\nadmin:\nledger:\n"
    assert load(ACCOUNT + empty) == load(ACCOUNT)


def test_admin_listen_null_switches_the_admin_side_off() -> None:
    assert load(ACCOUNT + "admin: {listen: null}").admin.listen is None


@pytest.mark.parametrize("url", ["https://h/v1", "https://h/v1/", "https://h/v1//"])
def test_a_trailing_slash_of_a_base_url_is_removed(url: str) -> None:
    text = f"accounts: [{{name: a, base_url: '{url}', key: k}}]"
    assert load(text).accounts[0].base_url == "https://h/v1"


def test_a_date_is_text_like_any_other() -> None:
    text = ACCOUNT + "keys: [{name: 2026-11-22, key: 2026-13-99}]"
    assert load(text).keys == (KeySettings("2026-11-22", "2026-13-99"),)


# The environment


@pytest.mark.parametrize(
    ("written", "environ", "meant"),
    [
        ("${N}", {"N": "v"}, "v"),
        ("pre-${N}-${M}-post", {"N": "v", "M": "w"}, "pre-v-w-post"),
        ("${N:-d}", {}, "d"),
        ("${N:-d}", {"N": ""}, "d"),
        ("${N:-d}", {"N": "v"}, "v"),
        ("${N:-a:b-c}", {}, "a:b-c"),
        ("$${N}", {"N": "v"}, "${N}"),
        ("$N {N} $$", {"N": "v"}, "$N {N} $$"),
        ("${N}", {"N": "${M}"}, "${M}"),
    ],
)
def test_references_are_replaced_once(written: str, environ: dict[str, str], meant: str) -> None:
    text = ACCOUNT + f"keys: [{{name: '{written}', key: k}}]"
    assert load_settings(text, environ, "f").keys[0].name == meant


def test_numbers_booleans_and_choices_may_come_from_the_environment() -> None:
    text = ACCOUNT + (
        "limits: {max_connections: '${N}'}\n"
        "session: {compression: '${B}', keepalive_seconds: '${S:-1.5}', chaining: '${C}'}"
    )
    settings = load(text, N="7", B="true", C="always")
    assert settings.limits.max_connections == 7
    assert settings.session.compression is True
    assert settings.session.keepalive_seconds == 1.5
    assert settings.session.chaining == "always"


def test_a_key_of_digits_from_the_environment_stays_text() -> None:
    assert load(ACCOUNT + "keys: [{name: n, key: '${K}'}]", K="0123").keys[0].key == "0123"


def test_a_reference_outside_values_is_left_alone() -> None:
    assert load("# ${NOT_SET}\n" + ACCOUNT).accounts[0].name == "a"


def test_a_byte_order_mark_is_harmless(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + ACCOUNT.encode())
    assert read_settings(str(file), {}).accounts[0].name == "a"


# Secrets


def test_no_repr_shows_a_secret() -> None:
    text = f"""
admin: {{token: {SECRET}a}}
keys: [{{name: n, key: {SECRET}b}}]
accounts: [{{name: a, base_url: 'http://x', key: {SECRET}c, headers: {{X-H: {SECRET}d}}}}]
"""
    settings = load(text)
    assert settings.accounts[0].headers == {"X-H": SECRET + "d"}
    for shown in (repr(settings), str(settings), f"{settings.accounts[0]}", f"{settings.keys!r}"):
        assert SECRET not in shown
    assert "X-H" in repr(settings)
    assert "<hidden>" in repr(settings)


# Whatever a file holds

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.sampled_from(
    [
        *Settings.__struct_fields__,
        *AccountSettings.__struct_fields__,
        *("token", "max_bytes", "chaining", "idle_seconds", "level", "max_attempts"),
    ]
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def settings_or_one_line(text: str, environ: Mapping[str, str] = MappingProxyType({})) -> None:
    try:
        load_settings(text, environ, "f")
    except ConfigError as error:
        line = str(error)
    else:
        line = ""
    assert line.isprintable()
    assert " - at `$" not in line, f"a type that the shape check let through: {line}"


@given(st.dictionaries(NAMES, TREES, max_size=5))
def test_any_tree_gives_settings_or_one_line(tree: object) -> None:
    settings_or_one_line(yaml.safe_dump(tree))


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"#%@`, \n\t\x00\x850$é"), max_size=40))
@example("? - a\n: b")
@example("!!python/object/apply:os.system [true]")
@example("<<: [1]")
@example("a: !!binary x")
@example("a: " + "9" * 5000)
@example("a: !!int x")
@example("a: !!timestamp 2026-99-99")
@example("? !!set {a}\n: 1")
@example("a: !!omap [1]")
def test_any_text_gives_settings_or_one_line(text: str) -> None:
    settings_or_one_line(text)


@given(st.text(max_size=20), st.dictionaries(st.sampled_from("AB"), st.text(max_size=5)))
def test_any_reference_gives_settings_or_one_line(value: str, environ: dict[str, str]) -> None:
    tree = {"simulator": {}, "keys": [{"name": value, "key": "${A}" + value}]}
    settings_or_one_line(yaml.safe_dump(tree), environ)
