"""What stands by its id alone goes only where that is kept (protocol.md §8.3.3, §8.3.4)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.conftest import Stage
from tests.conformance.test_concessions import DOORS, Turns
from tests.support.events import (
    Json,
    call_item,
    call_output,
    error_body,
    reasoning_item,
    text_item,
    user,
)
from tests.support.gateway import account
from tests.support.upstream import Exchange, Upstream

pytestmark = pytest.mark.conformance

LIMITED = error_body("rate_limit_exceeded", "Rate limit reached.", kind="rate_limit_error")


def reference(item: Json) -> Json:
    return {"type": "item_reference", "id": item["id"]}


class Keeping:
    """Scripts of one upstream that finds an item by its id only if it made and kept it.

    :param makes: the items of each answer in turn; then one of text.
    :param keeps: whether it keeps any.
    """

    def __init__(self, *makes: list[Json], keeps: bool = True) -> None:
        self.left = list(makes)
        self.keeps = keeps
        self.known: set[str] = set()
        self.limited = False

    def __call__(self, exchange: Exchange) -> None:
        lost = self.lost(exchange.request.body)
        if self.limited:
            exchange.json(429, LIMITED, {"retry-after": "60"})
        elif lost is not None:
            exchange.json(404, error_body(None, f"Item with id '{lost}' not found.", param="input"))
        else:
            items = self.left.pop(0) if self.left else [text_item()]
            if self.keeps and exchange.request.body.get("store", True):
                self.known.update(item["id"] for item in items)
            exchange.answer(items)

    def lost(self, body: Json) -> str | None:
        for item in body["input"]:
            bare = item.get("type") == "reasoning" and not item.get("encrypted_content")
            if (bare or item.get("type") == "item_reference") and item["id"] not in self.known:
                return str(item["id"])
        return None


THOUGHT, CALL = reasoning_item(None), call_item("call_1")
OUTPUT = call_output("call_1")
#: What the second step of a tool loop looks like: full, or by reference.
FULL = [user("a"), THOUGHT, CALL, OUTPUT]
REFERRED = [user("a"), reference(THOUGHT), reference(CALL), OUTPUT]
WHOLE = [user("a"), CALL, OUTPUT]


def settled(stage: Stage, *accounts: Any) -> Any:
    return stage.gateway(*accounts, routing={"strategy": "fill-first"})


@DOORS
@pytest.mark.parametrize("second", [FULL, REFERRED], ids=["full", "referred"])
def test_10_87_items_of_a_limited_account_move_in_full(
    stage: Stage, door: str, second: list[Json]
) -> None:
    scripts = [Keeping([THOUGHT, CALL]), Keeping()]
    upstreams = [stage.upstream(script) for script in scripts]
    gateway = settled(stage, *(account(f"a{n}", each) for n, each in enumerate(upstreams)))
    turns = Turns(gateway, door)
    turns.completes(input=[user("a")])
    scripts[0].limited = True
    turns.completes(input=second)
    assert [request.input for request in upstreams[1].requests] == [WHOLE]


@DOORS
@pytest.mark.parametrize("second", [FULL, REFERRED], ids=["full", "referred"])
def test_10_87_items_that_stay_at_home_go_as_they_came(
    stage: Stage, door: str, second: list[Json]
) -> None:
    upstream = stage.upstream(Keeping([THOUGHT, CALL]))
    turns = Turns(settled(stage, account("solo", upstream)), door)
    turns.completes(input=[user("a")])
    turns.completes(input=second)
    assert [request.input for request in upstream.requests] == [[user("a")], second]


@DOORS
@pytest.mark.parametrize("second", [FULL, REFERRED], ids=["full", "referred"])
def test_10_87_an_account_that_keeps_nothing_gets_every_item_in_full(
    stage: Stage, door: str, second: list[Json]
) -> None:
    upstream = stage.upstream(Keeping([THOUGHT, CALL], [THOUGHT, CALL], keeps=False))
    turns = Turns(settled(stage, account("solo", upstream)), door)
    turns.completes(input=[user("a")])
    turns.completes(input=second)
    sent = [request.input for request in upstream.requests]
    assert sent == [[user("a")], second, WHOLE], "it is tried once, unseen"
    turns.completes(input=[*second, CALL, OUTPUT])
    assert len(upstream.requests) == 4, "and learned"


def test_10_87_sealed_reasoning_comes_back_from_where_nothing_is_stored(stage: Stage) -> None:
    sealed = {**THOUGHT, "encrypted_content": "gAAA"}
    upstream = stage.upstream(Keeping([sealed, CALL], keeps=False))
    turns = Turns(settled(stage, account("solo", upstream, store="never")), "json")
    turns.completes(input=[user("a")])
    for second in (FULL, REFERRED):
        turns.completes(input=second)
        assert upstream.requests[-1].input == [user("a"), sealed, CALL, OUTPUT]
    assert len(upstream.requests) == 3


def test_10_87_no_key_refers_to_what_another_one_got(stage: Stage) -> None:
    upstreams: list[Upstream] = [stage.upstream(Keeping([CALL])), stage.upstream(Keeping())]
    keys = [{"name": name, "key": f"key-{name}"} for name in ("laptop", "desk")]
    gateway = stage.gateway(
        *(account(f"a{n}", each) for n, each in enumerate(upstreams)),
        routing={"strategy": "fill-first"},
        keys=keys,
    )
    Turns(gateway, "json").completes(input=[user("a")])
    upstreams[0].script = lambda exchange: exchange.json(429, LIMITED, {"retry-after": "60"})
    Turns(gateway, "json", "key-desk").completes(input=[user("b"), reference(CALL), user("c")])
    assert [each.input for each in upstreams[1].requests] == [[user("b"), user("c")]]
