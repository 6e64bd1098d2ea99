"""The ledger of all processes: never more than the limits, and each report counts once."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api_keys.limit_ledger import (
    MAX_CONCURRENT,
    KeyUsage,
    LimitAnswer,
    LimitAsk,
    LimitLedger,
    LimitWindow,
)

START = 1_800_000_000.0
MINUTE = LimitWindow("requests_per_minute", 60.0, 10, False)
TOKENS = LimitWindow("tokens_per_minute", 60.0, 1000, True)


class Asker:
    """A process that asks a ledger."""

    def __init__(self, ledger: Any, process: str) -> None:
        self.ledger = ledger
        self.process = process
        self.number = 0

    def ask(self, now: float, wanted: int = 1, **changed: Any) -> LimitAnswer:
        self.number = changed.pop("number", self.number + 1)
        parts: dict[str, Any] = {
            "held": 0,
            "spare": 0,
            "most": -1,
            "windows": [MINUTE],
            "uses": [],
            **changed,
        }
        ask = LimitAsk(
            process=self.process, number=self.number, wanted=wanted, tenant="laptop", **parts
        )
        answer: LimitAnswer = self.ledger.exchange(ask, now)
        return answer


@pytest.fixture
def both() -> tuple[Asker, Asker]:
    ledger = LimitLedger()
    return Asker(ledger, "a"), Asker(ledger, "b")


def test_both_together_have_the_limit(both: tuple[Asker, Asker]) -> None:
    a, b = both
    granted = [each.ask(START, 4).granted for each in (a, b, a, b)]
    assert granted == [4, 4, 2, 0]
    refused = b.ask(START, 1)
    assert refused.reached == "requests_per_minute"
    assert 60 <= refused.wait <= 62
    assert b.ask(START + refused.wait - 0.01, 1).granted == 0
    assert b.ask(START + refused.wait, 1).granted == 1


def test_a_report_that_is_sent_again_counts_once(both: tuple[Asker, Asker]) -> None:
    a, b = both
    first = a.ask(START, 2, uses=[KeyUsage(0.0, 3, 5)])
    again = a.ask(START, 2, uses=[KeyUsage(0.0, 3, 5)], number=1)
    assert (first.granted, again.granted) == (2, 2)
    assert first.used == again.used == [5]
    assert b.ask(START, 9).granted == 5
    assert again.tokens == 5


def test_places_are_shared_and_given_back(both: tuple[Asker, Asker]) -> None:
    a, b = both
    assert a.ask(START, 3, most=4).granted == 3
    refused = b.ask(START, 2, most=4)
    assert (refused.granted, refused.reached) == (1, MAX_CONCURRENT)
    assert refused.held == 4
    freed = a.ask(START + 0.5, 0, held=2, most=4)
    assert freed.wake, "b waits for it"
    assert b.ask(START + 0.5, 1, held=1, most=4).granted == 1
    assert not a.ask(START + 0.6, 0, held=1, most=4).wake, "b has what it wanted"


def test_places_of_a_process_that_is_gone_are_free_again(both: tuple[Asker, Asker]) -> None:
    a, b = both
    assert a.ask(START, 4, most=4).granted == 4
    assert b.ask(START + 9.9, 1, most=4).granted == 0
    assert b.ask(START + 10.1, 1, most=4).granted == 1
    a.ledger.gone("b")
    assert a.ask(START + 10.2, 4, most=4).granted == 4


def test_permits_in_advance_are_a_small_share(both: tuple[Asker, Asker]) -> None:
    a, _ = both
    many = [LimitWindow("requests_per_minute", 60.0, 1000, False)]
    assert a.ask(START, 1, spare=500, windows=many).granted == 11
    for _ in range(988):
        a.ask(START, 1, windows=many)
    assert a.ask(START, 1, spare=500, windows=many).granted == 1, "little is left"


def test_tokens_are_counted_when_they_were_used(both: tuple[Asker, Asker]) -> None:
    a, b = both
    assert a.ask(START, 5, windows=[TOKENS]).granted == 5
    a.ask(START, 0, windows=[TOKENS], uses=[KeyUsage(30.0, 0, 600), KeyUsage(0.0, 0, 500)])
    refused = b.ask(START, 1, windows=[TOKENS])
    assert refused.reached == "tokens_per_minute"
    assert refused.wait <= 31.0 + 1.0
    assert b.ask(START + refused.wait, 1, windows=[TOKENS]).granted == 1


def test_what_was_kept_is_taken_back(both: tuple[Asker, Asker]) -> None:
    a, _ = both
    a.ask(START, 7)
    other = LimitLedger()
    other.restore("laptop", [MINUTE], a.ledger.use_of("laptop", [MINUTE], START))
    answer = Asker(other, "c").ask(START, 9)
    assert (answer.granted, answer.turns) == (3, 10)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 4),
            st.integers(0, 3),
            st.sampled_from([0.0, 0.01, 0.4, 1.0, 7.3, 31.0]),
        ),
        max_size=60,
    )
)
@settings(deadline=None, max_examples=200)
def test_never_more_than_the_limits(steps: list[tuple[int, int, int, float]]) -> None:
    ledger = LimitLedger()
    askers = [Asker(ledger, str(number)) for number in range(3)]
    held = [0, 0, 0]
    granted: deque[float] = deque()
    now = START + 0.25
    for which, wanted, ended, pause in steps:
        now += pause
        # Those that confirm too seldom lose their places; here all do.
        for number, asker in enumerate(askers):
            asker.ask(now, 0, held=held[number], most=6)
        held[which] = max(0, held[which] - ended)
        answer = askers[which].ask(now, wanted, held=held[which], most=6, spare=2)
        held[which] += answer.granted
        granted.extend([now] * answer.granted)
        while granted and granted[0] <= now - 60.0:
            granted.popleft()
        assert sum(held) <= 6
        assert len(granted) <= 10
        assert answer.held == sum(held)
        if answer.granted < wanted:
            assert answer.reached
