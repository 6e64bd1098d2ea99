"""Whose a request is; clients without a key are refused, counted, and cannot fill the log."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import sha256

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from gateway.api_keys import keys as module
from gateway.api_keys.keys import EVERYBODY, Authenticator, UnknownKeyThrottle
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

    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    Authenticator(KEYS).tenant({"authorization": "Bearer sk-one"})
    digests = [sha256(key).digest() for key in (b"sk-one", b"sk-two")]
    assert compared == digests, "a match must not end the search early"


def test_without_keys_everybody_is_one_tenant_but_no_web_page_is() -> None:
    authenticator = Authenticator([])
    assert authenticator.tenant({}) == EVERYBODY
    assert authenticator.tenant({"authorization": "Bearer whatever"}) == EVERYBODY
    with pytest.raises(ApiError) as caught:
        authenticator.tenant({"origin": "http://evil.test", "authorization": "Bearer whatever"})
    assert (caught.value.status, caught.value.code) == (403, "origin_not_allowed")


def test_a_web_page_with_a_key_is_a_client_like_any_other() -> None:
    headers = {"origin": "http://app.test", "authorization": "Bearer sk-one"}
    assert Authenticator(KEYS).tenant(headers) == "laptop"


def test_a_key_may_be_configured_by_its_sha_256_alone() -> None:
    authenticator = Authenticator([KeySettings("hashed", key_sha256=sha256(b"sk-one").hexdigest())])
    assert authenticator.tenant({"authorization": "Bearer sk-one"}) == "hashed"
    with pytest.raises(ApiError):
        authenticator.tenant({"authorization": f"Bearer {sha256(b'sk-one').hexdigest()}"})


# --- clients without a key -----------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lines(act: Callable[[], object]) -> list[str]:
    with capturedLogs() as events:
        act()
    return [formatEvent(event) for event in events]


def test_the_first_refusal_is_told_and_the_rest_of_the_minute_is_counted(clock: Clock) -> None:
    throttle = UnknownKeyThrottle(clock.seconds)

    def knock() -> None:
        throttle.refused("192.0.2.7", "invalid_api_key")

    assert lines(knock) == ["a client at 192.0.2.7 was turned away: invalid_api_key"]
    for _ in range(1000):
        assert lines(knock) == []
    clock.advance(60)
    assert lines(knock) == [
        "a client at 192.0.2.7 was turned away: invalid_api_key,"
        " and 1000 times before since the last line"
    ]
    assert throttle.refusals == {"invalid_api_key": 1002}


def test_each_address_has_its_own_minute(clock: Clock) -> None:
    throttle = UnknownKeyThrottle(clock.seconds)
    for address in ("192.0.2.7", "2001:db8::7"):
        assert len(lines(lambda who=address: throttle.refused(who, "no"))) == 1  # type: ignore[misc]


def test_so_many_addresses_are_remembered(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ADDRESSES", 3)
    throttle = UnknownKeyThrottle(clock.seconds)
    told = lines(lambda: [throttle.refused(f"192.0.2.{n}", "no") for n in range(100)])
    assert (len(told), len(throttle), throttle.refusals["no"]) == (3, 3, 100)
    clock.advance(61)
    told = lines(lambda: [throttle.refused(f"192.0.2.{n}", "no") for n in range(50, 100)])
    assert (len(told), len(throttle)) == (3, 3)


def test_a_clock_that_is_set_back_silences_nobody_for_long(clock: Clock) -> None:
    throttle = UnknownKeyThrottle(clock.seconds)
    clock.advance(10_000)
    throttle.refused("192.0.2.7", "no")
    clock.rightNow -= 5_000
    assert len(lines(lambda: throttle.refused("192.0.2.7", "no"))) == 1
