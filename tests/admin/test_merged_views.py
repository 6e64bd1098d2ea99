"""The views of several workers as one: in any order and any groups, and one as itself."""

from __future__ import annotations

import copy
from itertools import permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.admin import merged_views
from gateway.admin.merged_views import NOTHING, PART, REMAINS, marked, presented, remains, whole
from gateway.admin.merging import merged
from gateway.admin.views.overview import current, part
from tests.admin.stage import SOCKETS, Admin
from tests.metrics.test_turns import attempt, turn

Json = dict[str, Any]

OPEN = SOCKETS._replace(
    in_use=1,
    idle=0,
    opening=0,
    opened=2,
    lost={"closed 1006": 1},
    why_unavailable=None,
    unavailable_until=None,
    forgets_until=None,
)


@pytest.fixture(scope="module")
def parts() -> list[Json]:
    """What three workers said: one is busy, one has paused an account, one drains."""
    admins = [Admin() for _ in range(3)]
    for number, admin in enumerate(admins):
        for _ in range(3 * number):
            record = turn(attempt("a"), account="a")
            admin.world.services.turn_log.ended(record)
        admin.collector.step()
    admins[1].world.accounts["a"].health.disable()
    admins[2].running.drain.begin()
    return [part(admin.running) for admin in admins]


def test_one_part_is_what_its_process_shows() -> None:
    admin = Admin()
    admin.world.services.turn_log.ended(turn(attempt("a"), account="a"))
    admin.collector.step()
    assert whole({"1": part(admin.running)}) == current(admin.running)


def test_parts_are_merged_in_any_order_and_any_groups(parts: list[Json]) -> None:
    told = [marked(each, str(number)) for number, each in enumerate(parts)]
    names = ["0", "1", "2"]
    expected = presented(merged(PART, told), names)
    for order in permutations(told):
        assert presented(merged(PART, order), names) == expected
    grouped = PART(told[0], PART(told[1], told[2]))
    assert presented(grouped, names) == expected


def test_figures_are_sums_and_states_are_by_rule(parts: list[Json]) -> None:
    before = copy.deepcopy(parts)
    shown = whole({str(number): each for number, each in enumerate(parts)})
    assert shown["turns"] == {"completed": 9}
    assert shown["accounts"][0]["turns"] == sum(each["accounts"][0]["turns"] for each in parts)
    assert shown["accounts"][0]["workers"] == {"0": "ready", "1": "disabled", "2": "ready"}
    assert shown["accounts"][0]["state"] == "disabled"
    assert shown["accounts"][0]["actions"][0] == "resume", "the buttons are those of its state"
    assert shown["state"] == "degraded"
    assert shown["ready"] is True
    assert shown["drain"]["state"] == "draining"
    assert "counted" not in shown
    assert parts == before, "merging changed what workers said"


def test_websockets_are_those_of_all_workers() -> None:
    admins = [Admin() for _ in range(3)]
    for admin, figures in zip(admins, (SOCKETS, OPEN, None), strict=True):
        admin.world.upstreams["a"].figures = figures
    parts = [part(admin.running) for admin in admins]
    found = whole({str(number): each for number, each in enumerate(parts)})["accounts"]
    assert found[0]["websockets"] == {
        "in_use": 3,
        "idle": 3,
        "opening": 1,
        "most": 100,
        "opened": 22,
        "lost": {"age": 10, "closed 1006": 5},
        "unavailable": {"why": "it answered the upgrade with 426", "until": 1_800_000_600.0},
        "forgets_until": 1_800_003_600.0,
    }
    assert found[1]["websockets"] is None


def test_shares_are_those_of_all_turns() -> None:
    admins = [Admin() for _ in range(3)]
    for admin, chained in zip(admins, (3, 1, 0), strict=True):
        for number in range(4):
            route = "chained" if number < chained else "replayed"
            record = turn(transport="websocket", route=route, upstream_bytes=100 * chained)
            admin.world.services.turn_log.ended(record)
    here = {str(number): part(admin.running) for number, admin in enumerate(admins[:2])}
    found = whole(here)["transports"]["websocket"]
    assert (found["turns"], found["chained_share"], found["bytes_per_turn"]) == (8, 0.5, 200)
    left = merged(REMAINS, [remains(part(admins[2].running))])
    found = merged_views.with_remains(whole(here), left)["transports"]["websocket"]
    assert (found["turns"], found["chained_share"], found["bytes_per_turn"]) == (12, 0.3333, 133)
    assert whole({})["transports"]["websocket"]["chained_share"] is None


def test_the_sockets_of_ended_processes_are_counted_and_not_there() -> None:
    admin = Admin()
    admin.world.upstreams["a"].figures = SOCKETS
    left = merged(REMAINS, [remains(part(admin.running))])
    for figures, opened in ((OPEN, 22), (None, 20)):
        other = Admin()
        other.world.upstreams["a"].figures = figures
        shown = merged_views.with_remains(whole({"0": part(other.running)}), left)
        sockets = shown["accounts"][0]["websockets"]
        assert sockets["opened"] == opened
        assert (sockets["in_use"], sockets["unavailable"]) == (int(figures is OPEN), None)
        assert sockets["forgets_until"] is None


def test_percentiles_are_those_of_all_values() -> None:
    """A median of medians would be none."""
    fast, slow = Admin(), Admin()
    for admin, milliseconds, count in ((fast, 10.0, 90), (slow, 1000.0, 10)):
        for _ in range(count):
            admin.collector.turns.added.add(milliseconds)
    shown = whole({"1": part(fast.running), "2": part(slow.running)})
    measured = shown["now"]["added_first_token_ms"]
    assert measured["p50"] <= 10.0
    assert measured["p99"] > 800.0


def test_no_parts_are_a_gateway_that_cannot_be_used() -> None:
    shown = whole({})
    assert (shown["state"], shown["ready"], shown["accounts"]) == ("unusable", False, [])
    alone = current(Admin().running)
    assert shown.keys() == alone.keys(), "the page needs every member"
    assert {*shown["now"]} == {*alone["now"]}
    assert NOTHING["alarms"] == []


@pytest.mark.parametrize(
    ("states", "whole_state"),
    [
        (("ready", "ready"), "ready"),
        (("ready", "degraded"), "degraded"),
        (("ready", "unusable"), "degraded"),
        (("ready", "draining"), "degraded"),
        (("unusable", "draining"), "draining"),
        (("unusable", "unusable"), "unusable"),
        (("draining", "draining"), "draining"),
    ],
)
def test_the_state_of_a_gateway(states: tuple[str, str], whole_state: str) -> None:
    one, other = states
    assert merged_views._gateway_state(one, other) == whole_state
    assert merged_views._gateway_state(other, one) == whole_state


STATES = st.sampled_from(["ready", "degraded", "unusable", "draining"])


@given(st.lists(STATES, min_size=3, max_size=3))
def test_the_state_of_a_gateway_is_associative(states: list[str]) -> None:
    state, (one, two, three) = merged_views._gateway_state, states
    assert state(state(one, two), three) == state(one, state(two, three))


def test_an_alarm_of_all_is_one_and_that_of_one_names_it() -> None:
    def alarmed(*what: str) -> Json:
        alarms = [
            {"level": level, "what": name, "since": 5.0, "until": None, "advice": None}
            for level, name in (each.split(": ") for each in what)
        ]
        return {**part(Admin().running), "alarms": alarms}

    shown = whole(
        {"1": alarmed("amber: both"), "2": alarmed("amber: both", "red: only here")},
    )["alarms"]
    assert [each["what"] for each in shown] == ["only here", "both"]
    assert shown[0]["workers"] == ["2"]
    assert "workers" not in shown[1]


def test_the_counts_of_ended_processes_stay(parts: list[Json]) -> None:
    left = merged(REMAINS, [remains(parts[1]), remains(parts[2])])
    shown = merged_views.with_remains(whole({"0": parts[0]}), left)
    assert shown["turns"] == {"completed": 9}
    turns = sum(each["accounts"][0]["turns"] for each in parts)
    assert shown["accounts"][0]["turns"] == turns
    assert shown["accounts"][0]["in_flight"] == parts[0]["accounts"][0]["in_flight"]


counts = st.dictionaries(st.sampled_from(["completed", "error"]), st.integers(0, 9))
remaining = st.builds(
    lambda turns, number: {
        "turns": turns,
        "accounts": [{"name": "a", "turns": number, "failures": 0, "errors": turns}],
        "keys": [{"name": "k", "refusals": turns}],
        "ledger": {"evicted_conversations": number},
    },
    counts,
    st.integers(0, 9),
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(remaining, remaining, remaining)
def test_what_remains_can_be_merged_in_groups(one: Json, two: Json, three: Json) -> None:
    grouped = REMAINS(REMAINS(one, two), three)
    assert grouped == REMAINS(one, REMAINS(two, three))
    assert REMAINS(one, two) == REMAINS(two, one)


# --- lists -------------------------------------------------------------------------------------


def bound(identity: str, used_at: float, account: str = "a") -> Json:
    return {"id": identity, "account": account, "bound_at": 1.0, "used_at": used_at}


def test_a_conversation_is_where_it_was_used_last() -> None:
    views = {
        "1": {"conversations": [bound("x", 9.0, "a"), bound("y", 1.0)]},
        "2": {"conversations": [bound("x", 3.0, "b"), bound("z", 5.0)]},
    }
    found = merged_views.conversations(views, 10)["conversations"]
    assert [(each["id"], each["worker"]) for each in found] == [("x", "1"), ("z", "2"), ("y", "1")]
    assert found[0]["account"] == "a"
    assert len(merged_views.conversations(views, 1)["conversations"]) == 1


def test_turns_come_in_the_order_of_their_ends() -> None:
    views = {
        "1": {"turns": [{"turn": "a", "ended_at": 1.0}, {"turn": "c", "ended_at": 3.0}]},
        "2": {"turns": [{"turn": "b", "ended_at": 2.0}]},
    }
    assert [each["turn"] for each in merged_views.turns(views, 2)["turns"]] == ["b", "c"]


def test_an_explanation_names_the_worker_where_several_know_something() -> None:
    def view(*sentences: str) -> Json:
        nothing: Json = {"binding": None, "chain": {"nodes": []}, "turns": []}
        return {"explanation": list(sentences), **nothing}

    assert merged_views.why({"1": None, "2": None}) is None
    alone = merged_views.why({"1": None, "2": view("It is at home at a.")})
    assert alone is not None
    assert alone["explanation"] == ["It is at home at a."]
    both = merged_views.why({"1": view("Same.", "Mine."), "2": view("Same.", "Other.")})
    assert both is not None
    assert both["explanation"] == ["Same.", "Worker 1: Mine.", "Worker 2: Other."]


def test_results_say_who_did_what() -> None:
    same = merged_views.done(
        {"1": {"result": "done", "left": 1}, "2": {"result": "done", "left": 2}}
    )
    assert same == {"result": "done", "left": 3}
    differ = merged_views.done({"1": {"result": "x"}, "3": {"result": "y"}}, ["2"])
    assert differ["result"] == "worker 1: x; worker 3: y; no answer of worker 2"


def test_a_dry_run_shows_choices_that_differ() -> None:
    assert "workers" not in merged_views.dry_run({"1": {"account": "a"}, "2": {"account": "a"}})
    found = merged_views.dry_run({"1": {"account": "a"}, "2": {"account": "b"}})
    assert found == {"account": "a", "workers": {"1": "a", "2": "b"}}


def test_recordings_are_those_of_one_directory() -> None:
    views = {
        worker: {
            "recorded": [{"what": "key", "name": "laptop", "until": 5.0, "turns": 1}],
            "failed": None,
            "turns": 2,
            "bytes": 10,
            "files": [{"name": "b", "bytes": 5}, {"name": "a", "bytes": 5}],
        }
        for worker in "12"
    }
    found = merged_views.recordings(views)
    assert found["recorded"] == [{"what": "key", "name": "laptop", "until": 5.0, "turns": 2}]
    assert [each["name"] for each in found["files"]] == ["b", "a"]
    assert (found["turns"], found["bytes"]) == (4, 20)
    assert merged_views.recording({"1": None, "2": {"file": "a"}}) == {"file": "a"}
