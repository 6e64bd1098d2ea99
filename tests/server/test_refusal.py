"""An error as an HTTP answer."""

from __future__ import annotations

import pytest

from gateway.server.http_request import phrase_of


@pytest.mark.parametrize(
    ("status", "phrase"), [(429, "Too Many Requests"), (426, "Upgrade Required"), (599, "Refused")]
)
def test_every_status_has_a_phrase(status: int, phrase: str) -> None:
    assert phrase_of(status) == phrase
