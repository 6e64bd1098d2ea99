"""Moments and lengths of time in every form, and nothing absurd."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import rate_limits as moments

NOW = 1_795_000_000.0


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
    assert moments.read_duration(text) == pytest.approx(seconds)


@given(
    st.text(max_size=40)
    | st.floats()
    | st.integers()
    | st.floats(NOW - 5, NOW + 5)
    | st.sampled_from([10**400, NOW * 1000, True, None, [], {}])
)
def test_whatever_a_value_is_the_moment_is_within_bounds(value: object) -> None:
    read = [
        moments.read_time(value, NOW),
        moments.read_delay(value, NOW),
        moments.read_delay(value, NOW, 1e-3),
    ]
    if isinstance(value, str):
        read += [
            moments.read_delay_or_date(value, NOW),
            moments.read_delay(moments.read_duration(value), NOW),
        ]
    for moment in read:
        assert moment is None or NOW <= moment <= NOW + moments.FURTHEST_SECONDS


@given(
    st.text()
    | st.lists(
        st.sampled_from(["try again in ", "5", ".", "s", "m", " ", "and", ",", "9" * 20, "retry"])
    ).map("".join)
)
def test_whatever_a_message_says_the_moment_is_within_bounds(message: str) -> None:
    moment = moments.delay_in_message(message, NOW)
    assert moment is None or NOW <= moment <= NOW + moments.FURTHEST_SECONDS
    seconds = moments.read_duration(message)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))
