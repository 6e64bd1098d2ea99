"""Whole turns over real proxies and with real certificates, through a gateway process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.e2e.proxies import (
    ConnectProxy,
    LoopbackProxy,
    Misbehaviour,
    SocksProxy,
    answers,
    hangs,
    hangs_up,
)
from tests.support.checks import assert_error, completed
from tests.support.events import Json
from tests.support.gateway import Gateway, account
from tests.support.upstream import Upstream, new_listener
from tests.support.wsclient import WsClient
from tests.upstream.authority import Authority

pytestmark = pytest.mark.e2e

#: Means nothing to anybody but the proxies of these tests (RFC 6761 §6.4).
NAME = "upstream.invalid"
LOGIN = ("mole", "s3cret%20word")
PLAIN_LOGIN = ("mole", "s3cret word")
DEADLINE = 30.0


class Scene:
    """What a test starts, stopped in reverse at its end.

    :ivar logs: what is shown when the test fails.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.logs: dict[str, Callable[[], str]] = {}
        self._stack = stack

    def upstream(self, **options: Any) -> Upstream:
        upstream = Upstream(**options)
        self._stack.callback(upstream.stop)
        return upstream

    def proxy(self, kind: type[LoopbackProxy], login: tuple[str, str] | None = None) -> Any:
        proxy = kind(login, {NAME: "127.0.0.1"})
        self._stack.callback(proxy.stop)
        return proxy

    def gateway(self, *accounts: Json, **config: Any) -> Gateway:
        gateway = Gateway(self.folder, {"accounts": list(accounts), **config})
        self._stack.callback(gateway.stop)
        self.logs["the gateway's log"] = gateway.log
        return gateway


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with ExitStack() as stack:
        scene = Scene(tmp_path, stack)
        yield scene
        for log in scene.logs.values():
            for secret in (*LOGIN, PLAIN_LOGIN[1]):
                assert secret not in log(), "the log shows the proxy's credentials"


def behind(upstream: Upstream, proxy: LoopbackProxy, **fields: Any) -> Json:
    """An account whose upstream has a name that only the proxy knows."""
    url = upstream.base_url.replace("127.0.0.1", NAME)
    login = None if proxy.login is None else LOGIN
    return account("north", url, proxy=proxy.url_with(login), **fields)


def turn(client: WsClient) -> list[Json]:
    return client.turn(input="Hello.", model="m")


def refusal(client: WsClient, code: str = "egress_proxy_error") -> str:
    """The message of a turn that has to fail with this code."""
    (event,) = turn(client)
    message = assert_error(event, 502, code)["message"]
    assert isinstance(message, str)
    return message


def idle_connections(gateway: Gateway) -> int:
    """Upstream connections that are kept for the next turn."""
    with urlopen(
        f"http://127.0.0.1:{gateway.admin_port}/status/memory", timeout=DEADLINE
    ) as answer:
        registers = json.load(answer)["registers"]
    return next(each["size"] for each in registers if each["name"] == "idle upstream connections")


@pytest.mark.parametrize("login", [None, PLAIN_LOGIN], ids=["open", "login"])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("kind", [ConnectProxy, SocksProxy])
def test_turns_go_through_a_proxy(
    scene: Scene, kind: type[LoopbackProxy], scheme: str, login: tuple[str, str] | None
) -> None:
    tls = scene.authority.server(NAME) if scheme == "https" else None
    upstream, proxy = scene.upstream(tls=tls), scene.proxy(kind, login)
    gateway = scene.gateway(behind(upstream, proxy, ca_file=str(scene.authority.file)))
    client = gateway.connect()
    for _ in range(3):
        completed(turn(client))
        # The terminal event comes before the answer's end, and the connection is free after that.
        _eventually(lambda: None, lambda: idle_connections(gateway) == 1)
    assert proxy.targets == [(NAME, upstream.port)], "one kept connection, to the name"
    assert upstream.requests[0].header("host") == f"{NAME}:{upstream.port}"
    assert upstream.requests[0].header("proxy-authorization") is None
    assert upstream.connections == 1


@pytest.mark.parametrize("kind", [None, ConnectProxy, SocksProxy])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_upstream_may_be_an_address_of_ipv6(
    scene: Scene, kind: type[LoopbackProxy] | None, scheme: str
) -> None:
    try:
        listener = new_listener("::1")
    except OSError:
        pytest.skip("this machine has no ::1")
    upstream = scene.upstream(tls=scene.authority.server("::1") if scheme == "https" else None)
    upstream.listen(listener)
    fields = {} if kind is None else {"proxy": scene.proxy(kind).url}
    entry = account("north", upstream, ca_file=str(scene.authority.file), **fields)
    completed(turn(scene.gateway(entry).connect()))
    assert upstream.requests[0].header("host") == f"[::1]:{upstream.port}"


@pytest.mark.parametrize("kind", [None, ConnectProxy])
def test_an_upstream_that_wants_a_client_certificate(
    scene: Scene, kind: type[LoopbackProxy] | None
) -> None:
    tls = scene.authority.server(NAME, "127.0.0.1", clients=scene.authority)
    upstream = scene.upstream(tls=tls)
    certificate, key = scene.authority.issue("us")
    files = {
        "ca_file": str(scene.authority.file),
        "client_cert_file": str(certificate),
        "client_key_file": str(key),
    }
    if kind is None:
        entry = account("north", upstream, **files)
    else:
        entry = behind(upstream, scene.proxy(kind), **files)
    completed(turn(scene.gateway(entry).connect()))


@pytest.mark.parametrize(
    ("hosts", "known", "shows", "words"),
    [
        (["other.test"], True, True, "its certificate is not for 127.0.0.1"),
        ([], True, True, "its certificate is not for 127.0.0.1"),
        (["127.0.0.1"], False, True, "not signed by an authority that this account trusts"),
        (["127.0.0.1"], True, False, "certificate required"),
    ],
    ids=["another's", "nobody's", "untrusted", "none of ours"],
)
def test_wrong_certificates_end_in_one_line(
    scene: Scene, hosts: list[str], known: bool, shows: bool, words: str
) -> None:
    clients = None if shows else scene.authority
    upstream = scene.upstream(tls=scene.authority.server(*hosts, clients=clients))
    fields = {"ca_file": str(scene.authority.file)} if known else {}
    gateway = scene.gateway(account("north", upstream, **fields))
    assert words in refusal(gateway.connect(), "upstream_error")
    assert upstream.requests == [], "the request went to somebody who is not the upstream"
    (line,) = {line.partition("]")[2] for line in gateway.log().splitlines() if words in line}
    assert "TLS connection" in line
    gateway.stop()  # looks for tracebacks


BAD = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nno\n"
ENDLESS = b"HTTP/1.1 200 OK\r\nX: ".ljust(99_999, b"x")
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("kind", "misbehaviour", "code", "words"),
    [
        (ConnectProxy, answers(BAD), "egress_proxy_error", "status 502"),
        (ConnectProxy, answers(FORBIDDEN), "upstream_error", "status 403"),
        (ConnectProxy, answers(b"SSH-2.0-x\r\n"), "egress_proxy_error", "does not speak HTTP"),
        (ConnectProxy, answers(ENDLESS), "egress_proxy_error", "endless"),
        (ConnectProxy, hangs, "egress_proxy_error", "did not connect in time"),
        (ConnectProxy, hangs_up, "egress_proxy_error", "closed the connection"),
        (SocksProxy, answers(b"\x05\x00\x05\x01"), "egress_proxy_error", "general failure"),
        (SocksProxy, answers(b"\x05\x00\x05\x04"), "upstream_error", "host unreachable"),
        (SocksProxy, answers(BAD), "egress_proxy_error", "does not speak SOCKS 5"),
        (SocksProxy, hangs, "egress_proxy_error", "did not connect in time"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_proxy_that_fails_is_named_to_the_operator_alone(
    scene: Scene,
    kind: type[LoopbackProxy],
    misbehaviour: Misbehaviour,
    code: str,
    words: str,
) -> None:
    upstream, proxy = scene.upstream(), scene.proxy(kind)
    proxy.misbehaviour = misbehaviour
    entry = behind(upstream, proxy)
    gateway = scene.gateway(entry, timeouts={"connect_seconds": 1}, routing={"queue_seconds": 0})
    message = refusal(gateway.connect(), code)
    assert "proxy" in message
    assert proxy.place not in message
    assert upstream.requests == []
    gateway.stop()
    (line, *_) = [line for line in gateway.log().splitlines() if proxy.place in line]
    assert f"The proxy {proxy.place} " in line
    assert words in line


@pytest.mark.parametrize("kind", [ConnectProxy, SocksProxy])
@pytest.mark.parametrize("given", ["wrong", "none"])
def test_credentials_that_the_proxy_refuses(
    scene: Scene, kind: type[LoopbackProxy], given: str
) -> None:
    upstream, proxy = scene.upstream(), scene.proxy(kind, PLAIN_LOGIN)
    url = proxy.url_with(("mole", "hush") if given == "wrong" else None)
    gateway = scene.gateway(account("north", upstream, proxy=url))
    message = refusal(gateway.connect())
    assert "hush" not in message
    assert proxy.targets == []
    gateway.stop()
    assert f"The proxy {proxy.place} " in gateway.log()
    assert "credentials" in gateway.log()
    assert "hush" not in gateway.log()


def test_another_account_takes_over_from_one_behind_a_dead_proxy(scene: Scene) -> None:
    upstream, proxy = scene.upstream(), scene.proxy(ConnectProxy, PLAIN_LOGIN)
    other = scene.upstream()
    gateway = scene.gateway(behind(upstream, proxy), account("south", other))
    proxy.stop()
    for _ in range(4):
        completed(turn(gateway.connect()))
    assert len(other.requests) == 4
    proxy.start()
    _eventually(lambda: completed(turn(gateway.connect())), lambda: bool(upstream.requests))


@pytest.mark.parametrize("kind", [ConnectProxy, SocksProxy])
def test_a_dead_proxy_is_left_alone_and_used_again_once_it_lives(
    scene: Scene, kind: type[LoopbackProxy]
) -> None:
    upstream, proxy = scene.upstream(), scene.proxy(kind, PLAIN_LOGIN)
    gateway = scene.gateway(behind(upstream, proxy), routing={"queue_seconds": 0})
    client = gateway.connect()
    completed(turn(client))
    proxy.stop()
    for _ in range(6):
        (event,) = turn(client)
        assert_error(event)
    proxy.start()
    ends: list[str] = []
    _eventually(lambda: ends.append(turn(client)[-1]["type"]), lambda: ends[-1] != "error")
    assert ends[-1] == "response.completed"
    assert proxy.targets == [(NAME, upstream.port)] * 2


def test_a_proxy_that_dies_in_a_turn_ends_that_turn(scene: Scene) -> None:
    upstream, proxy = scene.upstream(), scene.proxy(ConnectProxy)
    upstream.queue(lambda exchange: (exchange.sse(*exchange.turn()[:-1]), exchange.hold()))
    client = scene.gateway(behind(upstream, proxy)).connect()
    client.create(input="Hello.", model="m")
    client.until("response.output_text.delta")
    proxy.stop()
    assert client.until_terminal()[-1]["type"] == "response.failed"


def _eventually(do: Callable[[], object], until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        do()
        if until():
            return
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.1)
