"""When an account may be asked again: every path, and nothing absurd (§4.5, §5.2, §7)."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol import rate_limits
from gateway.protocol.rate_limits import (
    FURTHEST_SECONDS,
    QuotaWindow,
    limits_single_model,
    read_rate_limits_event,
    read_windows,
    ready_at,
    retry_at,
)

NOW = 1_795_000_000.0
ABSURD = [
    "",
    " ",
    "-1",
    "-0.5",
    "nan",
    "inf",
    "-inf",
    "1e3",
    "1_000",
    "٣",
    "0x10",
    "soon",
    "9" * 400,
    "99999999",
    "1.2.3",
]

NUMBERS = (
    st.floats(allow_nan=True, allow_infinity=True)
    | st.integers(-(10**30), 10**400)
    | st.sampled_from([NOW, NOW + 5, NOW * 1000, 0, -1, True])
)
VALUES = st.one_of(
    st.text(max_size=30),
    st.sampled_from([*ABSURD, "1", "0", "7.5", "6m0s", "Sun, 22 Nov 2026 18:47:36 GMT"]),
    NUMBERS.map(str),
)
NAMES = st.sampled_from(
    [
        "retry-after",
        "retry-after-ms",
        *(
            f"x-ratelimit-{member}{what}"
            for member in ("limit", "remaining", "reset")
            for what in ("", "-requests", "-tokens")
        ),
        *(
            f"x-{limit}-{which}-{member}"
            for limit in ("codex", "codex-bengalfox", "")
            for which in ("primary", "secondary", "tertiary")
            for member in ("used-percent", "window-minutes", "reset-at", "reset-after-seconds")
        ),
        "x-codex-active-limit",
    ]
) | st.text(max_size=20)
HEADERS = st.dictionaries(NAMES, VALUES)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(VALUES, inner, max_size=3),
    max_leaves=5,
)


def after(
    headers: dict[str, str] | None = None,
    details: dict[str, Any] | None = None,
    message: str = "No.",
) -> float | None:
    """The delay in seconds that was read."""
    moment = retry_at(headers or {}, details or {}, message, NOW)
    return None if moment is None else moment - NOW


# --- one path at a time --------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("3", 3),
        (" 3 ", 3),
        ("1.5", 1.5),
        ("Sun, 15 Nov 2026 11:08:40 GMT", None),
        ("Wed, 18 Nov 2026 11:07:40 GMT", 60),
        ("Wednesday, 18-Nov-26 11:07:40 GMT", 60),
        ("Wed Nov 18 11:07:40 2026", 60),
        ("1795000100", 100),
        ("1795000100000", 100),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        ("Mon, 99 Foo 2026 99:99:99 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert after({"retry-after": value}) == seconds


def test_retry_after_ms_is_more_exact_than_retry_after() -> None:
    assert after({"retry-after": "2", "retry-after-ms": "1250"}) == 1.25


@pytest.mark.parametrize(
    ("details", "seconds"),
    [
        ({"resets_at": NOW + 7200}, 7200),
        ({"resets_at": str(int(NOW) + 7200)}, 7200),
        ({"resets_at": (NOW + 7200) * 1000}, 7200),
        ({"resets_in_seconds": 90}, 90),
        ({"resets_in_seconds": "90"}, 90),
        ({"resets_at": NOW + 50, "resets_in_seconds": 90}, 50),
        ({"resets_at": NOW - 1, "resets_in_seconds": 90}, 90),
        ({"resets_at": NOW - 1}, None),
        ({"resets_at": NOW + 86_400 * 365}, None),
        ({"resets_at": 10**400, "resets_in_seconds": -(10**400)}, None),
        ({"resets_at": True, "resets_in_seconds": [1]}, None),
        ({"resets_at": math.nan, "resets_in_seconds": math.inf}, None),
    ],
    ids=repr,
)
def test_the_errors_own_members_are_read(details: dict[str, Any], seconds: float | None) -> None:
    assert after(details=details) == seconds


def test_a_rate_limit_counts_once_nothing_remains() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1h0m0s",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert after(headers) == 360
    headers["x-ratelimit-remaining-requests"] = "0"
    assert after(headers) == 3600, "both must be there again"
    headers["x-ratelimit-remaining-requests"] = "-1"
    assert after(headers) == 360, "Azure says -1 where it does not know"


def test_rate_limits_without_a_kind_are_read_in_unix_milliseconds_too() -> None:
    headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{(NOW + 60) * 1000:.0f}"}
    assert after(headers) == 60


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-codex-primary-reset-at": f"{NOW + 300:.0f}"}, 300),
        ({"x-codex-primary-reset-after-seconds": "300"}, 300),
        ({"x-codex-primary-reset-at": "", "x-codex-primary-reset-after-seconds": "300"}, 300),
        ({"x-codex-primary-reset-after-seconds": "-5"}, None),
        (
            {
                "x-codex-primary-reset-after-seconds": "300",
                "x-codex-secondary-used-percent": "100.0",
                "x-codex-secondary-reset-after-seconds": "9000",
            },
            9000,
        ),
        (
            {
                "x-codex-primary-reset-after-seconds": "300",
                "x-codex-secondary-used-percent": "80",
                "x-codex-secondary-reset-after-seconds": "9000",
            },
            300,
        ),
    ],
    ids=repr,
)
def test_a_codex_window_counts_once_it_is_used_up(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert after({"x-codex-primary-used-percent": "100", **headers}) == seconds


@pytest.mark.parametrize(
    ("active", "seconds"), [("codex_bengalfox", 60), ("codex", 300), ("premium", 300)]
)
def test_of_several_limits_the_active_one_counts(active: str, seconds: float) -> None:
    headers = {
        "x-codex-active-limit": active,
        "x-codex-primary-used-percent": "100",
        "x-codex-primary-reset-after-seconds": "300",
        "x-codex-bengalfox-primary-used-percent": "100",
        "x-codex-bengalfox-primary-reset-after-seconds": "60",
    }
    assert after(headers) == seconds


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Rate limit reached. Please try again in 1.5s.", 1.5),
        ("Please try again in 20ms. Visit https://example.com to learn more.", 0.02),
        ("Please try again in 2m.", 120),
        ("Limit 60, used 60. Please try again in 6m0s.", 360),
        ("please TRY AGAIN IN 1m30.5s", 90.5),
        ("Please retry after 20 seconds.", 20),
        ("Retry in 1 minute", 60),
        ("You've hit your limit. Try again in 3 days 4 hours 5 minutes.", 273_900),
        ("Try again in 1 hour, and 5 minutes", 3900),
        ("Try again later. If it persists, try again in 7h", 25_200),
        ("Try again in a while.", None),
        ("Try again in 5 apples.", None),
        ("Try again in 99999999999999999999s.", None),
        ("Try again in 9999 days.", None),
        ("try again in -5s", None),
        ("Used 5s.", None),
        ("", None),
    ],
)
def test_the_message_may_say_when(message: str, seconds: float | None) -> None:
    assert after(message=message) == pytest.approx(seconds, abs=1e-6)


# --- which one counts ----------------------------------------------------------------


def test_the_most_exact_word_counts_and_nonsense_gives_way_to_the_next() -> None:
    details: dict[str, Any] = {"resets_at": NOW + 1, "resets_in_seconds": 2}
    headers = {
        "retry-after-ms": "3000",
        "retry-after": "4",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "5s",
    }
    message = "Please try again in 6s."
    for seconds, spoil in (
        (1, lambda: details.update(resets_at=-1)),
        (2, lambda: details.update(resets_in_seconds="x")),
        (3, lambda: headers.update({"retry-after-ms": "nan"})),
        (4, lambda: headers.update({"retry-after": "-1"})),
        (5, lambda: headers.update({"x-ratelimit-reset-requests": "-1"})),
        (6, lambda: None),
    ):
        assert after(headers, details, message) == seconds
        spoil()


def test_a_failure_that_has_nothing_to_do_with_quotas_is_not_dated_by_them() -> None:
    headers = {"x-codex-primary-used-percent": "100", "x-codex-primary-reset-after-seconds": "9"}
    assert ready_at(headers, "No.", NOW) is None
    assert ready_at({**headers, "retry-after": "4"}, "No.", NOW) == NOW + 4
    assert ready_at(headers, "Try again in 5s", NOW) == NOW + 5


@pytest.mark.parametrize("value", ABSURD)
@pytest.mark.parametrize(
    "name",
    ["retry-after", "retry-after-ms", "x-ratelimit-reset-requests", "x-codex-primary-reset-at"],
)
def test_absurd_values_say_nothing(name: str, value: str) -> None:
    used_up = {"x-ratelimit-remaining-requests": "0", "x-codex-primary-used-percent": "100"}
    found = after({**used_up, name: value})
    assert found is None or value == "99999999", f"{name}: {value} is no time"
    assert found is None or name == "retry-after-ms", "a year is further than anything resets"


@given(HEADERS, st.dictionaries(st.sampled_from(["resets_at", "resets_in_seconds"]), JSON_VALUES))
@example({"retry-after": "Mon, 01 Jan 0001 00:00:00 +2359"}, {})
def test_whatever_is_said_the_moment_is_within_bounds(
    headers: dict[str, str], details: dict[str, Any]
) -> None:
    moment = retry_at(headers, details, "", NOW)
    assert moment is None or NOW <= moment <= NOW + FURTHEST_SECONDS


# --- quota windows -------------------------------------------------------------------


def assert_sane(windows: tuple[QuotaWindow, ...]) -> None:
    assert len(windows) <= 16, "an answer tells of a bounded number of quotas"
    for window in windows:
        assert len(window.name) <= 80, "names are bounded"
        for number in window[1:]:
            assert number is None or (math.isfinite(number) and number >= 0), "numbers are sane"
        if window.resets_at is not None:
            assert NOW <= window.resets_at <= NOW + FURTHEST_SECONDS, "the reset is in reach"
    json.dumps(windows, allow_nan=False)


def test_quotas_of_the_platform_are_read_from_headers() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m0s",
        "x-request-id": "req_1",
        "date": "today",
    }
    requests, tokens = read_windows(headers, NOW)
    assert requests == QuotaWindow("requests", None, 59, 60, NOW + 1, None)
    assert tokens == QuotaWindow("tokens", None, 0, 150_000, NOW + 360, None)
    assert (requests.used_up, tokens.used_up) == (False, True)


def test_quotas_of_chatgpt_are_read_from_headers_one_family_for_each_limit() -> None:
    headers = {
        "x-codex-primary-used-percent": "12.5",
        "x-codex-primary-window-minutes": "300",
        "x-codex-primary-reset-at": f"{NOW + 60:.0f}",
        "x-codex-primary-reset-after-seconds": "61",
        "x-codex-primary-over-secondary-limit-percent": "0",
        "x-codex-bengalfox-secondary-used-percent": "100",
        "x-codex-bengalfox-limit-name": "Spark",
        "x-codex-credits-balance": "5",
    }
    primary, other = read_windows(headers, NOW)
    assert primary == QuotaWindow("codex primary", 12.5, None, None, NOW + 60, 18_000)
    assert other == QuotaWindow("codex-bengalfox secondary", 100, None, None, None, None)
    assert (primary.used_up, other.used_up) == (False, True)


def test_what_is_no_number_leaves_no_window() -> None:
    assert read_windows({"x-ratelimit-remaining-requests": "-1"}, NOW) == ()
    assert read_windows({"x-codex-primary-used-percent": "nan"}, NOW) == ()


@given(HEADERS)
def test_whatever_headers_say_windows_are_sane(headers: dict[str, str]) -> None:
    assert_sane(read_windows(headers, NOW))


def test_an_answer_cannot_tell_of_endless_quotas() -> None:
    headers = {f"x-{n}-{'x' * 500}-primary-used-percent": "1" for n in range(1000)}
    assert_sane(read_windows(headers, NOW))


def event(**members: Any) -> bytes:
    return json.dumps({"type": "codex.rate_limits", **members}).encode()


def test_a_rate_limits_event_is_read() -> None:
    limits = {
        "allowed": True,
        "limit_reached": False,
        "primary": {"used_percent": 42, "window_minutes": 300, "reset_at": NOW + 60},
        "secondary": {"used_percent": 10.5, "window_minutes": 10080, "reset_at": NOW + 600},
    }
    assert read_rate_limits_event(event(rate_limits=limits, limit_name=None), NOW) == (
        QuotaWindow("codex primary", 42, None, None, NOW + 60, 18_000),
        QuotaWindow("codex secondary", 10.5, None, None, NOW + 600, 604_800),
    )


def test_a_rate_limits_event_names_its_limit_and_others() -> None:
    data = event(
        metered_limit_name="codex_bengalfox",
        limit_name="Spark",
        rate_limits={"primary": {"used_percent": 1}, "secondary": None},
        additional_rate_limits=[
            {
                "limit_name": "GPT-5.2",
                "rate_limit": {
                    "primary_window": {
                        "used_percent": 2,
                        "limit_window_seconds": 60,
                        "reset_after_seconds": 5,
                    }
                },
            },
            None,
            {"rate_limit": 7},
        ],
    )
    assert read_rate_limits_event(data, NOW) == (
        QuotaWindow("codex-bengalfox primary", 1),
        QuotaWindow("gpt-5.2 primary", 2, None, None, NOW + 5, 60),
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        event(),
        event(rate_limits=None),
        event(rate_limits={"primary": 5}),
        event(rate_limits={"primary": {"used_percent": "much"}}),
    ],
    ids=lambda data: data[:60].decode(errors="replace"),
)
def test_an_event_without_limits_tells_nothing(data: bytes) -> None:
    assert read_rate_limits_event(data, NOW) == ()


@given(
    st.dictionaries(
        st.sampled_from(["primary", "secondary", "primary_window"]),
        JSON_VALUES
        | st.dictionaries(
            st.sampled_from(["used_percent", "window_minutes", "reset_at", "limit_window_seconds"]),
            JSON_VALUES,
        ),
    ),
    JSON_VALUES,
)
def test_whatever_an_event_holds_windows_are_sane(limits: dict[str, Any], name: Any) -> None:
    more = [{"limit_name": name, "rate_limit": limits}] * 20
    data = event(limit_name=name, rate_limits=limits, additional_rate_limits=more)
    assert_sane(read_rate_limits_event(data, NOW))


@pytest.mark.parametrize(
    ("active", "single"),
    [
        ("codex_bengalfox", True),
        ("codex-bengalfox", True),
        ("codex", False),
        ("premium", False),
        ("", False),
        (None, False),
    ],
)
def test_limits_of_single_models_are_known_by_their_name(active: str | None, single: bool) -> None:
    headers = {} if active is None else {"x-codex-active-limit": active}
    assert limits_single_model(headers) is single


# --- times --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("20ms", 0.02),
        ("1m30.5s", 90.5),
        ("1h0m0s", 3600),
        ("1d2h", 93_600),
        ("59.7", 59.7),
        ("0s", 0),
        ("7us", 7e-6),
        ("-1", None),
        ("-1s", None),
        ("6m0", None),
        ("6 parsecs", None),
        ("s", None),
        ("", None),
    ],
)
def test_lengths_of_time_have_several_forms(text: str, seconds: float | None) -> None:
    assert rate_limits.read_duration(text) == pytest.approx(seconds)


@given(
    st.text(max_size=40)
    | st.floats()
    | st.integers()
    | st.floats(NOW - 5, NOW + 5)
    | st.sampled_from([10**400, NOW * 1000, True, None, [], {}])
)
def test_whatever_a_value_is_the_moment_is_within_bounds(value: object) -> None:
    read = [
        rate_limits.read_time(value, NOW),
        rate_limits.read_delay(value, NOW),
        rate_limits.read_delay(value, NOW, 1e-3),
    ]
    if isinstance(value, str):
        read += [
            rate_limits.read_delay_or_date(value, NOW),
            rate_limits.read_delay(rate_limits.read_duration(value), NOW),
        ]
    for moment in read:
        assert moment is None or NOW <= moment <= NOW + rate_limits.FURTHEST_SECONDS


@given(
    st.text()
    | st.lists(
        st.sampled_from(["try again in ", "5", ".", "s", "m", " ", "and", ",", "9" * 20, "retry"])
    ).map("".join)
)
def test_whatever_a_message_says_the_moment_is_within_bounds(message: str) -> None:
    moment = rate_limits.delay_in_message(message, NOW)
    assert moment is None or NOW <= moment <= NOW + rate_limits.FURTHEST_SECONDS
    seconds = rate_limits.read_duration(message)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))
