"""The configuration: what a file means, what stays hidden, and that nothing else can happen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import inspect

from gateway.config import (
    AccountSettings,
    AdminSettings,
    ConfigError,
    ContentLogSettings,
    KeySettings,
    OAuthSettings,
    Settings,
    SimulatorSettings,
    UpstreamWebSocketSettings,
    load_settings,
    read_text,
)
from gateway.config.presets import PRESETS

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "config").glob("*.yaml"))
ACCOUNT = "accounts: [{name: a, base_url: 'http://x/v1', key: k}]\n"
SECRET = "sk-leak-0123456789"


def read_settings(path: str, environ: Mapping[str, str]) -> Settings:
    return load_settings(read_text(path), environ, path)


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


@pytest.fixture
def environ() -> dict[str, str]:
    """Every variable that the examples name has a value of its own."""
    names = set(re.findall(r"\$\{(\w+)", "".join(path.read_text() for path in EXAMPLES)))
    # Some stand in URLs, whose hosts know no underscore.
    values = {name: f"value-of-{name.replace('_', '-')}" for name in names}
    return values | {"GATEWAY_LOG_LEVEL": "info"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads(
    path: Path, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a token_file may be kept
    assert isinstance(read_settings(str(path), environ), Settings)


def test_the_pool_example_shows_the_defaults_and_every_setting(environ: dict[str, str]) -> None:
    path = ROOT / "config" / "pool.yaml"
    settings, given_ = read_settings(str(path), environ), yaml.safe_load(path.read_text())
    for name in ("routing", "session", "ledger", "timeouts", "limits"):
        assert getattr(settings, name) == getattr(Settings(), name), f"{name} is not the default"
        expected = set(getattr(settings, name).__struct_encode_fields__)
        assert set(given_[name]) == expected, f"{name} does not show every setting"
    assert len(settings.accounts) == 3
    assert settings.accounts[0].websocket == UpstreamWebSocketSettings(), "not the defaults"
    entries = (KeySettings, AccountSettings, OAuthSettings, ContentLogSettings)
    for entry in (*entries, UpstreamWebSocketSettings):
        for name in entry.__struct_encode_fields__:
            assert re.search(rf"\b{name}:", path.read_text()), f"{entry.__name__}.{name} is missing"


def test_the_pool_example_loads_with_its_commented_token_account(
    environ: dict[str, str], tmp_path: Path
) -> None:
    text = (ROOT / "config" / "pool.yaml").read_text()
    start = text.index("  #- name: tokens")
    end = text.index("\nrouting:")
    shown = "\n".join(line.replace("#", "", 1) for line in text[start:end].splitlines())
    shown = shown.replace("/var/lib/responses-gateway", str(tmp_path))
    settings = load(text[:start] + shown + text[end:], **environ)
    assert settings.accounts[3].oauth is not None
    assert settings.accounts[3].oauth.scope == "models offline_access"


def test_the_presets_example_has_one_account_of_each(environ: dict[str, str]) -> None:
    settings = read_settings(str(ROOT / "config" / "presets.yaml"), environ)
    assert [account.preset for account in settings.accounts] == list(PRESETS)
    assert [account.name for account in settings.accounts if not account.enabled] == ["chatgpt"]


def test_the_team_example_has_no_key_that_anybody_could_know(environ: dict[str, str]) -> None:
    settings = read_settings(str(ROOT / "config" / "team.yaml"), environ)
    assert all(key.key is None and key.key_sha256 for key in settings.keys)
    assert {account.weight for account in settings.accounts} == {3, 1}


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


def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    text = f"""
admin: {{token: {SECRET}a}}
keys: [{{name: n, key: {SECRET}b}}, {{name: m, key_sha256: "{"0f" * 32}"}}]
accounts:
  - name: a
    base_url: http://x
    key: {SECRET}c
    headers: {{X-H: {SECRET}d}}
    proxy: "http://{SECRET}e:{SECRET}f@proxy.test:3128"
  - name: b
    base_url: http://x
    oauth:
      token_url: http://login.test/token
      client_id: visible
      client_secret: {SECRET}g
      refresh_token: {SECRET}h
      token_file: {tmp_path}/tokens.json
"""
    settings = load(text)
    assert settings.accounts[0].headers == {"X-H": SECRET + "d"}
    parts = (settings, *settings.accounts, *settings.keys, settings.accounts[1].oauth)
    for shown in (*map(repr, parts), *map(str, parts), f"{settings.keys!r}"):
        assert SECRET not in shown
        assert "0f0f" not in shown
    for word in ("X-H", "<hidden>", "proxy.test:3128", "visible"):
        assert word in repr(settings), f"the operator should see {word}"


# Whatever a file holds

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.sampled_from(
    [
        *Settings.__struct_fields__,
        *AccountSettings.__struct_fields__,
        *KeySettings.__struct_fields__,
        *OAuthSettings.__struct_fields__,
        *("return", "token", "max_bytes", "chaining", "idle_seconds", "level", "max_attempts"),
    ]
)
VALUES = st.sampled_from(
    [
        "http://h/v1",
        "socks5://u:p@h:1",
        "/dev/zero",
        "/",
        "x\0y",
        "\ud800",
        "a" * 64,
        "ollama",
        "azure",
    ]
)
TREES = st.recursive(
    SCALARS | VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def settings_or_one_line(text: str, environ: Mapping[str, str] = MappingProxyType({})) -> str:
    """The line, or nothing for settings."""
    try:
        load_settings(text, environ, "f")
    except ConfigError as error:
        lines = error.lines
    else:
        lines = []
    assert all(each.isprintable() for each in lines)
    line = "\n".join(lines)
    assert " - at `$" not in line, f"a type that the shape check let through: {line}"
    return line


@given(st.dictionaries(NAMES, TREES, max_size=5))
def test_any_tree_gives_settings_or_one_line(tree: object) -> None:
    settings_or_one_line(yaml.safe_dump(tree))


def fitting(kind: inspect.Type) -> st.SearchStrategy[object]:
    """Values of the right type, so that the rules have something to say."""
    if isinstance(kind, inspect.UnionType):
        return st.none() | st.one_of([fitting(inner) for inner in kind.types])
    if isinstance(kind, inspect.StructType):
        fields = {field.encode_name: field for field in kind.fields}
        return st.fixed_dictionaries(
            {name: fitting(field.type) for name, field in fields.items() if field.required},
            optional={name: fitting(f.type) for name, f in fields.items() if not f.required},
        )
    if isinstance(kind, inspect.VarTupleType):
        return st.lists(fitting(kind.item_type), min_size=kind.min_length or 0, max_size=2)
    if isinstance(kind, inspect.DictType):
        return st.dictionaries(st.text(max_size=3), fitting(kind.value_type), max_size=2)
    if isinstance(kind, inspect.LiteralType):
        return st.sampled_from(kind.values)
    if isinstance(kind, (inspect.IntType, inspect.FloatType)):
        return st.integers(1, 3)
    return {inspect.BoolType: st.booleans(), inspect.NoneType: st.none()}.get(
        type(kind), VALUES | st.text(min_size=1, max_size=4)
    )


ENTRIES = {
    "accounts": st.lists(fitting(inspect.type_info(AccountSettings)), max_size=2),
    "keys": st.lists(fitting(inspect.type_info(KeySettings)), max_size=2),
}


@given(st.fixed_dictionaries(ENTRIES))
def test_any_entries_of_the_right_types_give_settings_or_one_line(tree: object) -> None:
    settings_or_one_line(yaml.safe_dump(tree))


@given(
    st.sampled_from(list(AccountSettings.__struct_encode_fields__)),
    st.fixed_dictionaries({"name": st.just("a"), "base_url": st.just("http://h")}),
    st.data(),
)
def test_one_member_of_any_value_gives_settings_or_one_line(
    member: str, entry: dict[str, object], data: st.DataObject
) -> None:
    fields = {field.encode_name: field for field in inspect.type_info(AccountSettings).fields}
    value = data.draw(fitting(fields[member].type))
    given_ = {**entry, "key": "k"} if member not in ("key_file", "oauth") else entry
    settings_or_one_line(yaml.safe_dump({"accounts": [{**given_, member: value}]}))


@given(
    st.sampled_from(["key", "proxy", "key_file", "auth_header", "oauth", "headers"]),
    st.builds("{}{}{}".format, st.text(max_size=4), st.just(SECRET), st.text(max_size=4))
    | st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "http://", "socks5://", "ftp://"]),
        st.sampled_from(["", "u:", "u@", ":"]),
        st.just(SECRET),
        st.sampled_from(["", "@", "@h", "@h:0", "@h:1/x", ":x@h:1", "@@", "@h:1?", "@h:1\n"]),
    ),
    st.booleans(),
)
def test_no_message_about_an_account_shows_what_authorizes_it(
    member: str, value: str, wrapped: bool
) -> None:
    if member == "auth_header":  # somebody puts the key, not the header's name, there
        value = f"X-Key: {value}"
    if member == "key_file":  # a path is shown, and a path may be called anything
        value = value.lstrip("./")
    account = {"name": "a", "base_url": "http://h", "key": "k"}
    entry: object = [value] if wrapped else value
    if member == "headers":
        entry = {"X-A": entry}
    if member == "oauth":
        inner = {"token_url": "http://h", "client_id": "c", "token_file": "t"}
        entry = {**inner, "client_secret": entry, "refresh_token": entry}
    if member in ("key", "key_file", "oauth"):
        del account["key"]
    account = {**account, member: entry}
    assert SECRET not in settings_or_one_line(yaml.safe_dump({"accounts": [account]}))


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
