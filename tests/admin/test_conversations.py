"""Finding conversations, why each is where it is, and where a turn would go."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from gateway.config import RoutingSettings
from gateway.config.settings import Strategy
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.routing.affinity import AffinityKey, connection_key, opaque_id
from gateway.routing.selection import RouteRequest, Selection
from tests.admin.stage import BEARER, TOKEN, Admin
from tests.support.events import text_item, turn_events, user
from tests.turn.fakes import World

CONVERSATION = opaque_id(connection_key("laptop", "c-1"))


def found(admin: Admin, q: str) -> list[Any]:
    return [each["id"] for each in admin.json(f"/status/conversations?q={q}")["conversations"]]


def bound(admin: Admin, rule: str, value: str, account: str = "a") -> str:
    key = AffinityKey(rule, "laptop", value)
    admin.world.services.pool.bindings.bind(key, account, "round-robin")
    return opaque_id(key)


def test_a_conversation_is_found_by_all_it_is_known_by() -> None:
    admin = Admin()
    thread = bound(admin, "thread", "0199-thread")
    session = bound(admin, "session", "s/1 ä")
    cached = bound(admin, "prompt_cache_key", "cache-1", "b")
    admin.world.completed([user("hi")], turn_events([text_item()], "resp_1"))
    assert found(admin, "0199-thread") == [thread]
    assert found(admin, "s%2F1%20%C3%A4") == [session]
    assert found(admin, "cache-1") == [cached]
    assert found(admin, "resp_1") == [CONVERSATION]
    assert found(admin, "c-1") == [CONVERSATION]
    assert found(admin, CONVERSATION) == [CONVERSATION]
    assert found(admin, CONVERSATION[:8]) == [CONVERSATION]
    assert found(admin, "laptop") == [CONVERSATION, cached, session, thread]
    assert found(admin, "THREAD") == [thread]
    assert found(admin, "") == [CONVERSATION, cached, session, thread]
    assert found(admin, "nothing-like-it") == []
    assert len(admin.json("/status/conversations?limit=2")["conversations"]) == 2


def test_a_response_without_a_binding_is_found_in_the_ledger() -> None:
    admin = Admin()
    admin.world.completed([user("hi")], turn_events([text_item()], "resp_1"))
    admin.world.services.pool.bindings.forget(CONVERSATION)
    shown = admin.json("/status/conversations?q=resp_1")["conversations"]
    assert [(each["id"], each["account"]) for each in shown] == [("resp_1", "a")]


def forked() -> Admin:
    admin = Admin()
    root = admin.world.completed([user("hi")], turn_events([text_item()], "resp_1"))
    for name in ("resp_2", "resp_3"):
        events = turn_events([text_item()], name, previous_response_id="resp_1")
        admin.world.completed([user("fork")], events, parent=root)
    return admin


@pytest.mark.parametrize("name", ["resp_1", "resp_3", CONVERSATION])
def test_the_chain_shows_forks_routes_and_sizes(name: str) -> None:
    shown = forked().json(f"/status/conversations/{name}/why")
    nodes = shown["chain"]["nodes"]
    assert [(node["id"], node["parent"], node["route"]) for node in nodes] == [
        ("resp_1", None, "root"),
        ("resp_2", "resp_1", "chained"),
        ("resp_3", "resp_1", "chained"),
    ]
    assert all(node["account"] == "a" and node["items"] == 2 for node in nodes)
    assert all(node["bytes"] > 50 and node["status"] == "completed" for node in nodes)
    assert shown["binding"]["id"] == CONVERSATION
    assert any("at home at a" in sentence for sentence in shown["explanation"])


def test_the_explanation_tells_of_rests_stand_ins_and_wishes() -> None:
    admin = forked()
    bindings = admin.world.services.pool.bindings
    admin.world.accounts["a"].health.refused(
        None, Fault(FaultKind.EXHAUSTED, "the limit is reached", None)
    )
    bindings.stand_in(connection_key("laptop", "c-1"), "b", "a is exhausted")
    bindings.move(CONVERSATION)
    told = " ".join(admin.json(f"/status/conversations/{CONVERSATION}/why")["explanation"])
    for part in ("a is exhausted: the limit is reached", "b serves it", "leave b"):
        assert part in told, f"expected '{part}' in: {told}"


def test_of_a_response_whose_transcript_is_gone_its_account_is_still_known() -> None:
    admin = Admin()
    admin.world.services.owners.note("laptop", "resp_old", "b")
    shown = admin.json("/status/conversations/resp_old/why")
    assert "b keeps this response." in shown["explanation"]
    assert (shown["binding"], shown["chain"]["nodes"], shown["turns"]) == (None, [], [])


def test_nothing_is_known_of_what_never_was() -> None:
    assert Admin().ask("/status/conversations/resp_x/why").status == 404


# --- the dry run -------------------------------------------------------------------------


def dry(admin: Admin, **body: Any) -> Any:
    answer = admin.post("/admin/route-dry-run", body, BEARER)
    assert answer.status == 200, answer.body
    return answer.json


def test_a_dry_run_names_the_account_of_a_known_thread() -> None:
    admin = Admin(TOKEN)
    bound(admin, "thread", "t-1", "b")
    shown = dry(admin, model="gpt-5.5", headers={"Thread-Id": "t-1"})
    assert (shown["account"], shown["rule"]) == ("b", "thread")
    assert shown["rejected"] == [{"account": "a", "why": "another was named"}]
    fresh = dry(admin, model="gpt-5.5", key="laptop")
    assert (fresh["account"], fresh["rule"], fresh["among"]) == (None, "round-robin", ["a", "b"])


def test_a_dry_run_follows_the_previous_response() -> None:
    admin = Admin(TOKEN)
    admin.world.completed([user("hi")], turn_events([text_item()], "resp_1"))
    shown = dry(admin, previous_response_id="resp_1")
    assert (shown["account"], shown["rule"]) == ("a", "holds the previous response")
    admin.world.accounts["a"].health.disable()
    shown = dry(admin, previous_response_id="resp_1")
    assert (shown["account"], shown["rejected"][0]["account"]) == ("b", "a")


@pytest.mark.parametrize(
    "body",
    [
        {"model": 5},
        {"key": "nobody"},
        {"headers": ["x"]},
        {"headers": {"x": 1}},
        {"previous_response_id": "resp_x"},
        {"wishes": "more"},
    ],
)
def test_a_turn_that_makes_no_sense_is_not_explained(body: Any) -> None:
    answer = Admin(TOKEN).post("/admin/route-dry-run", body, BEARER)
    assert answer.status == 400
    assert answer.json["error"].startswith(next(iter(body)))


@pytest.mark.parametrize("strategy", get_args(Strategy))
@pytest.mark.parametrize("loss", ["move", "fail"])
@pytest.mark.parametrize("paused", ["", "a", "b", "ab", "abc"])
@pytest.mark.parametrize("wish", ["none", "thread", "holder", "pin", "move"])
@pytest.mark.parametrize("loads", [(0, 0, 0), (2, 1, 0), (1, 1, 2)])
def test_an_explanation_is_what_the_pool_then_does(
    strategy: Any, loss: Any, paused: str, wish: str, loads: tuple[int, ...]
) -> None:
    world = World(3, routing=RoutingSettings(strategy=strategy, on_account_loss=loss))
    pool = world.services.pool
    key = AffinityKey("thread", "laptop", "t-1")
    if wish in ("thread", "move"):
        pool.bindings.bind(key, "a", "test")
    if wish == "move":
        pool.bindings.move(opaque_id(key))
    for name in paused:
        world.accounts[name].health.disable()
    for account, load in zip(pool.accounts, loads, strict=True):
        account.in_flight = load
    wanted = RouteRequest(
        "gpt-5.5",
        [key],
        holder="b" if wish == "holder" else None,
        pinned_to="a" if wish == "pin" else None,
    )
    told = pool.explain(wanted)
    assert tuple(account.in_flight for account in pool.accounts) == loads, "it took a place"
    done = pool.choose(wanted)
    if not isinstance(done, Selection):
        assert (told.account, told.among) == (None, ()), f"{told} was promised, nobody came"
        assert told.waits_for == done.waits_for
        return
    least_loaded = strategy == "least-in-flight" and len(set(loads)) == len(loads)
    if strategy == "fill-first" or least_loaded or not told.among:
        assert told.account == done.account.name, "it does not rotate"
    assert done.account.name in ((told.account,) if told.account else told.among)
    assert done.rule == told.rule
    others = {name: why for name, why in done.others.items() if name not in told.among}
    assert others == told.rejected
