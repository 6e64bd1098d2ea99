"""Who gets in, as whom, and what is said to the others."""

from __future__ import annotations

import hmac
from hashlib import sha256

import pytest

from gateway.api_keys import authenticator as auth
from gateway.api_keys.authenticator import EVERYBODY, Authenticator
from gateway.config import KeySettings
from gateway.protocol.errors import ApiError

KEYS = [KeySettings(name="laptop", key="sk-one"), KeySettings(name="robot", key="sk-two")]


@pytest.mark.parametrize(
    ("header", "tenant"),
    [
        ("Bearer sk-one", "laptop"),
        ("bearer   sk-two ", "robot"),
        ("BEARER sk-one", "laptop"),
    ],
)
def test_a_key_has_a_name(header: str, tenant: str) -> None:
    assert Authenticator(KEYS).tenant({"authorization": header}) == tenant


@pytest.mark.parametrize("name", ["api-key", "x-api-key"])
def test_a_key_may_come_in_the_header_of_another_service(name: str) -> None:
    assert Authenticator(KEYS).tenant({name: "sk-two"}) == "robot"
    for wrong in ("sk-on", "", "Bearer sk-one", "sk-one, sk-two"):
        with pytest.raises(ApiError) as caught:
            Authenticator(KEYS).tenant({name: wrong})
        assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        ({"authorization": "Bearer sk-one", "api-key": "sk-two"}, "laptop"),
        ({"api-key": "sk-two", "x-api-key": "sk-one"}, "robot"),
        ({"x-api-key": "sk-one", "api-key": "of another service"}, "laptop"),
        ({"authorization": "Bearer unused", "api-key": "sk-two"}, "robot"),
        ({"authorization": "Basic YTpi", "x-api-key": "sk-one"}, "laptop"),
    ],
)
def test_of_several_keys_the_first_counts_that_is_one_of_ours(
    headers: dict[str, str], tenant: str
) -> None:
    assert Authenticator(KEYS).tenant(headers) == tenant


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "sk-one",
        "Basic sk-one",
        "Bearer",
        "Bearer ",
        "Bearer sk-on",
        "Bearer sk-one,sk-two",
        "Bearer SK-ONE",
        "Bearer é",
        "Bearer " + "x" * 10_000,
    ],
)
def test_everything_else_is_refused_without_being_repeated(header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    with pytest.raises(ApiError) as caught:
        Authenticator(KEYS).tenant(headers)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert "sk-" not in str(caught.value)


def test_every_key_is_compared_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    really = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return really(one, other)

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    Authenticator(KEYS).tenant({"authorization": "Bearer sk-one"})
    digests = [sha256(key).digest() for key in (b"sk-one", b"sk-two")]
    assert compared == digests, "a match must not end the search early"


def test_without_keys_everybody_is_one_tenant_but_no_web_page_is() -> None:
    door = Authenticator([])
    assert door.tenant({}) == EVERYBODY
    assert door.tenant({"authorization": "Bearer whatever"}) == EVERYBODY
    with pytest.raises(ApiError) as caught:
        door.tenant({"origin": "http://evil.test", "authorization": "Bearer whatever"})
    assert (caught.value.status, caught.value.code) == (403, "origin_not_allowed")


def test_a_web_page_with_a_key_is_a_client_like_any_other() -> None:
    headers = {"origin": "http://app.test", "authorization": "Bearer sk-one"}
    assert Authenticator(KEYS).tenant(headers) == "laptop"


def test_a_key_may_be_configured_by_its_sha_256_alone() -> None:
    door = Authenticator([KeySettings("hashed", key_sha256=sha256(b"sk-one").hexdigest())])
    assert door.tenant({"authorization": "Bearer sk-one"}) == "hashed"
    with pytest.raises(ApiError):
        door.tenant({"authorization": f"Bearer {sha256(b'sk-one').hexdigest()}"})
