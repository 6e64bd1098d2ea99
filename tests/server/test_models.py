"""The models a client may use: written down by the operator, or told by upstreams."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config import KeySettings
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.protocol.errors import ApiError
from gateway.routing.model_catalog import (
    ANSWER_SECONDS,
    FRESH_SECONDS,
    MOST_ASKED,
    RETRY_SECONDS,
    SILENCE_SECONDS,
)
from tests.server.handlers import DESK, Hall
from tests.support.events import Json
from tests.turn.calls import FakeCall


def entry(name: str, **more: Any) -> Json:
    return {"id": name, "object": "model", "created": 5, "owned_by": "them", **more}


def platform(*names: str) -> Json:
    return {"object": "list", "data": [entry(name) for name in names]}


def codex(*slugs: str) -> Json:
    return {"models": [{"slug": slug, "priority": 1, "shell_type": "x"} for slug in slugs]}


def two_services(**settings: Any) -> Hall:
    return Hall(2, settings={"b": {"base_url": "http://other"}, **settings})


def ids(body: Json) -> list[str]:
    assert body["object"] == "list"
    return [model["id"] for model in body["data"]]


def test_upstreams_are_asked_once_for_everybody_who_waits() -> None:
    hall = two_services()
    asked = [hall.asks("GET", "/models") for _ in range(3)]
    (first,), (second,) = hall.calls("a"), hall.calls("b")
    assert first.call.path == "/models"
    first.answers(platform("m-1", "m-2"))
    assert not asked[0].wire.status, "expected to wait for the other service"
    second.answers(platform("m-2", "m-3"))
    for each in asked:
        assert ids(each.wire.json) == ["m-1", "m-2", "m-3"]
        assert each.wire.json["data"][0] == entry("m-1"), "expected the upstream's own entry"
    assert ids(hall.asks("GET", "/models").wire.json) == ["m-1", "m-2", "m-3"]
    assert len(hall.world.all_calls) == 2
    hall.check_rest()


def test_accounts_of_one_service_are_asked_as_one() -> None:
    hall = Hall(3)
    asked = hall.asks("GET", "/models")
    hall.calls("a")[0].answers(platform("m-1"))
    assert ids(asked.wire.json) == ["m-1"]
    assert len(hall.world.all_calls) == 1
    hall.check_rest()


def test_what_the_operator_wrote_down_needs_no_upstream() -> None:
    hall = Hall(settings={"a": {"models": ("m-1",), "aliases": {"mine": "theirs"}}})
    asked = hall.asks("GET", "/models")
    assert ids(asked.wire.json) == ["m-1", "mine"]
    assert asked.wire.json["data"][0] == {
        "id": "m-1",
        "object": "model",
        "created": 0,
        "owned_by": "responses-gateway",
    }
    assert not hall.world.all_calls
    hall.check_rest()


def test_patterns_choose_from_what_the_upstream_offers() -> None:
    hall = Hall(settings={"a": {"models": ("gpt-*", "own"), "aliases": {"mine": "gpt-4"}}})
    asked = hall.asks("GET", "/models")
    hall.calls()[0].answers(platform("gpt-4", "whisper", "gpt-5"))
    assert ids(asked.wire.json) == ["own", "mine", "gpt-4", "gpt-5"]
    hall.check_rest()


def test_a_key_sees_what_it_may_use() -> None:
    hall = Hall(keys=[KeySettings(name="laptop", key="k", models=("gpt-*",)), DESK])
    asked = hall.asks("GET", "/models")
    hall.calls()[0].answers(platform("gpt-4", "o3"))
    assert ids(asked.wire.json) == ["gpt-4"]
    assert ids(hall.asks("GET", "/models", tenant="desk").wire.json) == ["gpt-4", "o3"]
    assert hall.asks("GET", "/models/o3").wire.status == 404
    assert hall.asks("GET", "/models/o3", tenant="desk").wire.json == entry("o3")
    hall.check_rest()


def test_a_model_that_nobody_offers_is_unknown() -> None:
    hall = Hall()
    asked = hall.asks("GET", "/models/none")
    hall.calls()[0].answers(platform("gpt-4"))
    assert (asked.wire.status, asked.wire.error["code"]) == (404, "model_not_found")
    hall.check_rest()


@pytest.mark.parametrize("state", ["disable", "drain"])
def test_accounts_out_of_service_offer_nothing(state: str) -> None:
    hall = Hall(settings={"a": {"models": ("m-1",)}})
    getattr(hall.world.accounts["a"].health, state)()
    assert ids(hall.asks("GET", "/models").wire.json) == []
    hall.check_rest()


def test_a_list_is_asked_for_again_when_it_is_old() -> None:
    hall = Hall()
    hall.asks("GET", "/models")
    hall.calls()[0].answers(platform("m-1"))
    hall.world.clock.advance(FRESH_SECONDS - 1)
    hall.asks("GET", "/models")
    assert len(hall.calls()) == 1
    hall.world.clock.advance(2)
    asked = hall.asks("GET", "/models")
    hall.calls()[1].answers(platform("m-2"))
    assert ids(asked.wire.json) == ["m-2"]
    hall.check_rest()


def fails(hall: Hall, call: FakeCall, how: str) -> None:
    """It does not say which models there are."""
    if how == "silent":
        hall.world.clock.advance(SILENCE_SECONDS + 0.1)
    elif how == "broken":
        call.ends(ApiError.bad_gateway("reset"))
    elif how == "no list":
        call.answers({"data": 5})
    elif how == "an error":
        call.answers({"error": {"message": "no"}})
    elif how == "no JSON":
        call.answers(b"<html>")
    elif how == "too long":
        call.begins()
        call.sends(b"[" * (9 * 2**20))
        assert call.state == "cancelled"
    else:
        call.refuses(int(how))


HOW = ["silent", "broken", "no list", "an error", "no JSON", "too long", "401", "404", "500"]


@pytest.mark.parametrize("how", HOW)
def test_a_stale_list_is_better_than_none(how: str) -> None:
    hall = Hall()
    hall.asks("GET", "/models")
    hall.calls()[0].answers(platform("m-1"))
    hall.world.clock.advance(FRESH_SECONDS + 1)
    asked = hall.asks("GET", "/models")
    call = hall.calls()[1]
    fails(hall, call, how)
    if how == "silent":
        hall.world.clock.advance(ANSWER_SECONDS)
        assert call.state == "cancelled"
    assert ids(asked.wire.json) == ["m-1"]
    hall.asks("GET", "/models")
    assert len(hall.world.all_calls) == 2, "expected nobody to be asked again at once"
    hall.world.clock.advance(RETRY_SECONDS + 1)
    again = hall.asks("GET", "/models")
    hall.calls()[2].answers(platform("m-2"))
    assert ids(again.wire.json) == ["m-2"]
    hall.check_rest()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("query", ["", "?client_version=0.171.0"])
def test_where_one_account_fails_the_next_of_its_service_is_asked_at_once(
    how: str, query: str
) -> None:
    hall = Hall(3)
    asked = hall.asks("GET", f"/models{query}")
    for name in "ab":
        (call,) = hall.calls(name)
        fails(hall, call, how)
    hall.calls("c")[0].answers({**platform("m-1"), **codex("m-1")})
    listed = asked.wire.json["models" if query else "data"]
    assert [each.get("slug") or each["id"] for each in listed] == ["m-1"]
    hall.world.clock.advance(FRESH_SECONDS + 1)
    hall.asks("GET", f"/models{query}")
    assert len(hall.calls("c")) == 2, "who answered last is asked first"
    hall.calls("c")[1].answers(platform("m-1"))
    hall.check_rest()


def test_a_silent_account_may_still_answer_first() -> None:
    hall = Hall(2)
    asked = hall.asks("GET", "/models")
    hall.world.clock.advance(SILENCE_SECONDS + 0.1)
    hall.calls("a")[0].answers(platform("m-1"))
    assert ids(asked.wire.json) == ["m-1"]
    assert hall.calls("b")[0].state == "cancelled"
    hall.check_rest()


def test_accounts_that_are_not_ready_are_asked_last() -> None:
    hall = Hall(2)
    hall.world.accounts["a"].health.refused(None, Fault(FaultKind.UNAUTHORIZED, "401"))
    hall.asks("GET", "/models")
    hall.calls("b")[0].answers(platform("m-1"))
    assert not hall.calls("a")
    hall.check_rest()


def test_not_more_accounts_are_asked_than_needed() -> None:
    hall = Hall(8)
    asked = hall.asks("GET", "/models")
    for _ in range(MOST_ASKED):
        hall.world.all_calls[-1].refuses(500)
    assert (ids(asked.wire.json), len(hall.world.all_calls)) == ([], MOST_ASKED)
    hall.check_rest()


@pytest.mark.parametrize(
    "answer",
    [
        [{"id": "m-1"}, {"id": "m-2"}],
        ["m-1", "m-2"],
        {"models": [{"slug": "m-1"}, {"name": "m-2"}]},
        {"data": None, "models": ["m-1", {"id": "m-2"}]},
        {"data": [{"id": "m-1"}, {"id": 5}, 7, None, {}], "models": [{"slug": "m-2"}]},
    ],
    ids=["bare list", "names", "slug and name", "null and mixed", "both, and odd entries"],
)
def test_lists_are_read_in_any_of_the_usual_shapes(answer: Any) -> None:
    hall = Hall()
    asked = hall.asks("GET", "/models")
    hall.calls()[0].answers(answer)
    assert ids(asked.wire.json) == ["m-1", "m-2"]
    assert {each.get("object", "model") for each in asked.wire.json["data"]} == {"model"}
    hall.check_rest()


def test_a_service_that_says_nothing_costs_the_others_nothing() -> None:
    hall = two_services()
    asked = hall.asks("GET", "/models")
    hall.calls("a")[0].answers(platform("m-1"))
    hall.world.clock.advance(ANSWER_SECONDS + 0.1)
    assert ids(asked.wire.json) == ["m-1"]
    hall.check_rest()


def test_who_knows_the_list_is_not_sent_it_again() -> None:
    hall = Hall(settings={"a": {"models": ("m-1",)}})
    tag = hall.asks("GET", "/models").wire.headers["etag"]
    for known in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        again = hall.asks("GET", "/models", if_none_match=known)
        assert (again.wire.status, again.wire.body) == (304, b"")
        assert again.wire.headers["etag"] == tag
        assert again.wire.completed
    assert hall.asks("GET", "/models", if_none_match='"other"').wire.status == 200
    hall.check_rest()


def test_codex_gets_its_own_catalogue_with_the_upstreams_tag() -> None:
    hall = Hall()
    asked = hall.asks("GET", "/models?client_version=0.169.0")
    (call,) = hall.calls()
    assert call.call.path == "/models?client_version=0.169.0"
    call.answers(codex("gpt-6"), etag='W/"up"')
    assert asked.wire.json == codex("gpt-6")
    assert asked.wire.headers["etag"] == 'W/"up"'
    known = hall.asks("GET", "/models?client_version=0.169.0", if_none_match='"up"')
    assert known.wire.status == 304
    hall.asks("GET", "/models?client_version=0.118.0")
    assert len(hall.calls()) == 2, "expected each version to be asked for"
    hall.calls()[1].answers(codex("gpt-5"))
    hall.check_rest()


def test_a_catalogue_is_never_made_up() -> None:
    hall = Hall(settings={"a": {"aliases": {"mine": "gpt-4"}}})
    asked = hall.asks("GET", "/models?client_version=0.169.0")
    hall.calls()[0].answers(platform("gpt-4"))
    assert asked.wire.json == {"models": []}
    assert asked.wire.headers["etag"]
    hall.check_rest()


def test_catalogues_are_joined_and_held_to_patterns_and_keys() -> None:
    hall = Hall(
        2,
        keys=[KeySettings(name="laptop", key="k", models=("*-5", "*-6"))],
        settings={"a": {"models": ("gpt-*",)}, "b": {"base_url": "http://other"}},
    )
    asked = hall.asks("GET", "/models?client_version=1")
    hall.calls("a")[0].answers(codex("gpt-6", "o-6", "gpt-4"), etag='"a"')
    hall.calls("b")[0].answers(codex("gpt-6", "x-5"), etag='"b"')
    assert asked.wire.json == codex("gpt-6", "x-5")
    assert asked.wire.headers["etag"] not in ('"a"', '"b"')
    hall.check_rest()


def test_a_stop_answers_who_waits() -> None:
    hall = Hall()
    asked = hall.asks("GET", "/models")
    hall.catalogues.close()
    assert ids(asked.wire.json) == []
    assert hall.calls()[0].state == "cancelled"
    hall.check_rest()


def test_versions_that_clients_make_up_are_not_remembered_for_ever() -> None:
    hall = Hall()
    for number in range(200):
        hall.asks("GET", f"/models?client_version=0.{number}%20&x")
        hall.calls()[-1].answers(codex("gpt-6"))
    assert len(hall.catalogues._entries) <= 64
    hall.check_rest()


def test_versions_that_clients_make_up_do_not_keep_a_service_busy() -> None:
    hall = Hall()
    for number in range(50):
        asked = hall.asks("GET", f"/models?client_version=0.1.{number}")
        if asked.wire.status == 0:
            hall.calls()[-1].answers(codex("m-1"))
        assert [each["slug"] for each in asked.wire.json["models"]] == ["m-1"]
    assert len(hall.calls()) == 8
    hall.world.clock.advance(FRESH_SECONDS)
    asked = hall.asks("GET", "/models?client_version=1.0.0")
    assert hall.calls()[-1].call.path.endswith("client_version=1.0.0"), "it may be a real one"
    hall.calls()[-1].answers(codex("m-2"))
    assert asked.wire.json["models"][0]["slug"] == "m-2"
    hall.check_rest()
