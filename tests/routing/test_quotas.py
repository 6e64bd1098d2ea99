"""Used-up quotas: shown until they reset, and a reason to begin conversations elsewhere."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from gateway.config.settings import Strategy
from gateway.protocol.error_classification import FaultKind
from gateway.protocol.rate_limits import QuotaWindow
from gateway.routing.quotas import AccountQuotas
from gateway.routing.selection import Selection
from tests.routing.pools import MODEL, Basin, wanted
from tests.support.now import Now

STRATEGIES = get_args(Strategy)
START = 1_800_000_000.0


@pytest.fixture
def clock() -> Now:
    return Now(START)


@pytest.fixture
def quotas(clock: Now) -> AccountQuotas:
    return AccountQuotas(clock, 600.0)


def window(name: str = "codex primary", percent: float = 100.0, **more: Any) -> QuotaWindow:
    return QuotaWindow(name, percent, **{"resets_at": START + 300, **more})


# --- what is used up -----------------------------------------------------------------


@pytest.mark.parametrize(
    "told",
    [
        window(),
        window("premium secondary", 107.5),
        QuotaWindow("requests", remaining=0.0, limit=60.0, resets_at=START + 300),
    ],
)
def test_what_is_used_up_is_so_until_it_resets(
    quotas: AccountQuotas, clock: Now, told: QuotaWindow
) -> None:
    assert not quotas.spent
    quotas.observe([told])
    assert quotas.spent
    clock.now += 299
    assert quotas.spent
    clock.now += 1
    assert not quotas.spent


@pytest.mark.parametrize(
    "told",
    [
        window(percent=99.9),
        window(resets_at=None),
        window("codex-other primary"),
        QuotaWindow("requests", remaining=1.0, resets_at=START + 300),
        QuotaWindow("requests", remaining=0.0),
        window(resets_at=START),
    ],
)
def test_what_has_room_or_no_end_or_is_of_one_model_counts_for_nothing(
    quotas: AccountQuotas, told: QuotaWindow
) -> None:
    quotas.observe([told])
    assert not quotas.spent


def test_the_last_word_of_each_window_counts(quotas: AccountQuotas) -> None:
    quotas.observe([window(), window("codex secondary", 10.0)])
    quotas.observe([])
    quotas.observe([window("codex secondary", 11.0)])
    assert quotas.spent
    quotas.observe([window(percent=3.0)])
    assert not quotas.spent


def test_it_is_believed_no_longer_than_a_rest_may_last(quotas: AccountQuotas, clock: Now) -> None:
    quotas.observe([window(resets_at=START + 6 * 86_400)])
    clock.now += 599
    assert quotas.spent
    clock.now += 1
    assert not quotas.spent, "the account may have been given more"
    quotas.observe([window(resets_at=START + 6 * 86_400)])
    assert quotas.spent, "it says so again"
    clock.now -= 86_400
    assert not quotas.spent, "the clock was set back"


def test_the_operator_may_doubt_it(quotas: AccountQuotas) -> None:
    quotas.observe([window()])
    quotas.reset()
    assert not quotas.spent


# --- what is shown -------------------------------------------------------------------


def test_what_is_past_its_reset_is_shown_anew(quotas: AccountQuotas, clock: Now) -> None:
    quotas.observe(
        [window(), QuotaWindow("requests", None, 0.0, 60.0, START + 1), QuotaWindow("tokens")]
    )
    clock.now += 1
    assert [each["remaining"] for each in quotas.shown()] == [None, 0.0, None]
    clock.now += 300
    codex, requests, tokens = quotas.shown()
    assert (codex["used_percent"], codex["remaining"], codex["resets_at"]) == (0.0, None, None)
    assert (requests["used_percent"], requests["remaining"]) == (None, 60.0)
    assert tokens == QuotaWindow("tokens")._asdict()


def test_of_many_names_the_latest_are_remembered(quotas: AccountQuotas) -> None:
    quotas.observe(QuotaWindow(f"nonsense {number}") for number in range(1000))
    quotas.observe([window()])
    names = [each["name"] for each in quotas.shown()]
    assert len(names) == 32
    assert names[-1] == "codex primary"


# --- what the pool makes of it -------------------------------------------------------


def use_up(basin: Basin, *names: str) -> None:
    for name in names:
        basin.accounts[name].health.observe([window(resets_at=basin.now + 300)])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_new_conversations_begin_where_something_is_left(strategy: str) -> None:
    basin = Basin("a", "b", "c", strategy=strategy)
    use_up(basin, "a")
    for _ in range(3):
        assert {basin.goes()[0] for _ in range(12)} <= {"b", "c"}
        basin.clock.advance(0.7)
    basin.clock.advance(300)
    assert "a" in {basin.goes()[0] for _ in range(12)}, "its quota has begun anew"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_conversation_stays_where_it_is(strategy: str) -> None:
    basin = Basin("a", "b", strategy=strategy)
    home, _ = basin.goes("t1")
    use_up(basin, home)
    for _ in range(3):
        basin.goes()
        assert basin.goes("t1") == (home, "thread")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_where_all_are_used_up_the_strategy_goes_on_as_ever(strategy: str) -> None:
    basin, other = (Basin("a", "b", "c", "d", strategy=strategy) for _ in range(2))
    use_up(basin, *"abcd")
    assert [basin.goes() for _ in range(40)] == [other.goes() for _ in range(40)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nobody_is_refused_for_it(strategy: str) -> None:
    basin = Basin("a", "b", "c", accounts={"c": {"max_in_flight": 1}}, strategy=strategy)
    use_up(basin, "a", "b")
    held = basin.pool.choose(wanted())
    assert isinstance(held, Selection)
    assert held.account.name == "c"
    assert basin.goes()[0] in "ab", "who has room is full"
    held.lease.release()
    basin.clock.advance(1)
    assert basin.goes()[0] == "c"
    assert basin.goes(tried=["c"])[0] in "ab", "who has room refused the turn"
    basin.fails("c")
    assert basin.goes()[0] in "ab", "who has room rests"
    basin.accounts["c"].health.disable()
    basin.clock.advance(60)
    assert {basin.goes()[0] for _ in range(12)} <= {"a", "b"}


@pytest.mark.parametrize("strategy", ["round-robin", "weighted", "least-in-flight"])
def test_who_is_used_up_shares_what_nobody_else_can_take(strategy: str) -> None:
    basin = Basin("a", "b", "c", strategy=strategy)
    use_up(basin, "a", "b")
    basin.accounts["c"].health.drain()
    gone = []
    for _ in range(20):
        gone.append(basin.goes()[0])
        basin.clock.advance(1.5)
        use_up(basin, "a", "b")
    assert (gone.count("a"), gone.count("b")) == (10, 10)


def test_why_it_is_passed_over_is_told() -> None:
    basin = Basin("a", "b", "c")
    use_up(basin, "a")
    choice = basin.ask()
    assert isinstance(choice, Selection)
    assert dict(choice.others)["a"] == "a quota of it is used up"
    dry = basin.pool.explain(wanted())
    assert dry.among == ("b", "c")
    assert dict(dry.rejected) == {"a": "a quota of it is used up"}
    use_up(basin, "b", "c")
    assert basin.pool.explain(wanted()).among == ("a", "b", "c")


def test_what_a_turn_waits_for_is_never_that() -> None:
    basin = Basin("a", "b", on_account_loss="wait")
    basin.goes("t1")
    use_up(basin, "a")
    basin.goes()
    nobody = basin.nobody("t1", tried=["a"])
    assert nobody.reasons == ()
    assert basin.pool.none_left(wanted(pinned_to="a"), ["a"]) is not None


def test_a_model_that_only_the_used_up_offer_is_served_by_them() -> None:
    basin = Basin("a", "b", accounts={"b": {"models": ["other"]}})
    use_up(basin, "a")
    assert basin.goes()[0] == "a"


def test_clearing_an_account_puts_it_back() -> None:
    basin = Basin("a", "b", strategy="fill-first")
    use_up(basin, "a")
    assert basin.goes()[0] == "b"
    basin.recovers("a")
    basin.clock.advance(1)
    assert basin.goes()[0] == "a"


def test_a_refusal_is_stronger_than_a_quota() -> None:
    basin = Basin("a", "b")
    use_up(basin, "a")
    basin.fails("b", kind=FaultKind.EXHAUSTED)
    assert basin.goes()[0] == "a"
    assert basin.accounts["b"].unavailable(MODEL) is not None
