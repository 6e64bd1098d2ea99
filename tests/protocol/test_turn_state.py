"""A turn state is read by the tenant it was made for, and by gateways that share the secret."""

from __future__ import annotations

from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.turn_state import TurnState, TurnStateSigner

STATES = TurnStateSigner(b"a secret of the gateway")
MINE = STATES.wrap("laptop", TurnState("north", "upstream's own"))

#: JSON carries no lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT, TEXT, st.none() | TEXT)
def test_its_tenant_gets_back_what_was_said(
    tenant: str, account: str, upstream: str | None
) -> None:
    state = TurnState(account, upstream)
    value = STATES.wrap(tenant, state)
    assert STATES.unwrap(tenant, value) == state
    assert value.isascii(), "it travels in a header"
    assert not set(value) & set(" ,;\r\n\"'\\")


def test_gateways_that_share_a_secret_understand_each_other() -> None:
    assert TurnStateSigner(b"a secret of the gateway").unwrap("laptop", MINE) is not None
    assert TurnStateSigner(b"another secret").unwrap("laptop", MINE) is None


@given(TEXT)
def test_no_other_tenant_can_use_it(tenant: str) -> None:
    assert (STATES.unwrap(tenant, MINE) is None) == (tenant != "laptop")


@pytest.mark.parametrize(("owner", "thief"), [("1.a", "1"), ("", "0"), ("laptop", "laptop.")])
def test_names_that_look_alike_are_kept_apart(owner: str, thief: str) -> None:
    value = STATES.wrap(owner, TurnState("north", None))
    mark, said, signature = value.split(".")
    for forged in (value, f"{mark}.{said}.{signature}", f"{mark}.{owner}.{said}.{signature}"):
        assert STATES.unwrap(thief, forged) is None


@given(st.data())
def test_no_changed_value_passes(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(MINE) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != MINE[at]))
    assert STATES.unwrap("laptop", MINE[:at] + other + MINE[at + 1 :]) is None


@given(st.text() | st.from_regex(r"gw1\.[A-Za-z0-9_=-]*\.[0-9a-f]{32}", fullmatch=True))
def test_what_is_none_of_ours_says_nothing(value: str) -> None:
    assert STATES.unwrap("laptop", value) is None


@pytest.mark.parametrize("value", [None, "", "gw1", "gw1..", "x" * 100_000, MINE + "é"])
def test_oddities_say_nothing(value: str | None) -> None:
    assert STATES.unwrap("laptop", value) is None


@pytest.mark.parametrize("said", [b"[]", b"null", b'{"account":1}', b"[1,2]", b"\xff", b'["a"'])
def test_an_older_gateways_words_say_nothing(said: bytes) -> None:
    """Signed by us, and yet of another shape."""
    text = urlsafe_b64encode(said).decode()
    signed = f"gw1.{text}.{STATES._signature('laptop', text)}"
    assert STATES.unwrap("laptop", signed) is None


def test_a_value_that_would_not_come_back_is_short_enough_in_practice() -> None:
    long = STATES.wrap("laptop", TurnState("north", "u" * 4000))
    assert STATES.unwrap("laptop", long) == TurnState("north", "u" * 4000)
    longer = STATES.wrap("laptop", TurnState("north", "u" * 40_000))
    assert STATES.unwrap("laptop", longer) is None, "it is not read, rather than read at any cost"
