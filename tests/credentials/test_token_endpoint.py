"""What is asked of a token endpoint and how its answers are read (RFC 6749 §2.3.1, RFC 6749 §5)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.credentials.token_endpoint import EndpointUnavailable, Grant, GrantRefused, _read
from tests.credentials.stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_public_client_names_itself_in_the_form(stage: Stage) -> None:
    stage.headers()
    asked = stage.endpoint.last
    assert asked.method == b"POST"
    assert asked.form == {
        "grant_type": "refresh_token",
        "refresh_token": "refresh-config",
        "client_id": "client-1",
    }
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
    assert asked.headers["accept"] == "application/json"
    assert "authorization" not in asked.headers


def test_a_client_with_a_secret_uses_http_basic(tmp_path: Path) -> None:
    stage = Stage(tmp_path, client_secret="s e:c/r%t", scope="one two")
    stage.headers()
    asked = stage.endpoint.last
    scheme, _, pair = asked.headers["authorization"].partition(" ")
    assert scheme == "Basic"
    assert base64.b64decode(pair) == b"client-1:s+e%3Ac%2Fr%25t", "both are form-encoded first"
    assert asked.form["scope"] == "one two"
    assert "client_id" not in asked.form


def test_redirects_are_not_followed_with_the_refresh_token(stage: Stage) -> None:
    first = stage.headers()
    asked = stage.endpoint.last
    asked._request.setHeader(b"location", b"http://elsewhere.test/token")
    asked.answers(307, b"")
    assert first.error.message == "This account's token endpoint answered with the status 307."
    assert len(stage.endpoint.asked) == 1


def test_an_answer_that_never_ends_is_dropped(stage: Stage) -> None:
    first = stage.headers()
    asked = stage.endpoint.last
    for _ in range(5):
        asked.sends(b" " * 16_384)
    assert "more than can be read" in first.error.message
    stage.endpoint.client.flush()
    assert asked.left, "its connection was not closed"


def test_an_answer_that_stops_in_the_middle_has_a_deadline(stage: Stage) -> None:
    first = stage.headers()
    asked = stage.endpoint.last
    asked.sends(b'{"access_token":')
    stage.clock.advance(30)
    assert "did not answer within 30 seconds" in first.error.message
    stage.endpoint.client.flush()
    assert asked.left, "its connection was not closed"


# --- answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "grant"),
    [
        (b'{"access_token":"a"}', Grant("a", None, None)),
        (b'{"access_token":"a","token_type":"bearer"}', Grant("a", None, None)),
        (b'{"access_token":"a","expires_in":3600}', Grant("a", 3600, None)),
        (b'{"access_token":"a","expires_in":"3600"}', Grant("a", 3600, None)),
        (b'{"access_token":"a","expires_in":0}', Grant("a", None, None)),
        (b'{"access_token":"a","expires_in":-5}', Grant("a", None, None)),
        (b'{"access_token":"a","expires_in":true}', Grant("a", None, None)),
        (b'{"access_token":"a","expires_in":"soon"}', Grant("a", None, None)),
        (b'{"access_token":"a","expires_in":"nan"}', Grant("a", None, None)),
        (b'{"access_token":"a","expires_in":1e300}', Grant("a", 315_360_000, None)),
        (b'{"access_token":"a","refresh_token":"r","id_token":"i"}', Grant("a", None, "r")),
        (b'{"access_token":"a","refresh_token":""}', Grant("a", None, None)),
        (b'{"access_token":"a","refresh_token":null,"error":null}', Grant("a", None, None)),
    ],
)
def test_grants(body: bytes, grant: Grant) -> None:
    assert _read(200, body) == grant


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b'{"error":"invalid_grant"}', "invalid_grant"),
        (401, b'{"error":"invalid_client"}', "invalid_client"),
        (401, b'{"error":{"code":"refresh_token_reused"}}', "refresh_token_reused"),
        (403, b'{"error":"access_denied"}', "access_denied"),
        (400, b"<html>", "status 400"),
        (200, b'{"error":"bad_refresh_token"}', "bad_refresh_token"),
        (400, b'{"error":"<script>"}', "error"),
        (400, b'{"error":7}', "error"),
    ],
)
def test_refusals(status: int, body: bytes, code: str) -> None:
    with pytest.raises(GrantRefused) as refused:
        _read(status, body)
    assert str(refused.value) == code


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, b"", "answered with the status 500"),
        (302, b"", "answered with the status 302"),
        (403, b"<html>Just a moment", "answered with the status 403"),
        (404, b"{}", "answered with the status 404"),
        (429, b'{"error":"slow_down"}', "answered with the status 429"),
        (400, b'{"error":"temporarily_unavailable"}', "answered with the status 400"),
        (503, b'{"error":"invalid_grant"}', "answered with the status 503"),
        (200, b"", "answered without an access token"),
        (200, b"[]", "answered without an access token"),
        (200, b'{"access_token":""}', "answered without an access token"),
        (200, b'{"access_token":"a\\r\\nx: y"}', "answered without an access token"),
        (200, b'{"access_token":"a","token_type":"mac"}', "gave a token that is no bearer token"),
    ],
)
def test_answers_that_cannot_be_used(status: int, body: bytes, said: str) -> None:
    with pytest.raises(EndpointUnavailable) as unavailable:
        _read(status, body)
    assert str(unavailable.value) == said


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["access_token", "expires_in", "refresh_token", "token_type", "error"])


@given(
    st.integers(200, 599),
    st.binary(max_size=50) | st.dictionaries(names, json_values),
)
def test_every_answer_is_one_of_the_three(status: int, answer: Any) -> None:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    try:
        grant = _read(status, body)
    except (GrantRefused, EndpointUnavailable):
        return
    assert grant.access_token.isascii()
    assert grant.expires_in is None or 0 < grant.expires_in < float("inf")
