"""The configuration: what a file means, and the one line that each mistake gives."""

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

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "config").glob("*.yaml"))
ACCOUNT = "accounts: [{name: a, base_url: 'http://x/v1', key: k}]\n"
KEY = "keys: [{name: n, key: v}]\n"
SECRET = "sk-leak-0123456789"


def load(text: str, **environ: str) -> Settings:
    return load_settings(text, environ, "gateway.yaml")


def mistake(text: str, **environ: str) -> str:
    """The line for `text`, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(text, **environ)
    line = str(caught.value)
    assert "\n" not in line, f"expected one line, got {line!r}"
    source, _, rest = line.partition(": ")
    assert source == "gateway.yaml", f"expected the file's name first, got {line!r}"
    return rest


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
        expected = set(getattr(settings, name).__struct_fields__)
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


# Mistakes, one line each: path, value, what is allowed


def account(**changed: str) -> str:
    """A file with one account, some of its members given as YAML."""
    members = {"name": "a", "base_url": "http://x", "key": "k"} | changed
    return "accounts: [{" + ", ".join(f"{k}: {v}" for k, v in members.items()) + "}]\n"


MISTAKES = [
    # the file as a whole
    ("a: [", "line 1, column 5: not valid YAML: expected the node content, but found"),
    ("listen: x: y", "line 1, column 10: not valid YAML: mapping values are not allowed here"),
    ("a:\n\t- b", "line 2, column 1: not valid YAML: found character '\\t' that cannot start"),
    ("a: 1\n---\nb: 1", "line 2, column 1: not valid YAML: but found another document"),
    ("a: \x00", "character 4: not allowed in YAML"),
    ("[1]", "expected a mapping with the keys listen, admin, keys, "),
    ("text", "expected a mapping with the keys listen, admin, keys, "),
    ("a: &a [*a]", "a: unknown key; expected listen, "),
    ("[" * 5000, "not usable as YAML: RecursionError"),
    ("a: " + "9" * 5000, "not usable as YAML: ValueError"),
    # keys
    (ACCOUNT + "sesion: {}", "sesion: unknown key; did you mean 'session'? expected listen, admin"),
    (ACCOUNT + "true: 1", "True: unknown key; expected listen"),
    (
        account(base_ur="x"),
        "accounts[0].base_ur: unknown key; did you mean 'base_url'? expected name, base_url, key, "
        "continuity, models, headers",
    ),
    (
        ACCOUNT + "log: {level: info}\n" + "log: {}",
        "log: given twice, first in line 2, again in line 3; expected once",
    ),
    ("accounts: [{name: a, name: b}]", "accounts[0].name: given twice, first in line 1, again"),
    ("accounts: [{name: a, base_url: http://x}]", "accounts[0].key: missing; every entry needs it"),
    # types, ranges and choices
    (ACCOUNT + "listen: 8080", "listen: 8080: expected text; put it in quotes"),
    (ACCOUNT + "session: 3", "session: expected a mapping with the keys chaining, "),
    (ACCOUNT + "keys: {}", "keys: expected a list, got a mapping"),
    (ACCOUNT + "session: {compression: 1}", "session.compression: 1: expected true or false"),
    (
        ACCOUNT + "session: {keepalive_seconds: -1}",
        "session.keepalive_seconds: -1: expected a number from 0 to 31536000",
    ),
    (
        ACCOUNT + "session: {max_age_minutes: 0}",
        "session.max_age_minutes: 0: expected a number above 0 up to 525600",
    ),
    (ACCOUNT + "timeouts: {idle_seconds: .inf}", "timeouts.idle_seconds: inf: expected a number"),
    (ACCOUNT + "timeouts: {idle_seconds: .nan}", "timeouts.idle_seconds: nan: expected a number"),
    (ACCOUNT + "timeouts: {idle_seconds: true}", "timeouts.idle_seconds: true: expected a number"),
    (
        ACCOUNT + "limits: {max_connections: 1.5}",
        "limits.max_connections: 1.5: expected a whole number from 1 to 10000000",
    ),
    (ACCOUNT + "limits: {max_connections: '5'}", "limits.max_connections: '5': expected a whole"),
    (ACCOUNT + "limits: {max_connections: 0x" + "f" * 5000 + "}", "limits.max_connections: a very"),
    (
        ACCOUNT + "session: {chaining: never}",
        "session.chaining: 'never': expected one of always, auto",
    ),
    (ACCOUNT + "log: {level: no}", "log.level: false: expected one of debug, error, info, warn"),
    (ACCOUNT + "routing: {strategy: random}", "routing.strategy: 'random': expected round-robin"),
    ("simulator: {mode: x}", "simulator.mode: 'x': expected one of forgetful, stateful, stateless"),
    ("simulator: {accounts: 0}", "simulator.accounts: 0: expected a whole number from 1 to 100"),
    (account(models="[]"), "accounts[0].models: []: expected at least one entry"),
    (account(models="['']"), "accounts[0].models[0]: '': expected text that is not empty"),
    (account(models="[' ']"), "accounts[0].models[0]: ' ': expected a model name or a pattern"),
    (account(models="gpt"), "accounts[0].models: expected a list, got text"),
    # the environment
    (
        account(key="'${OPENAI_API_KEY}'"),
        "accounts[0].key: ${OPENAI_API_KEY}: the environment variable OPENAI_API_KEY is not set; "
        "expected one that is, or ${OPENAI_API_KEY:-default}",
    ),
    (
        account(name="'${A-b}'"),
        "accounts[0].name: ${: expected ${NAME} or ${NAME:-default}, or $${",
    ),
    (account(name="'${A'"), "accounts[0].name: ${: expected ${NAME} or"),
    (ACCOUNT + "limits: {max_connections: '${N:-x}'}", "limits.max_connections: 'x': expected a"),
    # names and keys
    (ACCOUNT + "keys: [{name: 1, key: x}]", "keys[0].name: 1: expected text; put it in quotes"),
    (
        ACCOUNT + "keys: [{name: n, key: a}, {name: n, key: b}]",
        "keys[1].name: 'n': keys[0] has this name already; expected each name once",
    ),
    (
        ACCOUNT + "keys: [{name: n, key: a}, {name: m, key: a}]",
        "keys[1].key: <hidden>: keys[0] has this key already; expected each key once",
    ),
    (
        "accounts: [&a {name: a, base_url: 'http://x', key: k}, *a]",
        "accounts[1].name: 'a': accounts[0] has this name already; expected each name once",
    ),
    (account(name='"a\\nb"'), "accounts[0].name: 'a\\nb': expected at most 128 printable"),
    (account(key='"k\\n"'), "accounts[0].key: <hidden>: expected printable ASCII characters"),
    (account(key="''"), "accounts[0].key: <hidden>: expected text that is not empty"),
    # upstreams
    ("", "accounts: none; expected at least one account, or 'simulator: {accounts: 2}' in their"),
    (
        "accounts: []",
        "accounts: none; expected at least one account, or 'simulator: {accounts: 2}'",
    ),
    ("simulator: null", "accounts: none; expected at least one account"),
    (ACCOUNT + "simulator: {}", "simulator: expected either accounts or the simulator, got both"),
    (
        account(base_url="'ftp://x'"),
        "accounts[0].base_url: 'ftp://x': expected an http:// or https:// URL",
    ),
    (account(base_url="x.com"), "accounts[0].base_url: 'x.com': expected an http:// or https://"),
    (account(base_url="'http://'"), "accounts[0].base_url: 'http://': expected an http:// or"),
    (account(base_url="'http://x:99999'"), "accounts[0].base_url: 'http://x:99999': expected an"),
    (account(base_url="'http://[::1'"), "accounts[0].base_url: 'http://[::1': expected an http://"),
    (account(base_url="'http://x y'"), "accounts[0].base_url: 'http://x y': expected an http://"),
    (
        account(base_url="'http://x/v1?a=b'"),
        "accounts[0].base_url: 'http://x/v1': expected an http:// or https:// URL without a query",
    ),
    (
        account(base_url="'http://user:word@x'"),
        "accounts[0].base_url: 'http://<hidden>@x': expected an http:// or https:// URL without a "
        "user name",
    ),
    (account(headers="{X-A: 1}"), "accounts[0].headers.X-A: <hidden>: expected text; put it in"),
    (account(headers="{1: x}"), "accounts[0].headers.1: expected text as the name"),
    (account(headers="{'X A': x}"), "accounts[0].headers.X A: expected an HTTP header name"),
    (account(headers='{A: "x\\r\\nB: y"}'), "accounts[0].headers.A: <hidden>: expected printable"),
    (account(headers="{A: x, a: y}"), "accounts[0].headers.a: given twice in different case"),
    (
        account(headers="{Content-Length: '5'}"),
        "accounts[0].headers.Content-Length: expected another header; the gateway sets this one",
    ),
    # listening
    (ACCOUNT + "listen: '8080'", "listen: '8080': expected a Twisted endpoint such as tcp:8080"),
    (ACCOUNT + "listen: tpc:8080", "listen: 'tpc:8080': expected a Twisted endpoint such as tcp:"),
    (ACCOUNT + "listen: tcp", "listen: 'tcp': expected a Twisted endpoint such as tcp:8080:inter"),
    (ACCOUNT + "listen: tcp:x", "listen: 'tcp:x': expected a Twisted endpoint such as "),
    (ACCOUNT + "listen: tcp:65536", "listen: 'tcp:65536': expected a Twisted endpoint such as "),
    (ACCOUNT + "listen: tcp:80:iface=1", "listen: 'tcp:80:iface=1': expected a Twisted endpoint"),
    (ACCOUNT + "listen: tcp:80:interface=::1", "listen: 'tcp:80:interface=::1': expected a"),
    (ACCOUNT + "listen: unix:a:mode=rw", "listen: 'unix:a:mode=rw': expected a Twisted endpoint"),
    (ACCOUNT + "listen: systemd:domain=INET", "listen: 'systemd:domain=INET': expected a Twisted"),
    (
        ACCOUNT + KEY + "listen: 'ssl:1:privateKey=/nowhere.pem'",
        "listen: 'ssl:1:privateKey=/nowhere.pem': expected a Twisted endpoint such as "
        "tcp:8080:interface=127.0.0.1: /nowhere.pem: No such file or directory",
    ),
    (
        ACCOUNT + "listen: tcp:8080",
        "keys: []: expected at least one key, because other machines can reach listen 'tcp:8080'; "
        "without keys listen on 127.0.0.1, ::1 or unix:",
    ),
    (
        ACCOUNT + "admin: {listen: tcp:8081}",
        "admin.token: null: expected a token, because other machines can reach "
        "admin.listen 'tcp:8081'",
    ),
    (
        ACCOUNT + "admin: {listen: 'tcp:8080:interface=127.0.0.1'}",
        "admin.listen: 'tcp:8080:interface=127.0.0.1': expected another place than listen",
    ),
]


@pytest.mark.parametrize(("text", "line"), MISTAKES, ids=[line[:40] for _, line in MISTAKES])
def test_a_mistake_is_one_line_with_path_value_and_what_is_allowed(text: str, line: str) -> None:
    got = mistake(text)
    assert got.startswith(line), f"expected a line that starts with {line!r}, got {got!r}"


@pytest.mark.parametrize(
    "listen",
    [
        "tcp:8080:interface=127.0.0.1",
        "tcp:8080:127.0.0.1",
        "tcp:port=8080:interface=127.8.9.10",
        "tcp:8080:interface=localhost",
        r"tcp:8080:interface=\:\:1",
        r"tcp6:8080:interface=\:\:1",
        "haproxy:tcp:8080:interface=127.0.0.1",
        "unix:/run/gateway.sock",
        "unix:address=gateway.sock:mode=600",
        "systemd:domain=UNIX:name=clients",
    ],
)
def test_no_keys_are_needed_where_only_this_machine_can_connect(listen: str) -> None:
    assert load(ACCOUNT + f"listen: '{listen}'").listen == listen


@pytest.mark.parametrize(
    "listen",
    [
        "tcp:8080",
        "tcp:8080:interface=0.0.0.0",
        "tcp:8080:interface=192.168.1.5",
        r"tcp:8080:interface=\:\:",
        "tcp6:8080",
        "tcp:8080:interface=gateway.example",
        "haproxy:tcp:8080",
        "systemd:domain=INET:name=clients",
    ],
)
def test_keys_are_needed_where_others_can_connect(listen: str) -> None:
    assert mistake(ACCOUNT + f"listen: '{listen}'").startswith("keys: []: expected at least one")
    assert load(ACCOUNT + KEY + f"listen: '{listen}'").listen == listen


def test_port_zero_may_be_used_twice() -> None:
    zero = "'tcp:0:interface=127.0.0.1'"
    assert load(ACCOUNT + f"listen: {zero}\nadmin: {{listen: {zero}}}").admin.listen


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(str(tmp_path / "none.yaml"), {})
    assert str(caught.value) == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_settings(str(tmp_path), {})
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match="byte 6: not UTF-8 text"):
        read_settings(str(latin), {})


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


@pytest.mark.parametrize(
    "text",
    [
        f"keys: [{SECRET}]",
        f"keys: {SECRET}",
        f"keys: [{{name: n, key: [{SECRET}]}}]",
        f"keys: [{{name: n, key: '{SECRET} x'}}]",
        f"keys: [{{name: n, key: '${{{SECRET}}}'}}]",
        f"keys: [{{name: n, key: *{SECRET}}}]",
        f"keys: [{{name: n, key: !{SECRET} x}}]",
        f"keys: [{{name: n, key: {SECRET}}}, {{name: m, key: {SECRET}}}]",
        f"keys: [{{name: n, kee: {SECRET}}}]",
        f"keys: [{{name: n, key: {SECRET}: x}}]",
        f"keys: [{{name: n, key: {SECRET}",
        f"admin: {{token: [{SECRET}]}}",
        f"admin: {{token: '{SECRET} x'}}",
        account(headers=f"[{SECRET}]"),
        account(headers=SECRET),
        account(headers=f"{{X-A: [{SECRET}]}}"),
        account(headers=f'{{X-A: "{SECRET}\\n"}}'),
        account(headers=f"{{Content-Length: {SECRET}}}"),
        account(key=f"'{SECRET} '"),
        account(base_url=f"'http://u:{SECRET}@x'"),
        account(base_url=f"'http://{SECRET}@x:99999'"),
        account(base_url=f"'http://x/?key={SECRET}'"),
    ],
)
def test_no_mistake_shows_a_secret(text: str) -> None:
    whole = text if text.startswith("accounts") else ACCOUNT + text
    assert SECRET not in mistake(whole)


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
