"""Whatever somebody sends to the admin side is answered, never by a bug, and does nothing."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote_from_bytes

from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.auth import MAX_ADDRESSES, Throttle, check_origin
from gateway.admin.requests import AdminError, AdminRequest
from gateway.admin.responses import as_json, wants_html
from gateway.server.http_request import ClientRequest
from tests.admin.stage import BEARER, TOKEN, Admin

#: One for all examples: none of them may change it.
_admin = Admin(TOKEN)

_known = st.sampled_from(
    [b"status", b"accounts", b"a", b"pause", b"admin", b"conversations", b"why", b"..", b"", b"%2e"]
)
_segments = st.lists(
    st.one_of(_known, st.binary(max_size=10).map(quote_from_bytes).map(str.encode))
)
_line = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60)


@given(_segments, st.binary(max_size=30).map(quote_from_bytes), st.sampled_from(["GET", "POST"]))
def test_any_path_and_query_is_answered(segments: list[bytes], query: str, method: str) -> None:
    path = "/" + b"/".join(segments).decode() + "?q=" + query
    answer = _admin.ask(path, method=method)
    assert answer.status < 500, f"{method} {path} was answered {answer.status}"
    _admin.check_nothing_was_done()
    if method == "GET":
        answer = _admin.ask(path, BEARER)
        assert answer.status < 500, f"{method} {path} was answered {answer.status}"
        _admin.check_nothing_was_done()


@given(_line, _line, _line, _line)
def test_any_header_is_answered(host: str, origin: str, cookie: str, accept: str) -> None:
    headers = [
        f"origin: {origin}",
        f"cookie: {cookie}",
        f"accept: {accept}",
        f"content-type: {accept}",
        f"authorization: {cookie}",
        f"sec-fetch-site: {host}",
    ]
    for method in ("GET", "POST"):
        answer = _admin.ask("/login", *headers, method=method, host=host or "localhost")
        assert answer.status < 500, f"{method} with {headers} was answered {answer.status}"
    _admin.check_nothing_was_done()


@given(st.binary(max_size=200), st.sampled_from(["/login", "/admin/log-level"]))
def test_any_body_is_answered(body: bytes, path: str) -> None:
    for kind in ("application/json", "application/x-www-form-urlencoded"):
        answer = _admin.ask(
            path,
            f"content-type: {kind}",
            "origin: http://localhost:8081",
            BEARER,
            method="POST",
            body=body,
        )
        assert answer.status in (400, 401, 429), f"{body!r} was answered {answer.status}"
    _admin.check_nothing_was_done()


@given(
    st.recursive(
        st.one_of(st.none(), st.text(), st.floats(), st.integers(-(2**60), 2**60)),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
        max_leaves=10,
    )
)
def test_json_is_inert_in_html_and_still_the_same(value: Any) -> None:
    encoded = as_json(value)
    assert not {b"<"[0], b">"[0], b"&"[0], b"\n"[0]} & set(encoded)
    assert json.dumps(json.loads(encoded)) == json.dumps(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return {k: _finite(v) for k, v in value.items()} if isinstance(value, dict) else value


def request(**headers: str) -> AdminRequest:
    wire: Any = None
    named = {"host": "localhost:8081", **headers}
    return AdminRequest(ClientRequest(wire, "GET", "/", "", named, "r-1"), "", "local", False)


@given(st.sampled_from(["http", "https", "ftp", "", "null"]), _line)
def test_only_our_own_origin_is_ours(scheme: str, rest: str) -> None:
    origin = f"{scheme}://{rest}"
    own = origin.lower().rstrip("/") in ("http://localhost:8081", "https://localhost:8081")
    try:
        accepted = check_origin(request(origin=origin))
    except AdminError:
        accepted = False
    assert accepted <= own or "localhost" in rest.lower(), f"{origin} passed for our own"


def test_html_goes_to_those_who_like_it_better() -> None:
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    for accept, html in (
        (browser, True),
        ("*/*", False),
        ("", False),
        ("application/json", False),
        ("text/html;q=0.5, application/json;q=0.4", True),
        ("text/html;q=0.5, application/json", False),
        ("text/*", True),
        ("text/html;q=x", False),
        ("text/html;q=0", False),
    ):
        assert wants_html(request(accept=accept)) is html, f"wrong for Accept: {accept}"


@given(st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 100)), max_size=50))
def test_a_throttle_never_waits_longer_than_it_says_and_is_bounded(
    tries: list[tuple[int, float]],
) -> None:
    now = 0.0
    throttle = Throttle(lambda: now)
    for number, pause in tries:
        now += pause
        address = f"10.0.{number // 250}.{number % 250}"
        try:
            throttle.check(address)
        except AdminError as error:
            now += float(error.headers["retry-after"])
            throttle.check(address)
        throttle.failed(address)
    assert len(throttle) <= MAX_ADDRESSES


def test_a_throttle_forgets_the_oldest_of_too_many() -> None:
    throttle = Throttle(lambda: 0.0)
    for number in range(MAX_ADDRESSES * 2):
        throttle.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(throttle) == MAX_ADDRESSES
