"""How a turn finds its accounts: the next one after a refusal, or a wait for one."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api_keys.limits import LimitLease, LimitReached
from gateway.config import AccountSettings, RoutingSettings
from gateway.config.settings import Strategy
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.protocol.errors import UNREACHABLE, ApiError, error_event
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey
from gateway.routing.selection import RouteRequest, Selection
from gateway.turn.account_search import MOST_REFUSALS, AttemptBudget
from gateway.turn.turn import Turn
from tests.support.events import text_item, turn_events, user
from tests.turn.fakes import World

HELLO = [user("hi")]
ANSWER = turn_events([text_item("hello")], "resp_1")


def limited(seconds: int = 30) -> ApiError:
    return ApiError(
        429,
        "requests",
        "Rate limit reached.",
        "rate_limit_exceeded",
        hints={"retry-after": str(seconds)},
    )


def world(accounts: int = 2, **routing: Any) -> World:
    routing.setdefault("queue_seconds", 15.0)
    return World(accounts, routing=RoutingSettings(**routing))


def occupied(place: World, *names: str) -> list[Any]:
    """No further turn fits on these accounts until the places are released."""
    held = []
    for name in names:
        account = place.accounts[name]
        account._max_in_flight = 1
        answer = place.services.pool.choose(RouteRequest("gpt-5.5", [_key(name)], holder=name))
        assert isinstance(answer, Selection)
        held.append(answer.lease)
    return held


def _key(value: str) -> AffinityKey:
    return AffinityKey("thread", "someone", value)


def started(place: World, **members: Any) -> tuple[Turn, Any]:
    turn = place.turn(HELLO, **members)
    sink = place.sink
    turn.start()
    return turn, sink


def finish(place: World, name: str) -> None:
    place.exchanges(name)[-1].sends(*ANSWER)


# --- from one account to the next ----------------------------------------------------


def test_a_refused_turn_goes_to_another_account_unseen() -> None:
    place = world()
    turn, sink = started(place)
    place.exchanges("a")[0].ends(limited())
    finish(place, "b")
    assert sink.types[-1] == "response.completed"
    first, second = turn.record.attempts
    assert (first.account, second.account) == ("a", "b")
    assert first.outcome == "rate_limit_exceeded"
    assert second.others["a"].startswith("429 rate_limit_exceeded")
    place.check_rest()


def test_a_turn_is_tried_on_so_many_accounts_and_no_more() -> None:
    place = world(accounts=5, max_attempts=3)
    turn, sink = started(place)
    for name in "abc":
        place.exchanges(name)[0].ends(limited())
    assert len(turn.record.attempts) == 3
    assert not place.exchanges("d"), "three were enough"
    assert sink.last["status"] == 502, "§10.62: others could have served, the client may ask again"
    assert sink.last["error"]["code"] == "upstream_refused"
    place.check_rest()


def test_where_nobody_is_left_after_so_many_attempts_the_pools_limit_is_told() -> None:
    place = world(accounts=3, max_attempts=3)
    _, sink = started(place)
    for name, hours in (("a", 5), ("b", 2), ("c", 7)):
        now = place.clock.seconds()
        details = {"resets_at": int(now) + hours * 3600}
        error = ApiError(429, "usage_limit_reached", "The limit", details=details)
        place.exchanges(name)[0].ends(error)
    assert sink.last["error"]["type"] == "usage_limit_reached"
    assert sink.last["error"]["resets_at"] == int(place.clock.seconds()) + 2 * 3600
    place.check_rest()


def test_one_attempt_leaves_the_refusal_as_it_is() -> None:
    place = world(accounts=1, max_attempts=1)
    _, sink = started(place)
    place.exchanges("a")[0].ends(limited())
    assert sink.last["error"]["code"] == "rate_limit_exceeded"
    assert sink.last["error"]["message"] == "Rate limit reached."
    place.check_rest()


# --- waiting -------------------------------------------------------------------------


def test_a_turn_that_waits_is_served_by_a_release() -> None:
    place = world()
    held = occupied(place, "a", "b")
    turn, sink = started(place)
    assert len(place.services.waiting) == 1
    assert sink.raw == []
    place.clock.advance(3)
    held[1].release()
    assert len(place.services.waiting) == 0
    finish(place, "b")
    assert sink.types[-1] == "response.completed"
    assert turn.record.waited_ms == pytest.approx(3000, abs=1)
    assert turn.record.attempts[0].chosen_ms == pytest.approx(3000, abs=1)
    held[0].release()
    place.check_rest()


def test_a_turn_that_waits_is_served_by_the_end_of_a_cooldown() -> None:
    place = world(accounts=1)
    first, _ = started(place)
    place.exchanges("a")[0].ends(limited(4))
    assert len(place.services.waiting) == 1, "it comes back in time: worth waiting for"
    for _ in range(60):
        place.clock.advance(0.1)
    assert len(place.exchanges("a")) == 2, "tried again when the rest was over"
    finish(place, "a")
    assert [each.outcome for each in first.record.attempts] == ["rate_limit_exceeded", "completed"]
    assert first.record.waited_ms == pytest.approx(4500, abs=600)
    place.check_rest()


@pytest.mark.parametrize("paused", ["", "b"])
def test_a_turn_does_not_wait_on_for_an_account_that_refuses_it_after_each_rest(
    paused: str,
) -> None:
    place = world(1 + len(paused))
    for name in paused:
        place.accounts[name].health.disable()
    _, sink = started(place)
    soon = ApiError(429, "requests", "Slow down.", "rate_limit_exceeded")
    for number in range(3):
        assert len(place.exchanges("a")) == number + 1
        place.exchanges("a")[number].ends(soon)
        assert len(place.services.waiting) == (number < 2)
        place.clock.pump([0.25] * 20)
    assert sink.last["status"] == 429
    place.check_rest()


def test_a_cooldown_that_outlasts_the_queue_is_not_waited_for() -> None:
    place = world(accounts=1, queue_seconds=15.0)
    _, sink = started(place)
    place.exchanges("a")[0].ends(limited(60))
    assert len(place.services.waiting) == 0
    assert sink.last["status"] == 429
    place.check_rest()


def test_a_turn_gives_up_after_so_many_seconds() -> None:
    place = world(accounts=1, queue_seconds=15.0)
    held = occupied(place, "a")
    turn, sink = started(place)
    place.clock.pump([0.5] * 29)
    assert sink.raw == []
    place.clock.advance(1)
    assert sink.last["status"] == 429
    assert sink.last["headers"] == {"retry-after": "1"}
    assert turn.record.error_code == "rate_limit_exceeded"
    assert turn.record.waited_ms == pytest.approx(15_000, abs=600)
    held[0].release()
    place.check_rest()


def test_the_patience_of_a_turn_does_not_begin_anew_with_each_wait() -> None:
    place = world(accounts=1, queue_seconds=10.0, max_attempts=9)
    _, sink = started(place)
    for _ in range(4):
        place.exchanges("a")[-1].ends(limited(3))
        place.clock.pump([0.1] * 45)
    assert sink.types == ["error"], "10 seconds are over"
    place.check_rest()


def test_a_full_room_refuses_at_once() -> None:
    place = world(accounts=1, max_waiting=1)
    held = occupied(place, "a")
    first, _ = started(place)
    _, sink = started(place)
    assert sink.last["status"] == 429
    first.cancel()
    held[0].release()
    place.check_rest()


def test_nobody_waits_where_the_operator_allows_no_time() -> None:
    place = world(accounts=1, queue_seconds=0.0)
    held = occupied(place, "a")
    _, sink = started(place)
    assert sink.last["status"] == 429
    held[0].release()
    place.check_rest()


@pytest.mark.parametrize("end", ["cancel", "interrupt", "abandon"])
def test_a_turn_that_ends_while_it_waits_leaves_nothing(end: str) -> None:
    place = world(accounts=1)
    held = occupied(place, "a")
    turn, sink = started(place)
    argument = {"interrupt": [None], "abandon": [ApiError.bad_gateway("bye")]}.get(end, [])
    getattr(turn, end)(*argument)
    assert sink.ended == 1
    held[0].release()
    assert not place.exchanges("a"), "nobody is served who left"
    place.check_rest()


def test_a_turn_that_leaves_after_a_refusal_keeps_what_became_of_its_attempt() -> None:
    place = world(accounts=1)
    turn, _ = started(place)
    place.exchanges("a")[0].ends(limited(4))
    turn.cancel()
    assert turn.record.status == "cancelled"
    assert turn.record.attempts[0].outcome == "rate_limit_exceeded"
    place.check_rest()


def test_a_turn_bound_to_its_account_fails_at_once_where_the_operator_says_so() -> None:
    for loss, waiting in (("fail", 0), ("wait", 1)):
        place = world(on_account_loss=loss)
        place.completed(HELLO, ANSWER)
        occupied(place, "a")
        turn, sink = started(place)
        assert len(place.services.waiting) == waiting, f"on_account_loss: {loss}"
        assert bool(sink.raw) is (loss == "fail")
        turn.cancel()


# --- the tenant's limits -------------------------------------------------------------


class OneAtATime:
    """A tenant's limit of one turn; it is the lease of that turn, too."""

    one_tenant = False

    def __init__(self, place: World) -> None:
        self.place = place
        self.inside = 0
        self.refusals: list[tuple[str, str]] = []
        self.usage: list[Usage] = []
        self.free_at: float | None = None
        self.never: ApiError | None = None

    def prepare(self, tenant: str) -> None:
        return None

    def acquire(self, tenant: str, model: str | None) -> LimitLease | LimitReached:
        if self.never is not None:
            raise self.never
        if self.inside:
            return LimitReached("max_concurrent_turns", limited(7), self.free_at)
        self.inside += 1
        return self

    def used(self, usage: Usage) -> None:
        self.usage.append(usage)

    def release(self) -> None:
        self.inside -= 1
        self.place.services.waiting.wake()

    def refused(self, tenant: str, limit: str) -> None:
        self.refusals.append((tenant, limit))


@pytest.fixture
def busy() -> OneAtATime:
    place = world(accounts=2)
    limits = OneAtATime(place)
    object.__setattr__(place.services, "limits", limits)
    return limits


def test_a_tenants_next_turn_waits_for_the_one_before(busy: OneAtATime) -> None:
    place = busy.place
    started(place)
    second, sink = started(place)
    assert not place.exchanges("b"), "the tenant may run one"
    place.clock.advance(2)
    finish(place, "a")
    assert second.record.attempts[0].account == "a", "its conversation is at home there"
    finish(place, "a")
    assert sink.types[-1] == "response.completed"
    assert len(busy.usage) == 2
    assert (busy.inside, busy.refusals) == (0, [])
    place.check_rest()


def test_a_tenants_limit_that_lasts_is_told_and_counted(busy: OneAtATime) -> None:
    place = busy.place
    first, _ = started(place)
    busy.free_at = place.clock.seconds() + 100
    second, sink = started(place)
    assert sink.raw == [error_event(limited(7))]
    assert busy.refusals == [("laptop", "max_concurrent_turns")]
    first.cancel()
    assert busy.inside == 0
    assert second.record.attempts == []
    place.check_rest()


def test_a_tenants_limit_counts_once_all_patience_is_spent(busy: OneAtATime) -> None:
    place = busy.place
    first, _ = started(place)
    _, sink = started(place)
    place.clock.pump([0.5] * 31)
    assert sink.last["status"] == 429
    assert busy.refusals == [("laptop", "max_concurrent_turns")]
    first.cancel()
    place.check_rest()


def test_what_a_tenant_may_never_have_is_refused_at_once(busy: OneAtATime) -> None:
    busy.never = ApiError.invalid_request("Not this model.", "model", "model_not_found")
    _, sink = started(busy.place)
    assert sink.last["error"]["code"] == "model_not_found"
    busy.place.check_rest()


def test_what_a_tenant_may_not_have_any_more_ends_its_wait(busy: OneAtATime) -> None:
    """The operator takes the model away while the turn waits."""
    place = busy.place
    first, _ = started(place)
    _, sink = started(place)
    busy.never = ApiError.invalid_request("Not this model.", "model", "model_not_found")
    first.cancel()
    place.clock.advance(1)
    assert sink.last["error"]["code"] == "model_not_found"
    assert len(place.services.waiting) == 0
    place.check_rest()


def test_a_visit_lasts_over_all_attempts_of_a_turn(busy: OneAtATime) -> None:
    place = busy.place
    _, sink = started(place)
    place.exchanges("a")[0].ends(limited())
    assert busy.inside == 1
    finish(place, "b")
    assert sink.types[-1] == "response.completed"
    assert busy.inside == 0
    place.check_rest()


# --- who speaks for whom -------------------------------------------------------------


def test_turns_that_lack_different_things_do_not_speak_for_each_other() -> None:
    place = world(accounts=2)
    held = occupied(place, "a", "b")
    turns = [started(place, model=model) for model in ("gpt-5.5", "o3", "gpt-5.5")]
    assert len(place.services.waiting) == 3
    held[0].release()
    assert len(place.services.waiting) == 2, "one place, one turn"
    turns[0][0].cancel()
    assert len(place.services.waiting) == 1
    for turn, _ in turns:
        turn.cancel()
    held[1].release()
    place.check_rest()


def test_who_wants_no_account_in_doubt_does_not_speak_for_who_takes_one() -> None:
    place = world(accounts=2, strategy="fill-first", max_attempts=1)
    [at_b] = occupied(place, "b")
    place.accounts["a"].health.refused("gpt-5.5", Fault(FaultKind.SERVICE, "500"))
    disappointed, _ = started(place, connection="c-1")
    place.exchanges("a")[0].ends(BROKEN)
    assert len(place.services.waiting) == 1, "for b, which is not in doubt"
    [at_a] = occupied(place, "a")
    other, _ = started(place, connection="c-2")
    at_a.release()
    assert (asked(disappointed), asked(other)) == ("a", "a")
    for turn in (disappointed, other):
        turn.cancel()
    at_b.release()
    place.check_rest()


# --- accounts in doubt -----------------------------------------------------------------

BROKEN = ApiError(500, "server_error", "boom")
WRONG_KEY = ApiError(401, "invalid_request_error", "Incorrect API key.", "invalid_api_key")
REFUSED = ApiError.bad_gateway("The upstream refused the connection.", UNREACHABLE)
DEACTIVATED = ApiError(403, "invalid_request_error", "Deactivated.", "account_deactivated")
USED_UP = ApiError(429, "insufficient_quota", "You exceeded it.", "insufficient_quota")
STRATEGIES = get_args(Strategy)


def plays(place: World, refusals: dict[str, ApiError]) -> None:
    """These accounts refuse everything, all others answer."""
    for name, upstream in place.upstreams.items():
        error = refusals.get(name)
        upstream.answer = (
            (lambda exchange: exchange.sends(*ANSWER))
            if error is None
            else (lambda exchange, error=error: exchange.ends(error))
        )


def asked(turn: Turn) -> str:
    return "".join(attempt.account for attempt in turn.record.attempts)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "broken",
    [
        (WRONG_KEY, REFUSED, BROKEN),
        (BROKEN, DEACTIVATED, USED_UP),
        (USED_UP, WRONG_KEY, WRONG_KEY),
        (BROKEN, BROKEN, REFUSED),
    ],
    ids=lambda errors: "+".join(error.label for error in errors),
)
def test_broken_accounts_keep_no_turn_from_the_others(
    strategy: str, broken: tuple[ApiError, ...]
) -> None:
    place = world(5, strategy=strategy, max_attempts=3, cooldown_max_seconds=1.0)
    plays(place, dict(zip("abc", broken, strict=True)))
    for number in range(8):
        turn, sink = started(place, connection=f"c-{number}")
        assert sink.types[-1] == "response.completed", f"turn {number} asked {asked(turn)}"
        if number:
            assert len(asked(turn)) <= 2, "of those in doubt one is enough"
        place.clock.advance(2.0 if number % 2 else 0.1)
    place.check_rest()


def test_one_in_doubt_is_tried_whatever_max_attempts_says() -> None:
    place = world(3, strategy="fill-first", max_attempts=1)
    plays(place, {"a": BROKEN, "b": BROKEN})
    asks = [asked(started(place, connection=name)[0]) for name in ("c-1", "c-2", "c-3")]
    assert asks == ["a", "ab", "ac"], "a, then b were not in doubt before they refused"


def test_where_all_are_in_doubt_max_attempts_counts() -> None:
    place = world(5, max_attempts=3)
    plays(place, dict.fromkeys("abcde", BROKEN))
    lengths = [len(asked(started(place)[0])) for _ in range(3)]
    assert lengths == [3, 3, 3]
    assert place.sink.last["status"] == 500
    place.check_rest()


def test_the_journal_tells_who_was_left_out_for_doubt() -> None:
    place = world(3, strategy="fill-first")
    plays(place, {"a": BROKEN, "b": BROKEN})
    started(place)
    turn, _ = started(place, connection="another")
    assert asked(turn) == "ac"
    assert turn.record.attempts[-1].others["b"] == "has not answered well since it refused"


def test_who_waits_for_its_reset_is_asked_only_where_nobody_else_is() -> None:
    place = world(2, strategy="fill-first", cooldown_max_seconds=1.0)
    resets = {"resets_at": place.clock.seconds() + 3600}
    plays(place, {"a": ApiError(429, "usage_limit_reached", "The limit", details=resets)})
    assert asked(started(place, connection="c-1")[0]) == "ab"
    for number in range(3):
        place.clock.advance(30.0)
        assert asked(started(place, connection=f"d-{number}")[0]) == "b"
    place.accounts["b"].health.disable()
    place.clock.advance(30.0)
    assert asked(started(place, connection="e-1")[0]) == "a", "it may have been given more"


# --- its home ----------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [BROKEN, WRONG_KEY, REFUSED, USED_UP, limited(1)])
def test_a_conversations_home_is_who_answered_it_first(refusal: ApiError) -> None:
    place = world(3, strategy="fill-first", cooldown_max_seconds=1.0)
    plays(place, {"a": refusal, "b": refusal})
    turn, _ = started(place)
    assert asked(turn) == "abc"
    at_home = [binding.account for _, binding in place.services.pool.bindings.items(9)]
    assert at_home == ["c"]
    plays(place, {})
    place.clock.advance(10.0)
    assert asked(started(place)[0]) == "c"


def test_who_nobody_answered_has_no_home() -> None:
    place = world(2, queue_seconds=0.0)
    plays(place, dict.fromkeys("ab", BROKEN))
    started(place)
    bindings = place.services.pool.bindings
    assert (list(bindings.items(9)), len(bindings)) == ([], 0)


def test_turns_side_by_side_of_a_new_conversation_go_to_one_account() -> None:
    place = world(3)
    first, second = started(place)[0], started(place)[0]
    assert (asked(first), asked(second)) == ("a", "a")
    assert list(place.services.pool.bindings.items(9)) == [], "nobody has answered yet"
    place.exchanges("a")[0].ends(BROKEN)
    assert asked(first) == "ab"
    place.exchanges("a")[1].sends(*ANSWER)
    finish(place, "b")
    at_home = [binding.account for _, binding in place.services.pool.bindings.items(9)]
    assert at_home == ["a"], "it answered first"


def test_who_comes_just_as_a_minute_is_over_does_not_overtake_who_waits() -> None:
    world = World(routing=RoutingSettings(queue_seconds=100.0))
    about = AccountSettings(name="a", base_url="http://up", key="sk-a", requests_per_minute=1)
    account = Account(about, world.upstreams["a"], world.clock.seconds)
    world.services.pool.reconfigure([account], world.services.pool.routing)
    turns = [world.turn([user(text)]) for text in ("first", "waits", "later")]
    turns[0].start()
    turns[1].start()
    world.clock.rightNow += 60.2  # between two looks at the clock
    turns[2].start()
    said = [each.body["input"] for each in world.exchanges()]
    assert said == [[user("first")], [user("waits")]]
    for each in turns:
        each.cancel()
    world.check_rest()


# --- how many accounts may be tried ------------------------------------------------------------

BROKEN = ApiError(500, "server_error", "boom")
WRONG_KEY = ApiError(401, "invalid_request_error", "Incorrect API key.", "invalid_api_key")
FREE = [
    WRONG_KEY,
    ApiError(403, "invalid_request_error", "Deactivated.", "account_deactivated"),
    ApiError(429, "insufficient_quota", "You exceeded it.", "insufficient_quota"),
    ApiError.bad_gateway("The upstream refused the connection.", UNREACHABLE),
    ApiError.previous_response_not_found("resp_1"),
]


@pytest.mark.parametrize("error", FREE, ids=lambda error: error.label)
def test_what_cost_nothing_does_not_count_once_for_each_account(error: ApiError) -> None:
    tries = AttemptBudget()
    for account in "abcdef":
        tries.refused(account, error, in_doubt=False)
    assert not tries.exhausted(1)
    tries.refused("a", error, in_doubt=False)
    assert tries.exhausted(1)


def test_what_may_have_cost_something_counts() -> None:
    tries = AttemptBudget()
    for account in "ab":
        tries.refused(account, BROKEN, in_doubt=False)
    assert (tries.exhausted(3), tries.exhausted(2)) == (False, True)


def test_who_was_in_doubt_keeps_no_turn_from_those_that_are_not() -> None:
    tries = AttemptBudget()
    tries.refused("a", BROKEN, in_doubt=True)
    assert not tries.exhausted(1)
    assert (tries.may_doubt(1), tries.may_doubt(2)) == (False, True)


def test_nobody_needs_to_be_doubted_before_one_was() -> None:
    tries = AttemptBudget()
    assert tries.may_doubt(1)
    tries.refused("a", BROKEN, in_doubt=False)
    assert tries.may_doubt(1)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([*FREE, BROKEN]), st.booleans())),
    st.integers(1, 30),
)
def test_every_turn_ends(refusals: list[tuple[str, ApiError, bool]], most: int) -> None:
    tries = AttemptBudget()
    for account, error, in_doubt in refusals:
        if tries.exhausted(most):
            break
        tries.refused(account, error, in_doubt)
    assert len(tries.refusals) <= max(most, MOST_REFUSALS)
