"""What an account refuses, and a request can do without, is given up once, unseen, and learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.config.presets import PRESETS
from gateway.protocol.concessions import may_be_left_out
from gateway.protocol.error_parsing import from_http
from gateway.protocol.errors import ApiError
from gateway.routing.account import Account
from tests.support.events import (
    Json,
    call_item,
    call_output,
    new_id,
    reasoning_item,
    response_object,
    text_item,
    turn_events,
    user,
)
from tests.turn.fakes import FakeExchange, World

SEALS = "reasoning.encrypted_content"
DAY = 86_400

Refuses = Callable[[Json], "ApiError | None"]


def says(message: str, status: int = 400, **about: Any) -> ApiError:
    return ApiError(status, "invalid_request_error", message, **about)


def detail(text: str) -> ApiError:
    return from_http(400, {}, b'{"detail":"%b"}' % text.encode())


def strict(*rules: Refuses, items: list[Json] | None = None) -> Callable[[FakeExchange], None]:
    """An upstream that refuses by the first rule that has a refusal."""

    def answer(exchange: FakeExchange) -> None:
        for rule in rules:
            refusal = rule(exchange.body)
            if refusal is not None:
                exchange.ends(refusal)
                return
        made = items or [text_item()]
        previous = exchange.body.get("previous_response_id")
        exchange.sends(*turn_events(made, new_id("resp"), previous_response_id=previous))

    return answer


def without(name: str) -> Refuses:
    error = says(f"Unsupported parameter: '{name}'", param=name, code="unsupported_parameter")
    return lambda body: error if name in body else None


def no_seals(body: Json) -> ApiError | None:
    asked = SEALS in (body.get("include") or [])
    return says("Encrypted content is not supported with this model.") if asked else None


def no_storage(body: Json) -> ApiError | None:
    return None if body.get("store") is False else detail("Store must be set to false")


def only_lists(body: Json) -> ApiError | None:
    return None if isinstance(body["input"], list) else detail("Input must be a list")


def no_stream(body: Json) -> ApiError | None:
    text = "Your organization must be verified to stream this model."
    return says(text, param="stream") if body["stream"] else None


def keeps_nothing(body: Json) -> ApiError | None:
    for item in body["input"]:
        bare = item.get("type") == "reasoning" and not item.get("encrypted_content")
        if bare or item.get("type") == "item_reference":
            return says(f"Item with id '{item['id']}' not found. Items are not persisted.", 404)
    return None


def no_tool_items(body: Json) -> ApiError | None:
    if any(item.get("type") == "additional_tools" for item in body["input"]):
        return says("data did not match any variant of untagged enum ModelInput", 422)
    return None


def ends(world: World, items: Any, **members: Any) -> Json:
    """Run one turn; its last event."""
    turn = world.turn(items, **members)
    turn.start()
    assert world.sink.ended == 1
    world.check_rest()
    return world.sink.last


def sent(world: World, name: str = "a") -> list[Json]:
    return [exchange.body for exchange in world.exchanges(name)]


TOOLS = {"type": "additional_tools", "tools": [{"type": "function", "name": "f"}]}

LESSONS: list[Any] = [
    (no_seals, {"store": False}, "include without reasoning.encrypted_content"),
    (no_storage, {}, "store: false"),
    (only_lists, {"items": "hi"}, "input as a list"),
    (no_stream, {}, "stream: false"),
    (keeps_nothing, {"items": [user("a"), reasoning_item(None)]}, "items in full, none by its id"),
    (no_tool_items, {"items": [TOOLS, user("a")]}, "tools at the top level, not as items"),
    (without("client_metadata"), {"client_metadata": {"a": "b"}}, "without client_metadata"),
    (without("temperature"), {"temperature": 1}, "without temperature"),
    (without("truncation"), {"truncation": None}, "without truncation"),
]


@pytest.mark.parametrize(
    ("rule", "members", "lesson"),
    LESSONS,
    ids=lambda each: getattr(each, "__name__", str(each)[:30]),
)
def test_a_lesson_costs_one_unseen_request(rule: Refuses, members: Json, lesson: str) -> None:
    world = World()
    world.upstreams["a"].answer = strict(rule)
    for _ in range(3):
        about = {"items": [user("hi")], **members}
        assert ends(world, **about)["type"] == "response.completed"
        assert world.sink.types.count("response.created") == 1, "the trial is not seen"
    bodies = sent(world)
    assert [rule(body) is None for body in bodies] == [False, True, True, True]
    account = world.accounts["a"]
    assert [each["what"] for each in account.learned.shown()] == [lesson]
    assert account.failures == 0, "it is not the account's fault"
    assert account.unavailable("gpt-5.5") is None


@pytest.mark.parametrize(
    ("rule", "members", "lesson"),
    LESSONS,
    ids=lambda each: getattr(each, "__name__", str(each)[:30]),
)
def test_a_lesson_is_doubted_after_a_day(rule: Refuses, members: Json, lesson: str) -> None:
    world = World()
    world.upstreams["a"].answer = strict(rule)
    about = {"items": [user("hi")], **members}
    ends(world, **about)
    world.clock.advance(DAY)
    assert world.accounts["a"].learned.shown() == []
    world.upstreams["a"].answer = strict()
    ends(world, **about)
    assert rule(sent(world)[-1]) is not None, "it is tried as it was asked for"


def test_several_lessons_may_be_learned_in_one_turn() -> None:
    world = World()
    names = ("metadata", "user", "service_tier", "safety_identifier")
    rules = (*map(without, names), only_lists, no_storage, no_seals)
    world.upstreams["a"].answer = strict(*rules)
    members = dict.fromkeys(names, "x")
    assert ends(world, "hi", **members)["type"] == "response.completed"
    assert len(sent(world)) == 8, "one for each lesson; a list comes with storing nothing"
    assert ends(world, "hi", **members)["type"] == "response.completed"
    assert len(sent(world)) == 9


def test_what_the_client_asked_for_is_not_taken_back() -> None:
    world = World()
    world.upstreams["a"].answer = strict(no_seals)
    last = ends(world, [user("hi")], store=False, include=[SEALS])
    assert last["error"]["message"] == "Encrypted content is not supported with this model."
    assert len(sent(world)) == 1
    assert ends(world, [user("hi")], store=False)["type"] == "response.completed"
    assert ends(world, [user("hi")], store=False, include=[SEALS])["type"] == "error"
    assert len(sent(world)) == 4, "what was learned changes nothing of it"


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 0.2), ("max_output_tokens", 5), ("x_new", None)]
)
def test_what_changes_the_answer_is_refused_to_the_client(name: str, value: Any) -> None:
    world = World(accounts=2)
    for upstream in world.upstreams.values():
        upstream.answer = strict(without(name))
    assert ends(world, [user("hi")], **{name: value})["error"]["param"] == name
    assert len(sent(world, "a")) + len(sent(world, "b")) == 1
    assert world.accounts["a"].learned.shown() == world.accounts["b"].learned.shown() == []


def test_a_default_that_is_refused_says_nothing_of_other_values() -> None:
    world = World()
    world.upstreams["a"].answer = strict(without("temperature"))
    assert ends(world, [user("hi")], temperature=1.0)["type"] == "response.completed"
    assert ends(world, [user("hi")], temperature=0.5)["type"] == "error"
    assert [body.get("temperature") for body in sent(world)] == [1.0, None, 0.5]


def test_nothing_is_learned_from_a_request_that_was_refused_all_the_same() -> None:
    world = World()
    wrong = says("Unsupported parameter: 'user'", param="user")
    world.upstreams["a"].answer = strict(lambda body: wrong)
    last = ends(world, [user("hi")], user="u")
    assert (last["error"]["message"], len(sent(world))) == ("Unsupported parameter: 'user'", 2)
    assert world.accounts["a"].learned.shown() == []


def test_what_only_goes_not_together_with_something_else_teaches_nothing() -> None:
    world = World()

    def no_stream_with_tools(body: Json) -> ApiError | None:
        both = body["stream"] and "tools" in body
        return says("Streaming is not supported when tools are given.") if both else None

    world.upstreams["a"].answer = strict(no_stream_with_tools)
    tools = {"tools": [{"type": "function", "name": "f"}]}
    assert ends(world, [user("hi")], **tools)["type"] == "response.completed"
    ends(world, [user("hi")])
    assert [body["stream"] for body in sent(world)] == [True, False, True]


def test_a_refusal_by_an_event_teaches_as_well() -> None:
    world = World()

    def answer(exchange: FakeExchange) -> None:
        if "user" not in exchange.body:
            exchange.sends(*turn_events([text_item()], "resp_1"))
            return
        error = {"code": "unsupported_parameter", "message": "Unsupported parameter: user"}
        failed = response_object("resp_0", status="failed", error=error)
        exchange.sends({"type": "response.created", "response": response_object("resp_0")})
        exchange.sends({"type": "response.failed", "response": failed})

    world.upstreams["a"].answer = answer
    assert ends(world, [user("hi")], user="u")["type"] == "response.completed"
    assert [each["what"] for each in world.accounts["a"].learned.shown()] == ["without user"]


def test_what_a_model_refuses_another_may_take() -> None:
    world = World()
    world.upstreams["a"].answer = strict(no_seals)
    ends(world, [user("hi")], store=False, model="gpt-4o")
    ends(world, [user("hi")], store=False, model="o9")
    asked = [SEALS in (body.get("include") or []) for body in sent(world)]
    assert asked == [True, False, True, False]


def test_accounts_learn_each_for_themselves() -> None:
    world = World(accounts=2)
    for upstream in world.upstreams.values():
        upstream.answer = strict(no_storage)
    ends(world, [user("hi")])
    world.accounts["a"].health.disable()
    ends(world, [user("hi")])
    assert [len(sent(world, name)) for name in "ab"] == [2, 2]


def test_where_nothing_may_be_stored_turns_are_replayed_with_their_seals() -> None:
    world = World()
    thought, call = reasoning_item("gAAA"), call_item("call_1")

    def refuses_ids(body: Json) -> ApiError | None:
        chained = body.get("previous_response_id") is not None
        return detail("Unsupported parameter: previous_response_id") if chained else None

    world.upstreams["a"].answer = strict(no_storage, refuses_ids, items=[thought, call])
    turn = world.turn([user("go")])
    turn.start()
    first = turn.recorded
    assert first is not None
    assert not first.record.held_upstream, "nobody is asked to continue it"
    ends(world, [call_output("call_1")], parent=first)
    last = sent(world)[-1]
    assert len(sent(world)) == 3
    assert (last["store"], last["include"]) == (False, [SEALS])
    assert last["input"] == [user("go"), thought, call, call_output("call_1")]
    assert world.services.owners.owner_of("laptop", first.record.id) is None, "it is kept nowhere"


def test_a_chained_turn_whose_own_items_are_unknown_stays_chained() -> None:
    world = World()
    first = world.completed([user("a")], turn_events([text_item()], "resp_1"))
    world.upstreams["a"].answer = strict(keeps_nothing)
    reference = {"type": "item_reference", "id": "msg_of_elsewhere"}
    ends(world, [reference, user("b")], parent=first)
    chained = [body.get("previous_response_id") for body in sent(world)[1:]]
    assert chained == ["resp_1", "resp_1"]
    assert sent(world)[-1]["input"] == [user("b")]


def lessons(account: Account) -> list[tuple[str, str | None]]:
    return [(each["what"], each["key"]) for each in account.learned.shown()]


IN_FULL = "items in full, none by its id"


def test_an_account_that_lost_what_it_made_keeps_nothing_for_anybody() -> None:
    world = World()
    thought = reasoning_item(None)
    world.completed([user("a")], turn_events([thought], "resp_1"))
    world.upstreams["a"].answer = strict(keeps_nothing)
    ends(world, [user("a"), thought, user("b")])
    assert lessons(world.accounts["a"]) == [(IN_FULL, None)]


def test_where_no_item_is_kept_reasoning_is_asked_for_sealed() -> None:
    world = World()
    thought = reasoning_item(None)
    world.completed([user("a")], turn_events([thought], "resp_1"))
    sealed = reasoning_item("gAAA")
    world.upstreams["a"].answer = strict(keeps_nothing, items=[sealed])
    ends(world, [user("a"), thought, user("b")])
    assert (sent(world)[-1].get("store"), sent(world)[-1]["include"]) == (None, [SEALS])
    bare = {**sealed, "encrypted_content": None}
    ends(world, [user("a"), thought, user("b"), bare, user("c")])
    assert sent(world)[-1]["input"] == [user("a"), user("b"), sealed, user("c")]


def test_items_of_elsewhere_teach_for_their_tenant_alone() -> None:
    world = World()
    world.upstreams["a"].answer = strict(keeps_nothing)
    ends(world, [user("a"), reasoning_item(None)])
    assert lessons(world.accounts["a"]) == [(IN_FULL, "laptop")]


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (says("Unknown parameter: 'prompt_cache_options.made_up'."), "laptop"),
        (
            says("No.", param="prompt_cache_options[0].x", code="unknown_parameter"),
            "laptop",
        ),
        (says("Unsupported value: 'prompt_cache_options' does not support that."), "laptop"),
        (says("Unknown parameter: 'prompt_cache_options'. Leave it out."), None),
    ],
)
def test_what_a_tenant_makes_up_teaches_for_that_tenant_alone(
    error: ApiError, key: str | None
) -> None:
    world = World()
    world.upstreams["a"].answer = strict(
        lambda body: error if "prompt_cache_options" in body else None
    )
    assert ends(world, [user("a")], prompt_cache_options=[{}])["type"] == "response.completed"
    assert lessons(world.accounts["a"]) == [("without prompt_cache_options", key)]
    assert ends(world, [user("b")], prompt_cache_options=[{}])["type"] == "response.completed"
    assert len(sent(world)) == 3, "once learned it is not tried again"


def test_an_account_that_keeps_responses_learns_nothing_from_items_of_elsewhere() -> None:
    world = World()
    first = world.completed([user("a")], turn_events([text_item()], "resp_1"))
    world.upstreams["a"].answer = strict(keeps_nothing)
    ends(world, [user("b")], parent=first)
    ends(world, [user("a"), reasoning_item(None)])
    assert lessons(world.accounts["a"]) == []


def test_an_account_that_continues_a_response_is_believed_to_keep_items_again() -> None:
    world = World()
    world.upstreams["a"].answer = strict(keeps_nothing)
    ends(world, [user("a"), reasoning_item(None)])
    world.upstreams["a"].answer = None
    first = world.completed([user("a")], turn_events([text_item()], "resp_1"))
    world.upstreams["a"].answer = strict()
    ends(world, [user("b")], parent=first)
    assert lessons(world.accounts["a"]) == []


def test_a_conversation_stays_where_nothing_is_stored() -> None:
    """Its clients name a response, and nothing else; each comes on a connection of its own."""
    world = World(accounts=3)
    for upstream in world.upstreams.values():
        upstream.answer = strict(no_storage, items=[reasoning_item("gAAA"), call_item("call_1")])
    turn = world.turn([user("a")], connection="c-1")
    turn.start()
    for number in range(2, 4):
        assert turn.recorded is not None, world.sink.last
        turn = world.turn([call_output("call_1")], turn.recorded, connection=f"c-{number}")
        turn.start()
        (attempt,) = turn.record.attempts
        assert attempt.rule == "made the history of the request"
    used = [name for name, upstream in world.upstreams.items() if upstream.exchanges]
    assert used == [turn.record.account]


def spares(preset: str) -> list[str]:
    """What the preset strips, and any value of which may go."""
    return [name for name in PRESETS[preset].get("strip", ()) if may_be_left_out(name, b'"x"')]


def as_strict_as(preset: str) -> Callable[[FakeExchange], None]:
    """A service that refuses, one by one, what the preset says that it does not take."""
    about = PRESETS[preset]
    rules = [without(name) for name in about.get("strip", ())]
    if about.get("store") == "never":
        rules += [only_lists, no_storage, keeps_nothing]
    if about.get("tools") == "hoisted":
        rules.append(no_tool_items)
    if about.get("continuity") == "replay":
        rules.append(without("previous_response_id"))
    return strict(*rules, items=[reasoning_item("gAAA"), call_item("call_1")])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_plain_account_works_with_every_service_that_a_preset_describes(preset: str) -> None:
    world = World()
    world.upstreams["a"].answer = as_strict_as(preset)
    members = {**dict.fromkeys(spares(preset), "x"), "temperature": 1, "truncation": None}
    turn = world.turn([TOOLS, user("a")], **members)
    turn.start()
    assert turn.recorded is not None, world.sink.last
    assert world.sink.types.count("response.created") == 1
    first = turn.recorded
    for _ in range(2):
        before = len(sent(world))
        last = ends(world, [call_output("call_1")], parent=first, **members)
        assert last["type"] == "response.completed"
    assert len(sent(world)) == before + 1, "everything is learned by the second turn"
    account = world.accounts["a"]
    assert (account.failures, account.unavailable("gpt-5.5")) == (0, None)
