"""What is said to proxies, and what their answers mean, however they are cut into pieces."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.http_proxy import MAX_HEAD, ConnectHandshake
from gateway.upstream.proxy import (
    Proxy,
    ProxyCredentials,
    ProxyError,
    ProxyFault,
    ProxyHandshake,
    ProxyRefused,
)
from gateway.upstream.socks_proxy import SocksHandshake

LOGIN = ProxyCredentials("mole", "s3cret:word")
GRANTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
NAMED = b"\x05\x00\x00\x03\x07to.test\x01\xbb"
SOCKS_GRANTED = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x01\xbb"


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(at)]


def converse(
    handshake: ProxyHandshake, *answers: bytes, cuts: list[int] | None = None
) -> list[bytes]:
    """Begin, feed each answer, whole or cut; returns what was sent, one entry for each step."""
    sent = [handshake.begin()]
    for answer in answers:
        fed = [answer] if cuts is None else pieces(answer, cuts)
        sent.append(b"".join(handshake.receive(piece) for piece in fed))
    return sent


def refusal_of(handshake: ProxyHandshake, *answers: bytes) -> ProxyRefused:
    with pytest.raises(ProxyRefused) as caught:
        converse(handshake, *answers)
    return caught.value


# --- the URL -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy.test:3128", Proxy("http", "proxy.test", 3128)),
        ("http://proxy.test:3128/", Proxy("http", "proxy.test", 3128)),
        ("socks5://[::1]:1080", Proxy("socks5", "::1", 1080)),
        ("socks5h://p.test:1080", Proxy("socks5", "p.test", 1080)),
        (
            "http://a%40b:c%3Ad%2F@p.test:1",
            Proxy("http", "p.test", 1, ProxyCredentials("a@b", "c:d/")),
        ),
        ("http://only@p.test:1", Proxy("http", "p.test", 1, ProxyCredentials("only", ""))),
    ],
)
def test_a_url_names_a_proxy(url: str, expected: Proxy) -> None:
    assert Proxy.from_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "proxy.test:3128",
        "https://u:hush@p.test:1",
        "socks4://u:hush@p.test:1",
        "http://u:hush@p.test",
        "http://u:hush@p.test:0",
        "http://u:hush@p.test:99999",
        "http://u:hush@:80",
        "http://u:hush@p.test:1/path",
        "http://u:hush@p.test:1?x=1",
        "http://[::1",
        "http://u%3Av:hush@p.test:1",
        "socks5://u@p.test:1",
        "socks5://:hush@p.test:1",
        f"socks5://u:{'hush' * 64}@p.test:1",
    ],
)
def test_a_bad_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        Proxy.from_url(url)
    assert "hush" not in str(caught.value)


def test_credentials_never_show() -> None:
    proxy = Proxy("http", "p.test", 3128, LOGIN)
    for text in (repr(proxy), str(proxy), repr(LOGIN), str(ProxyError(proxy, "failed"))):
        assert "s3cret" not in text
        assert "mole" not in text
    assert str(ProxyError(proxy, "failed")) == "The proxy p.test:3128 failed"
    assert Proxy("socks5", "::1", 1).address == "[::1]:1"


# --- CONNECT -------------------------------------------------------------------------------


def test_connect_asks_for_the_target_with_basic_credentials() -> None:
    basic = base64.b64encode(b"mole:s3cret:word")
    assert ConnectHandshake("api.test", 443, LOGIN).begin() == (
        b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n"
        b"Proxy-Authorization: Basic " + basic + b"\r\n\r\n"
    )
    assert ConnectHandshake("::1", 80, None).begin() == (
        b"CONNECT [::1]:80 HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"
    )


OPENINGS = [
    GRANTED,
    b"HTTP/1.0 200\r\n\r\n",
    b"HTTP/1.1 204 Fine\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX: y\r\n\r\n" + GRANTED,
    b"HTTP/1.1 200 OK\nVia: old\n\n",
]


@given(
    head=st.sampled_from(OPENINGS),
    rest=st.binary(max_size=40),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_any_2xx_opens_the_way_and_nothing_after_it_is_lost(
    head: bytes, rest: bytes, cuts: list[int]
) -> None:
    handshake = ConnectHandshake("api.test", 443, None)
    opened = b""
    handshake.begin()
    for piece in pieces(head + rest, cuts):
        if handshake.remaining is None:
            assert handshake.receive(piece) == b""
        else:
            opened += piece  # what the tunnel passes on itself
    assert handshake.remaining is not None
    assert handshake.remaining + opened == rest


def test_an_answer_may_come_byte_by_byte() -> None:
    handshake = ConnectHandshake("api.test", 443, None)
    handshake.begin()
    for byte in GRANTED:
        assert handshake.remaining is None
        handshake.receive(bytes([byte]))
    assert handshake.remaining == b""


@pytest.mark.parametrize(
    ("status", "login", "blame", "words"),
    [
        (407, None, ProxyFault.PROXY, "wants credentials"),
        (407, LOGIN, ProxyFault.PROXY, "does not accept the credentials"),
        (402, None, ProxyFault.PROXY, "paid"),
        (429, None, ProxyFault.PROXY, "too many"),
        (500, None, ProxyFault.PROXY, "status 500"),
        (502, None, ProxyFault.PROXY, "does not connect to api.test:443 (status 502)"),
        (504, None, ProxyFault.PROXY, "status 504"),
        (403, None, ProxyFault.UPSTREAM, "does not connect to api.test:443 (status 403)"),
        (404, None, ProxyFault.UPSTREAM, "status 404"),
        (301, None, ProxyFault.UPSTREAM, "status 301"),
    ],
)
def test_every_other_status_is_somebodys_fault(
    status: int, login: ProxyCredentials | None, blame: ProxyFault, words: str
) -> None:
    answer = b"HTTP/1.1 %d Said\r\nContent-Length: 9\r\n\r\ns3cret" % status
    refused = refusal_of(ConnectHandshake("api.test", 443, login), answer)
    assert refused.fault is blame
    assert words in refused.why
    assert "s3cret" not in refused.why


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x05\x00",
        b"H2",
        b"\r\n\r\n",
        b"HTTP/1.1 099 Low\r\n\r\n",
        b"HTTP/1.1 2000 Long\r\n\r\n",
        b"HTTP/1.1 200OK\r\n\r\n",
    ],
)
def test_who_does_not_speak_http_is_no_proxy(answer: bytes) -> None:
    refused = refusal_of(ConnectHandshake("api.test", 443, None), answer)
    assert refused.fault is ProxyFault.PROXY
    assert "does not speak HTTP" in refused.why


@pytest.mark.parametrize("cuts", [[], [100], list(range(2000))], ids=len)
def test_an_endless_head_is_not_kept(cuts: list[int]) -> None:
    handshake = ConnectHandshake("api.test", 443, None)
    for piece in pieces(b"HTTP/1.1 200 OK\r\n".ljust(MAX_HEAD, b"x"), cuts):
        handshake.receive(piece)
    with pytest.raises(ProxyRefused, match="endless"):
        handshake.receive(b"x")


def test_a_long_head_is_judged_before_what_follows_it() -> None:
    handshake = ConnectHandshake("api.test", 443, None)
    head = b"HTTP/1.1 200 OK\r\nX: " + b"x" * (MAX_HEAD - 100) + b"\r\n\r\n"
    handshake.receive(head + b"r" * MAX_HEAD)
    assert handshake.remaining == b"r" * MAX_HEAD


# --- SOCKS 5 -------------------------------------------------------------------------------

REQUEST = b"\x05\x01\x00\x03\x08api.test\x01\xbb"
SUBNEGOTIATION = b"\x01\x04mole\x0bs3cret:word"


@given(
    reply=st.sampled_from([SOCKS_GRANTED, NAMED, b"\x05\x00\x00\x04" + bytes(18)]),
    rest=st.binary(max_size=40),
    cuts=st.lists(st.integers(0, 99), max_size=8),
)
def test_socks_logs_in_and_asks_by_name(reply: bytes, rest: bytes, cuts: list[int]) -> None:
    handshake = SocksHandshake("api.test", 443, LOGIN)
    sent = converse(handshake, b"\x05\x02", b"\x01\x00", cuts=cuts)
    assert sent == [b"\x05\x02\x00\x02", SUBNEGOTIATION, REQUEST]
    opened = b""
    for piece in pieces(reply + rest, cuts):
        if handshake.remaining is None:
            assert handshake.receive(piece) == b""
        else:
            opened += piece
    assert handshake.remaining is not None
    assert handshake.remaining + opened == rest


@pytest.mark.parametrize("login", [None, LOGIN])
def test_a_socks_proxy_may_want_no_login(login: ProxyCredentials | None) -> None:
    handshake = SocksHandshake("api.test", 443, login)
    assert converse(handshake, b"\x05\x00")[-1] == REQUEST
    handshake.receive(SOCKS_GRANTED + b"rest")
    assert handshake.remaining == b"rest"


def test_a_hasty_socks_proxy_may_say_all_at_once() -> None:
    handshake = SocksHandshake("api.test", 443, LOGIN)
    sent = converse(handshake, b"\x05\x02\x01\x00" + SOCKS_GRANTED + b"rest")
    assert sent[-1] == SUBNEGOTIATION + REQUEST
    assert handshake.remaining == b"rest"


@pytest.mark.parametrize(
    ("host", "where"),
    [("127.0.0.1", b"\x01\x7f\x00\x00\x01"), ("::1", b"\x04" + bytes(15) + b"\x01")],
)
def test_socks_sends_addresses_as_addresses(host: str, where: bytes) -> None:
    sent = converse(SocksHandshake(host, 8080, None), b"\x05\x00")
    assert sent[-1] == b"\x05\x01\x00" + where + b"\x1f\x90"


@pytest.mark.parametrize("code", range(1, 12))
def test_every_socks_refusal_is_somebodys_fault(code: int) -> None:
    handshake = SocksHandshake("api.test", 443, None)
    refused = refusal_of(handshake, b"\x05\x00", bytes([5, code]))  # some send no more
    upstreams = code in (2, 3, 4, 5, 6)
    assert refused.fault is (ProxyFault.UPSTREAM if upstreams else ProxyFault.PROXY)
    assert "does not connect to api.test:443" in refused.why


@pytest.mark.parametrize(
    ("login", "answers", "words"),
    [
        (None, [b"\x05\xff"], "wants credentials"),
        (None, [b"\x05\x02"], "wants credentials"),
        (LOGIN, [b"\x05\xff"], "wants no password"),
        (LOGIN, [b"\x05\x01"], "not offered"),
        (LOGIN, [b"\x05\x02", b"\x01\x01"], "does not accept the credentials"),
        (LOGIN, [b"\x05\x02", b"\x05\xff"], "does not accept the credentials"),
        (None, [b"\x04\x00"], "does not speak SOCKS 5"),
        (None, [b"H"], "does not speak SOCKS 5"),
        (None, [b"\x05\x00", b"\x04\x00"], "does not speak SOCKS 5"),
        (None, [b"\x05\x00", b"\x05\x00\x00\x02\x00"], "broken"),
    ],
)
def test_what_is_wrong_with_a_socks_proxy_is_its_fault(
    login: ProxyCredentials | None, answers: list[bytes], words: str
) -> None:
    refused = refusal_of(SocksHandshake("api.test", 443, login), *answers)
    assert refused.fault is ProxyFault.PROXY
    assert words in refused.why


# --- whatever comes ------------------------------------------------------------------------


@given(
    make=st.sampled_from([ConnectHandshake, SocksHandshake]),
    data=st.lists(st.binary(max_size=30), max_size=20),
    login=st.sampled_from([None, LOGIN]),
)
def test_rubbish_ends_in_a_refusal_or_is_waited_with(
    make: Callable[..., ProxyHandshake], data: list[bytes], login: ProxyCredentials | None
) -> None:
    handshake = make("api.test", 443, login)
    handshake.begin()
    with suppress(ProxyRefused):
        for piece in data:
            if handshake.remaining is not None:
                break
            handshake.receive(piece)
