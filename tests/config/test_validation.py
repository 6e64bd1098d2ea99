"""Every mistake in a configuration is one line: path, value, what is allowed; never a secret."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from gateway import config
from gateway.config import ConfigError, Settings, load_settings, read_text

ACCOUNT = "accounts: [{name: a, base_url: 'http://x/v1', key: k}]\n"
KEY = "keys: [{name: n, key: v}]\n"
SECRET = "sk-leak-0123456789"
DIGEST = sha256(b"v").hexdigest()
UNKNOWN = (
    "expected listen, admin, keys, accounts, routing, session, ledger, state, workers, "
    "timeouts, limits, log, environment_file, simulator"
)
SET = "expected one that is, or ${{{}:-default}}"


def load(text: str, **environ: str) -> Settings:
    return load_settings(text, environ, "gateway.yaml")


def mistakes(text: str, **environ: str) -> list[str]:
    """The lines for `text`, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(text, **environ)
    found = []
    for line in str(caught.value).split("\n"):
        source, _, rest = line.partition(": ")
        assert source == "gateway.yaml", f"expected the file's name first, got {line!r}"
        found.append(rest)
    return found


def mistake(text: str, **environ: str) -> str:
    """The first of them."""
    return mistakes(text, **environ)[0]


def account(**changed: str) -> str:
    """A file with one account, some of its members given as YAML."""
    members = {"name": "a", "base_url": "http://x", "key": "k"} | changed
    return "accounts: [{" + ", ".join(f"{k}: {v}" for k, v in members.items()) + "}]\n"


STORES = (
    "expected sqlite, memory, redis://HOST:6379/0, rediss://HOST:6379/0,"
    " or redis+sentinel://HOST:26379,HOST:26379/SERVICE/0"
)

MISTAKES = [
    # state and workers
    (ACCOUNT + "workers: 0", "workers: 0: expected a whole number from 1 to 256, or auto"),
    (ACCOUNT + "workers: many", "workers: 'many': expected a whole number from 1 to 256, or auto"),
    (ACCOUNT + "workers: null", "workers: null: expected a whole number from 1 to 256, or auto"),
    (ACCOUNT + "state: {store: mysql}", f"state.store: 'mysql': {STORES}"),
    (ACCOUNT + "state: {store: 'http://h'}", f"state.store: 'http': {STORES}"),
    (ACCOUNT + "state: {store: 'redis://'}", f"state.store: 'redis://': {STORES}"),
    (ACCOUNT + "state: {store: 'redis://h:x/0'}", f"state.store: <hidden>: {STORES}"),
    (ACCOUNT + "state: {store: 'redis://a,b/0'}", f"state.store: 'redis://a,b/0': {STORES}"),
    (
        ACCOUNT + "state: {store: 'redis+sentinel://h'}",
        f"state.store: 'redis+sentinel://h': {STORES}",
    ),
    (
        ACCOUNT + "state: {store: 'redis://:sk-leak-0123456789@h/one'}",
        f"state.store: 'redis://<hidden>@h/one': {STORES}",
    ),
    (
        ACCOUNT + "state: {encryption_key: sk-leak-0123}",
        "state.encryption_key: <hidden>: expected at least 16 characters, such as openssl",
    ),
    # the file as a whole
    ("a: [", "line 1, column 5: not valid YAML: expected the node content, but found"),
    ("a: {b: ${X:-7}}", "line 1, column 9: not valid YAML: expected ',' or '}', but got '{'"),
    ("listen: x: y", "line 1, column 10: not valid YAML: mapping values are not allowed here"),
    ("a:\n\t- b", "line 2, column 1: not valid YAML: found character '\\t' that cannot start"),
    ("a: 1\n---\nb: 1", "line 2, column 1: not valid YAML: but found another document"),
    ("a: \x00", "line 1: holds a character that YAML does not allow"),
    ("[1]", "expected a mapping with the keys listen, admin, keys, "),
    ("text", "expected a mapping with the keys listen, admin, keys, "),
    ("a: &a [*a]", "a: unknown key; expected listen, "),
    ("[" * 5000, "not usable as YAML: nested too deeply"),
    (
        "listen: x\nlimits: {max_connections: %s}" % ("9" * 5000),
        "line 2, column 27: not valid YAML: found a value that cannot be read",
    ),
    *(
        (f"listen: {value}", "line 1, column 9: not valid YAML: found a value that cannot be read")
        for value in ("!!int", "!!int x", "!!float x", "!!bool x", "!!timestamp x")
    ),
    # keys
    (ACCOUNT + "sesion: {}", "sesion: unknown key; did you mean 'session'? expected listen, admin"),
    (ACCOUNT + "true: 1", "True: unknown key; expected listen"),
    (
        account(base_ur="x"),
        "accounts[0].base_ur: unknown key; did you mean 'base_url'? expected name, base_url, key, "
        "key_file, oauth, preset, ",
    ),
    (
        ACCOUNT + "log: {level: info}\n" + "log: {}",
        "log: given twice, first in line 2, again in line 3; expected once",
    ),
    ("accounts: [{name: a, name: b}]", "accounts[0].name: given twice, first in line 1, again"),
    (
        "accounts: [{name: a, base_url: http://x}]",
        "accounts[0]: expected one of key, key_file, oauth; got none",
    ),
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
        ACCOUNT + "session: {eviction: none}",
        "session.eviction: 'none': expected one of lenient, strict",
    ),
    (
        ACCOUNT + "session: {chaining: never}",
        "session.chaining: 'never': expected one of always, auto",
    ),
    (ACCOUNT + "log: {level: no}", "log.level: false: expected one of debug, error, info, warn"),
    (ACCOUNT + "routing: {strategy: random}", "routing.strategy: 'random': expected one of "),
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
    (
        account(max_in_flight="0"),
        "accounts[0].max_in_flight: 0: expected a whole number from 1 to 10000000, or null for no",
    ),
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
    (
        account(key="'\"k\"'"),
        "accounts[0].key: <hidden>: expected it without the quotes around it",
    ),
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
    *(
        (
            account(base_url=f"'http://{host}/v1'"),
            f"accounts[0].base_url: 'http://{host}/v1': expected an http:// or https:// URL whose "
            "host is an address, or a name of letters, digits and hyphens (no underscore)",
        )
        # Whatever Twisted would refuse at the first turn.
        for host in (
            *("my_vllm:8000", "a..b", ".x", "-x", "x-", "*.x", "eu--1.x", "xn--a.x"),
            *("[fe80::1%25eth0]", "a" * 64),
        )
    ),
    (account(base_url="'http://x:/v1'"), "accounts[0].base_url: 'http://x:/v1': expected an http:"),
    *(
        (
            account(base_url=f"'http://x/v1{endpoint}/'"),
            f"accounts[0].base_url: 'http://x/v1{endpoint}': expected it without {endpoint}, "
            "which the gateway adds",
        )
        for endpoint in ("/responses", "/chat/completions", "/models")
    ),
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
    # client keys
    (ACCOUNT + "keys: [{name: n}]", "keys[0]: expected one of key, key_sha256; got none"),
    (
        ACCOUNT + f"keys: [{{name: n, key: k, key_sha256: '{'0' * 64}'}}]",
        "keys[0]: expected one of key, key_sha256; got key and key_sha256",
    ),
    (
        ACCOUNT + "keys: [{name: n, key_sha256: abc}]",
        "keys[0].key_sha256: <hidden>: expected the SHA-256 of the key, 64 hexadecimal digits",
    ),
    (
        ACCOUNT + f"keys: [{{name: n, key: v}}, {{name: m, key_sha256: '{DIGEST.upper()}'}}]",
        "keys[1].key_sha256: <hidden>: keys[0] has this key already; expected each key once",
    ),
    (ACCOUNT + "keys: [{name: n, key: v, models: ['']}]", "keys[0].models[0]: '': expected text"),
    (ACCOUNT + "keys: [{name: n, key: v, models: [' ']}]", "keys[0].models[0]: ' ': expected a m"),
    (
        ACCOUNT + "keys: [{name: n, key: v, max_concurrent_turns: 0}]",
        "keys[0].max_concurrent_turns: 0: expected a whole number from 1 to 10000000",
    ),
    # credentials of accounts
    (
        account(key_file="/k"),
        "accounts[0]: expected one of key, key_file, oauth; got key and key_file",
    ),
    (
        account(oauth="{}"),
        "accounts[0].oauth.token_url: missing; every entry needs it",
    ),
    (
        account(auth_header="'X-Key:'"),
        "accounts[0].auth_header: <hidden>: expected the name of an HTTP header such as api-key",
    ),
    (
        account(auth_header="Upgrade"),
        "accounts[0].auth_header: 'Upgrade': expected another header; the gateway sets this one",
    ),
    (
        account(headers="{Authorization: x}"),
        "accounts[0].headers.Authorization: expected another header; this one carries the key",
    ),
    # models, members, the pool
    (account(aliases="{'': x}"), "accounts[0].aliases.: 'x': expected a model's name for clients"),
    (account(aliases="{a: ''}"), "accounts[0].aliases.a: '': expected text that is not empty"),
    (
        account(aliases="{a: ' '}"),
        "accounts[0].aliases.a: ' ': expected a model's name for clients",
    ),
    (account(aliases="{1: b}"), "accounts[0].aliases.1: expected text as the name"),
    (account(strip="['a b']"), "accounts[0].strip[0]: 'a b': expected the name of a request's"),
    # WebSockets to the account
    (
        account(transport="ws"),
        "accounts[0].transport: 'ws': expected one of auto, http, websocket",
    ),
    (
        account(websocket="true"),
        "accounts[0].websocket: expected a mapping with the keys max_sockets, max_age_minutes, ",
    ),
    (
        account(websocket="{max_socket: 1}"),
        "accounts[0].websocket.max_socket: unknown key; did you mean 'max_sockets'? ",
    ),
    (
        account(websocket="{max_sockets: 3, spare_sockets: 4}"),
        "accounts[0].websocket.spare_sockets: 4: expected at most max_sockets, which is 3",
    ),
    (
        account(websocket="{ping_seconds: 0}"),
        "accounts[0].websocket.ping_seconds: 0: expected a number from 1 to 3600",
    ),
    (
        account(websocket="{max_age_minutes: 0}"),
        "accounts[0].websocket.max_age_minutes: 0: expected a number above 0 up to 525600",
    ),
    (
        account(websocket="{path: 'responses?a=b'}"),
        "accounts[0].websocket.path: 'responses': expected a path such as /responses",
    ),
    (account(websocket="{path: '/a b'}"), "accounts[0].websocket.path: '/a b': expected a path"),
    (account(websocket="{path: '/a#b'}"), "accounts[0].websocket.path: '/a#b': expected a path"),
    (
        account(websocket="{beta: 'a, b'}"),
        "accounts[0].websocket.beta: 'a, b': expected one value of OpenAI-Beta, without spaces",
    ),
    (
        account(websocket="{subprotocols: ['a, b']}"),
        "accounts[0].websocket.subprotocols[0]: <hidden>: expected a name without spaces",
    ),
    (
        account(websocket="{subprotocols: [a, openai-insecure-api-key.k]}"),
        "accounts[0].websocket.subprotocols[1]: <hidden>: expected one without a key, which",
    ),
    (
        account(websocket="{subprotocols: [a, b, a]}"),
        "accounts[0].websocket.subprotocols[2]: 'a': given twice; expected each once",
    ),
    (
        account(websocket="{controls: [steer, stop]}"),
        "accounts[0].websocket.controls[1]: 'stop': expected one of cancel, inject, ",
    ),
    (
        account(websocket="{controls: [steer, steer]}"),
        "accounts[0].websocket.controls[1]: 'steer': given twice; expected each once",
    ),
    (account(strip="[user, store]"), "accounts[0].strip[1]: 'store': expected another member; "),
    (account(weight="0"), "accounts[0].weight: 0: expected a whole number from 1 to 1000"),
    (account(priority="-1"), "accounts[0].priority: -1: expected a whole number from 0 to 1000"),
    (account(max_in_flight="0"), "accounts[0].max_in_flight: 0: expected a whole number from 1"),
    (account(store="always"), "accounts[0].store: 'always': expected one of client, never"),
    (account(tools="flat"), "accounts[0].tools: 'flat': expected one of as-sent, hoisted"),
    (
        account(enabled="false"),
        "accounts: all of them have 'enabled: false'; expected at least one without it",
    ),
    (
        ACCOUNT + "routing: {return_to: stay}",
        "routing.return_to: unknown key; did you mean 'return'",
    ),
    (ACCOUNT + "routing: {return: home}", "routing.return: 'home': expected one of stay, sticky"),
    (ACCOUNT + "routing: {queue_seconds: -1}", "routing.queue_seconds: -1: expected a number from"),
    (
        ACCOUNT + "routing: {cooldown_max_seconds: 0}",
        "routing.cooldown_max_seconds: 0: expected a ",
    ),
    (
        ACCOUNT + "routing: {max_bindings: 0}",
        "routing.max_bindings: 0: expected a whole number fro",
    ),
    # proxies, of which nothing is shown
    *(
        (account(proxy=f"'{url}'"), "accounts[0].proxy: <hidden>: expected http://[user:password@]")
        for url in (
            *("https://h:1", "h:1", "http://h", "http://:1", "http://h:0", "http://h:99999"),
            *("http://h:1/x", "http://h:1?x", "http://h:1#x", "http://u:p/w@h:1", "http://[::1"),
            *("socks4://h:1", "socks5://h", "http://ü:p@h:1"),
        )
    ),
    (
        account(proxy="'http://a_b:1'"),
        "accounts[0].proxy: <hidden>: expected a proxy whose host is",
    ),
    (account(proxy="[x]"), "accounts[0].proxy: <hidden>: expected text"),
    (
        account(proxy="'http://u%3Av:p@h:1'"),
        "accounts[0].proxy: <hidden>: expected a user name without a colon",
    ),
    (
        account(proxy="'socks5://u@h:1'"),
        "accounts[0].proxy: <hidden>: expected a user name and a password of 1 to 255 bytes",
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
        ACCOUNT + "admin: {hosts: [gateway.internal, 'gateway.internal:8081']}",
        "admin.hosts[1]: 'gateway.internal:8081': expected a host name",
    ),
    (ACCOUNT + "admin: {hosts: ['https://x']}", "admin.hosts[0]: 'https://x': expected a host"),
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


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a:\n\t- b", "expected spaces in place of the tab"),
        ("accounts:\n  - name: a\n\tkey: b", "expected spaces in place of the tab"),
        (account(key="${KEY}"), "expected quotes around ${NAME} inside {} and []"),
        (account(models="[*]"), "expected quotes around text that begins with *"),
        (account(models="[*gpt]"), "expected quotes around text that begins with *"),
    ],
)
def test_what_yaml_says_of_usual_mistakes_is_followed_by_what_helps(text: str, hint: str) -> None:
    line = mistake(text)
    assert line.startswith("line ")
    assert line.endswith(f": {hint}")


def test_a_value_from_the_environment_names_its_variables() -> None:
    """The file is right, and the value may be hidden: where else would one look?"""
    whence = "it comes from the environment variable"
    line = mistake(account(key="'${KEY}'"), KEY="")
    assert line == f"accounts[0].key: <hidden>: expected text that is not empty; {whence} KEY"
    line = mistake(account(weight="'${A}${B:-1}${C:-0}'"), A="x", B="y")
    assert line.endswith(f"expected a whole number from 1 to 1000; {whence} A and B")
    assert whence not in mistake(account(weight="'${A:-x}'")), "the default stands in the file"
    line = mistake(account(key="'${KEY}'"), KEY="k\r")
    assert line.startswith("accounts[0].key: <hidden>: expected printable ASCII characters")
    assert line.endswith(f"; {whence} KEY")
    line = mistake(ACCOUNT + "admin: {token: '${TOKEN}'}", TOKEN="'t'")
    assert (
        line == f"admin.token: <hidden>: expected it without the quotes around it; {whence} TOKEN"
    )
    line = mistake(account(headers="{X-A: '${A}'}"), A="a\nb")
    assert line.endswith(f"; {whence} A")


@pytest.mark.parametrize(
    ("listen", "admin"),
    [
        ("tcp:8080:interface=127.0.0.1", "tcp:8080:interface=localhost"),
        ("tcp:8080", "tcp:8080:interface=127.0.0.1"),
        ("tcp:8080:interface=127.0.0.1", "tcp:port=08080:interface=0.0.0.0"),
        ("tcp6:8080", "tcp:8080:interface=127.0.0.1"),
        ("unix:/run/gateway.sock", "unix:/run/gateway.sock"),
    ],
)
def test_the_admin_side_needs_a_place_of_its_own(listen: str, admin: str) -> None:
    sides = f"listen: '{listen}'\nadmin: {{listen: '{admin}', token: t}}"
    line = mistake(ACCOUNT + KEY + sides)
    assert line == f"admin.listen: '{admin}': expected another place than listen"


@pytest.mark.parametrize(
    ("listen", "admin"),
    [
        ("tcp:8080:interface=127.0.0.1", "tcp:8080:interface=127.0.0.2"),
        (r"tcp:8080:interface=\:\:1", "tcp:8080:interface=127.0.0.1"),
        (r"tcp:8080:interface=\:\:1", "tcp:8080"),
        ("tcp:8080", "tcp:8081"),
        ("unix:/run/a.sock", "unix:/run/b.sock"),
        ("unix:/run/a.sock", "tcp:8080"),
    ],
)
def test_one_port_of_two_addresses_is_two_places(listen: str, admin: str) -> None:
    sides = f"listen: '{listen}'\nadmin: {{listen: '{admin}', token: t}}"
    assert load(ACCOUNT + KEY + sides).admin.listen == admin


def test_port_zero_may_be_used_twice() -> None:
    zero = "'tcp:0:interface=127.0.0.1'"
    assert load(ACCOUNT + f"listen: {zero}\nadmin: {{listen: {zero}}}").admin.listen


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_text(str(tmp_path / "none.yaml"))
    assert str(caught.value) == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_text(str(tmp_path))
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match="byte 6: not UTF-8 text"):
        read_text(str(latin))


@pytest.mark.parametrize(
    "text",
    [
        account(websocket=f"{{path: 'responses?key={SECRET}'}}"),
        account(websocket=f"{{subprotocols: ['a, {SECRET}']}}"),
        account(websocket=f"{{subprotocols: [openai-insecure-api-key.{SECRET}]}}"),
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
        account(base_url=f"'http://u:a/{SECRET}@x'"),
        account(key_file=SECRET),
        account(auth_header=f"'Authorization: Bearer {SECRET}'"),
        account(headers=f"{{Authorization: {SECRET}}}"),
        account(proxy=f"'http://u:{SECRET}@h'"),
        account(proxy=f"'u:{SECRET}@h:1'"),
        account(proxy=f"'http://u:{SECRET}'"),
        account(proxy=f"'socks5://u:{SECRET * 20}@h:1'"),
        account(oauth=f"{{client_secret: [{SECRET}]}}"),
        account(oauth=f"{{refresh_token: {{a: {SECRET}}}}}"),
        f"keys: [{{name: n, key_sha256: {SECRET}}}]",
        f"keys: [{{name: n, key_sha256: [{SECRET}]}}]",
    ],
)
def test_no_mistake_shows_a_secret(text: str) -> None:
    whole = text if text.startswith("accounts") else ACCOUNT + text
    assert SECRET not in "\n".join(mistakes(whole))


@pytest.mark.parametrize(
    "url",
    [
        "http://h:3128",
        "http://h:3128/",
        "http://user:p%40ss@h:3128",
        "http://user@h:3128",
        "socks5://h:1080",
        "socks5h://user:word@[::1]:1080",
    ],
)
def test_proxies_that_are_understood(url: str) -> None:
    assert load(account(proxy=f"'{url}'")).accounts[0].proxy == url


def test_a_digest_is_kept_in_lower_case() -> None:
    settings = load(ACCOUNT + f"keys: [{{name: n, key_sha256: '{DIGEST.upper()}'}}]")
    assert settings.keys[0].key_sha256 == DIGEST


def test_all_mistakes_are_told_at_once() -> None:
    """Of the YAML's shape, of variables and of rules, in every section and entry."""
    text = """
listen: 8080
sesion: {}
admin: {token: '${TOKEN}', hosts: ['http://a', b]}
keys:
  - {name: n, key: '${A}'}
  - {name: n, key: '${B}${C}${B}', models: [' ', m, '']}
accounts:
  - {name: a, key: '${A}', base_url: 'ftp://x', weight: 0, headers: {'X A': '1', X-B: '${D}'}}
  - {base_url: 'http://x', key: 5, proxy: nonsense, strip: [store, 'a b']}
  - {name: c, key: k, base_url: 'https://${HOST}/v1', key_file: /nowhere/key}
"""
    assert [line.partition(": expected")[0] for line in mistakes(text, D="d")] == [
        "sesion: unknown key; did you mean 'session'? " + UNKNOWN,
        "listen: 8080",
        "admin.token: ${TOKEN}: the environment variable TOKEN is not set; " + SET.format("TOKEN"),
        "keys[0].key: ${A}: the environment variable A is not set; " + SET.format("A"),
        "keys[1].key: ${B}, ${C}: the environment variables B and C are not set; expected them, "
        "or ${B:-default}",
        "keys[1].models[2]: ''",
        "accounts[0].key: ${A}: the environment variable A is not set; " + SET.format("A"),
        "accounts[0].weight: 0",
        "accounts[1].name: missing; every entry needs it",
        "accounts[1].key: <hidden>",
        "accounts[2].base_url: ${HOST}: the environment variable HOST is not set; "
        + SET.format("HOST"),
        "keys[1].name: 'n': keys[0] has this name already; expected each name once",
        "admin.hosts[0]: 'http://a'",
        "keys[1].models[0]: ' '",
        "accounts[0].headers.X A",
        "accounts[0].base_url: 'ftp://x'",
        "accounts[1].strip[0]: 'store'",
        "accounts[1].strip[1]: 'a b'",
        "accounts[1].proxy: <hidden>",
        "accounts[2]",
        "accounts[2].key_file: '/nowhere/key': No such file or directory; "
        "expected a file that can be read",
    ]


def test_one_mistake_is_told_once() -> None:
    """What follows from it is no mistake of its own."""
    for text in (
        "accounts: [{name: a, base_url: 'http://x', key: '${A}'}]",
        "accounts: [{name: a, base_url: '${A}', key: k}]",
        "accounts: [{name: '${A}', base_url: 'http://x', key: k}]",
        "accounts: [{name: a, base_url: 'http://x', key_file: '${A}'}]",
        "accounts: [{name: a, base_url: 'http://x', key: k, proxy: '${A}'}]",
        "accounts: [{name: a, base_url: 'http://x', key: k, continuity: '${A}'}]",
        "accounts: [{name: a, base_url: 'http://x', key: k, weight: '${A}'}]",
        "accounts: [{name: a, base_url: 'http://x', key: k, headers: {A: '${A}'}}]",
        ACCOUNT + "listen: '${A}'",
        ACCOUNT + "admin: {listen: '${A}'}",
        ACCOUNT + "admin: {token: '${A}', listen: 'tcp:8081'}",
        ACCOUNT + "keys: [{name: n, key_sha256: '${A}'}]",
    ):
        (line,) = mistakes(text)
        assert "the environment variable A is not set" in line
    for text in (
        ACCOUNT + "listen: tcp:x",
        "accounts: [{name: a, base_url: 'http://x', key: 5}]",
        "accounts: [5]",
        ACCOUNT + "keys: [n]",
        ACCOUNT + "listen: 8080",
    ):
        assert len(mistakes(text)) == 1, mistakes(text)


def test_who_reads_one_line_hears_how_many_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        load("accounts: [{name: a, base_url: 'http://x', key: '${A}', proxy: '${B}', weight: 0}]")
    assert caught.value.summary == (
        "gateway.yaml: accounts[0].key: ${A}: the environment variable A is not set; "
        + SET.format("A")
        + " (and 2 more; --check names them all)"
    )


def test_an_account_that_is_switched_off_needs_nothing() -> None:
    """What it lacks is not missed; one that lacks nothing can be switched on again."""
    text = """
accounts:
  - {name: a, key: '${A}', base_url: 'https://x.example/v1', enabled: false}
  - {name: b, key: '${B}', base_url: 'https://y.example/v1'}
  - {name: c, key_file: /nowhere/key, base_url: 'ftp://z', weight: 0, enabled: false}
  - {name: d, key: k, base_url: 'https://x.example/v1/', enabled: '${OFF:-false}'}
"""
    assert [(each.name, each.enabled) for each in load(text, B="b").accounts] == [
        ("b", True),
        ("d", False),
    ]
    assert [line.partition(":")[0] for line in mistakes(text)] == ["accounts[1].key"]
    assert [each.name for each in load(text, A="a", B="b").accounts] == ["a", "b", "d"]
    described = config.described(config.load(text, {"B": "b"}, "gateway.yaml"))
    shown = {each.path: each.value for each in described}
    assert (shown["accounts[0].name"], shown["accounts[1].name"]) == ("b", "d")
    origins = {each.path: each.origin for each in described}
    assert origins["accounts[0].key"] == "environment B"


def test_some_accounts_may_be_switched_off() -> None:
    entries = "{name: a, preset: ollama, enabled: false}, {name: b, preset: vllm}"
    settings = load(f"accounts: [{entries}]")
    assert [account.enabled for account in settings.accounts] == [False, True]
