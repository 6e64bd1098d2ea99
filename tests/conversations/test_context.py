"""Chain or replay: what an account is sent, whatever the conversation looks like (§8)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.conversations.context import (
    ContextPlan,
    ContextRoute,
    TargetAccount,
    chain_plan,
    chain_point,
    maker_of,
    pin_of,
    replay_plan,
)
from gateway.conversations.store import FoundItem, ResponseRecord, Transcript
from gateway.protocol.items import Item, read_item, with_issuers


def item(issuer: str | None = None, **members: Any) -> Item:
    return with_issuers((read_item(json.dumps(members).encode()),), lambda _: issuer)[0]


def user(text: str) -> Item:
    return item(type="message", role="user", content=text)


def sealed(name: str, issuer: str | None) -> Item:
    return item(issuer, type="reasoning", id=name, encrypted_content="g" + name)


def bare(name: str) -> Item:
    return item(type="reasoning", id=name, summary=[])


CALL = item(type="function_call", id="fc_1", call_id="call_1", arguments="{}")
OUTPUT = item(type="function_call_output", call_id="call_1", output="ok")


def record(
    name: str,
    parent: Transcript | None = None,
    input: tuple[Item, ...] = (),
    output: tuple[Item, ...] = (),
    account: str | None = "a",
    store: bool = False,
    held_upstream: bool = True,
    pinned_to: str | None = None,
) -> Transcript:
    made = ResponseRecord(
        "laptop",
        name,
        None if parent is None else parent.record.key,
        input,
        output,
        account,
        store,
        held_upstream,
        "gpt-5",
        0.0,
        pinned_to,
    )
    return Transcript(made, parent)


def raws(*items: Item) -> list[bytes]:
    return [each.raw for each in items]


PREWARM = record("resp_prewarm", input=(user("rules"),), account=None, held_upstream=False)


def test_the_anchor_is_the_nearest_response_an_upstream_knows() -> None:
    anchor = record("resp_1", PREWARM)
    interrupted = record("resp_2", anchor, held_upstream=False)
    warmed = record("resp_3", interrupted, account=None, held_upstream=False)
    assert chain_point(None) == (None, [])
    assert chain_point(PREWARM) == (None, [PREWARM])
    assert chain_point(anchor) == (anchor, [])
    assert chain_point(warmed) == (anchor, [interrupted, warmed])


def test_a_chained_turn_sends_the_clients_own_bytes() -> None:
    plan = chain_plan(record("resp_1"), [], [OUTPUT], TargetAccount("a"))
    assert plan == ContextPlan(ContextRoute.CHAINED, "resp_1", None, None)


def test_a_chained_turn_brings_along_what_only_the_gateway_knows() -> None:
    anchor = record("resp_1")
    after = [record("resp_2", anchor, (user("a"),), (CALL,), held_upstream=False)]
    plan = chain_plan(anchor, after, [OUTPUT], TargetAccount("a"))
    assert (plan.previous_response_id, plan.items) == ("resp_1", raws(user("a"), CALL, OUTPUT))


def test_reasoning_of_an_interrupted_answer_does_not_reach_another_account() -> None:
    anchor = record("resp_1", account="a")
    after = [
        record("resp_2", anchor, (), (sealed("rs_1", "b"), bare("rs_2"), CALL), "b", True, False)
    ]
    assert chain_plan(anchor, after, [OUTPUT], TargetAccount("a")).items == raws(CALL, OUTPUT)


def test_a_chained_turn_brings_no_seal_of_another_account() -> None:
    plan = chain_plan(
        record("resp_1"), [], [sealed("rs_1", "b"), bare("rs_2"), user("go on")], TargetAccount("a")
    )
    assert plan.items == raws(bare("rs_2"), user("go on"))


def test_a_new_conversation_is_sent_as_the_client_wrote_it() -> None:
    assert replay_plan(
        None, [user("hi")], TargetAccount("a", store=False), "unused"
    ) == ContextPlan(ContextRoute.ROOT, None, None, None)


def test_a_prewarms_input_is_part_of_the_conversation() -> None:
    plan = replay_plan(PREWARM, [user("hi")], TargetAccount("a", store=False), "unused")
    assert plan == ContextPlan(ContextRoute.ROOT, None, raws(user("rules"), user("hi")), None)


def test_a_replay_is_the_transcript_from_the_root_on() -> None:
    first = record("resp_1", PREWARM, (user("1"),), (CALL,))
    second = record("resp_2", first, (OUTPUT,), (user("2"),))
    plan = replay_plan(second, [user("3")], TargetAccount("b", store=False), "why")
    items = raws(user("rules"), user("1"), CALL, OUTPUT, user("2"), user("3"))
    assert plan == ContextPlan(ContextRoute.REPLAYED, None, items, "why")


# --- reasoning -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("issuer", "account", "goes"),
    [("a", "a", True), ("a", "b", False), (None, "a", True), (None, "b", True)],
)
def test_sealed_reasoning_goes_to_its_issuer(issuer: str | None, account: str, goes: bool) -> None:
    reasoning = sealed("rs_1", issuer)
    parent = record("resp_1", output=(reasoning, CALL))
    plan = replay_plan(parent, [OUTPUT], TargetAccount(account, store=False), "why")
    assert plan.items == raws(*([reasoning] if goes else []), CALL, OUTPUT)


def test_a_new_conversation_leaves_foreign_seals_behind() -> None:
    plan = replay_plan(
        None, [sealed("rs_1", "b"), user("hi")], TargetAccount("a", store=False), None
    )
    assert (plan.route, plan.items) == (ContextRoute.ROOT, raws(user("hi")))


def test_refused_seals_are_all_left_out() -> None:
    parent = record("resp_1", output=(sealed("rs_1", "a"), CALL))
    plan = replay_plan(
        parent,
        [sealed("rs_2", None), OUTPUT],
        TargetAccount("a", store=False, drops_encrypted=True),
        "why",
    )
    assert plan.items == raws(CALL, OUTPUT)


@pytest.mark.parametrize(
    ("made_by", "stored", "held", "account", "store", "goes"),
    [
        ("a", True, True, "a", True, True),
        ("a", True, True, "a", False, False),
        ("a", False, True, "a", True, False),
        ("a", True, False, "a", True, False),
        ("a", True, True, "b", True, False),
    ],
)
def test_unsealed_reasoning_goes_only_where_it_was_stored(
    made_by: str, stored: bool, held: bool, account: str, store: bool, goes: bool
) -> None:
    made = (bare("rs_1"), CALL)
    parent = record("resp_1", output=made, account=made_by, store=stored, held_upstream=held)
    plan = replay_plan(parent, [OUTPUT], TargetAccount(account, store=store), "why")
    assert plan.items == raws(*([bare("rs_1")] if goes else []), CALL, OUTPUT)


def test_unsealed_reasoning_of_the_client_is_not_sent_where_it_is_unknown() -> None:
    parent = record("resp_1", input=(bare("rs_1"), user("1")), account="a", store=True)
    assert replay_plan(parent, [], TargetAccount("b"), "why").items == raws(user("1"))
    assert replay_plan(parent, [], TargetAccount("a"), "why").items == raws(bare("rs_1"), user("1"))


# --- pins ----------------------------------------------------------------------------


def test_what_cannot_be_dropped_pins_the_conversation() -> None:
    compaction = item("a", type="compaction", encrypted_content="g")
    unknown = item(None, type="compaction", encrypted_content="g")
    assert pin_of(None, [user("hi"), compaction]) == "a"
    assert pin_of(None, [sealed("rs_1", "a")]) is None
    assert pin_of(None, [unknown]) is None
    assert pin_of(record("resp_1", pinned_to="b"), [user("hi")]) == "b"
    assert pin_of(record("resp_1", pinned_to="b"), [compaction]) == "a"


# --- ids that are used again (§8.3.4-5) ----------------------------------------------


def test_a_replay_holds_calls_and_outputs_of_one_id_as_often_as_there_were() -> None:
    poll = item(type="function_call", call_id="functions.poll:0", arguments="{}")
    pending = item(type="function_call_output", call_id="functions.poll:0", output="pending")
    parent: Transcript | None = None
    said = (user("wait"),)
    for number in range(4):
        parent = record(f"resp_{number}", parent, said, (poll,))
        said = (pending,)
    plan = replay_plan(parent, said, TargetAccount("a", store=False), "why")
    assert plan.items == raws(user("wait"), *[poll, pending] * 4)


def test_what_is_carried_after_the_anchor_is_not_sent_twice() -> None:
    anchor = record("resp_1", None, (user("1"),), (user("2"),))
    after = [record("resp_2", anchor, (user("a"),), (CALL,), held_upstream=False)]
    plan = chain_plan(anchor, after, [user("a"), CALL, OUTPUT], TargetAccount("a"))
    assert plan.items == raws(user("a"), CALL, OUTPUT)


# --- what stands by its id (§8.3.3, §8.3.4) ------------------------------------------

SAID = item(type="message", id="msg_1", role="assistant", content="what was said")
THOUGHT, SEALED = bare("rs_1"), sealed("rs_2", "a")


def reference(item_id: str) -> Item:
    return item(type="item_reference", id=item_id)


def reader(
    account: str, *made: Item, by: str = "a", sent: bool = False, **about: Any
) -> TargetAccount:
    """One whose tenant's conversations hold what account ``by`` made, or what it was sent."""
    holder = record("resp_0", output=made, account=by, store=True)
    found = {each.id: FoundItem(each, holder.record, not sent) for each in made}
    return TargetAccount(account, find=found.get, **about)


def own(new: list[Item], to: TargetAccount) -> list[bytes]:
    items = replay_plan(None, new, to, None).items
    return raws(*new) if items is None else items


def test_a_reference_passes_where_its_item_is_kept() -> None:
    asked = [user("a"), reference("msg_1"), reference("rs_1"), THOUGHT]
    assert own(asked, reader("a", SAID, THOUGHT)) == raws(*asked)


def test_a_reference_is_filled_in_where_its_item_is_not_kept() -> None:
    asked = [user("a"), reference("msg_1"), user("b")]
    full = raws(user("a"), SAID, user("b"))
    assert own(asked, reader("b", SAID)) == full
    assert own(asked, reader("a", SAID, keeps=False)) == full
    assert own(asked, reader("a", SAID, sent=True)) == full, "it was sent under the client's id"


@pytest.mark.parametrize("by_id", [reference("rs_1"), THOUGHT])
def test_reasoning_that_is_not_sealed_stays_where_it_is_kept(by_id: Item) -> None:
    asked = [by_id, user("b")]
    assert own(asked, reader("b", THOUGHT)) == raws(user("b"))
    assert own(asked, reader("a", THOUGHT, keeps=False)) == raws(user("b"))


def test_what_is_kept_may_be_referred_to_in_a_turn_that_is_not() -> None:
    asked = [reference("rs_1"), THOUGHT, user("b")]
    assert own(asked, reader("a", THOUGHT, store=False)) == raws(reference("rs_1"), user("b"))


@pytest.mark.parametrize("by_id", [reference("rs_2"), bare("rs_2")])
def test_reasoning_gets_its_seal_back_for_its_issuer_alone(by_id: Item) -> None:
    asked = [by_id, user("b")]
    assert own(asked, reader("a", SEALED, keeps=False)) == raws(SEALED, user("b"))
    assert own(asked, reader("b", SEALED)) == raws(user("b"))
    assert own(asked, reader("a", SEALED, keeps=False, drops_encrypted=True)) == raws(user("b"))


def test_an_id_that_nobody_knows_goes_where_items_are_kept() -> None:
    asked = [reference("msg_9"), bare("rs_9"), user("b")]
    assert own(asked, TargetAccount("a")) == raws(*asked)
    assert own(asked, TargetAccount("b", first=False)) == raws(user("b")), (
        "it may be the first one's"
    )
    assert own(asked, TargetAccount("a", store=False)) == raws(asked[0], user("b"))
    assert own(asked, TargetAccount("a", keeps=False)) == raws(user("b"))


@pytest.mark.parametrize("by_id", [reference("rs_1"), THOUGHT])
def test_what_one_account_took_by_its_id_goes_to_no_other(by_id: Item) -> None:
    asked = [by_id, user("b")]
    assert own(asked, reader("a", by_id, sent=True)) == raws(*asked)
    assert own(asked, reader("b", by_id, sent=True)) == raws(user("b"))


def test_a_replay_fills_in_what_was_referred_to() -> None:
    parent = record("resp_1", None, (reference("msg_1"), user("1")), (CALL,), "a", True)
    to = reader("b", SAID)
    assert replay_plan(parent, [OUTPUT], to, "why").items == raws(SAID, user("1"), CALL, OUTPUT)
    unknown = TargetAccount("b")
    assert replay_plan(parent, [OUTPUT], unknown, "why").items == raws(user("1"), CALL, OUTPUT)


def test_a_chained_turn_fills_in_what_its_account_does_not_keep() -> None:
    asked = [reference("msg_1"), user("2")]
    plan = chain_plan(record("resp_1"), [], asked, reader("a", SAID, by="b"))
    assert plan.items == raws(SAID, user("2"))
    assert chain_plan(record("resp_1"), [], asked, reader("a", SAID)).items is None


def test_a_reference_to_what_is_sealed_pins_like_the_item_itself() -> None:
    compaction = item("a", type="compaction", id="cmp_1", encrypted_content="g")
    find = reader("a", compaction).find
    assert pin_of(None, [reference("cmp_1"), user("hi")], find) == "a"
    assert pin_of(None, [reference("cmp_2")], find) is None


def test_the_maker_of_a_history_is_that_of_its_latest_item_of_a_model() -> None:
    made = {"fc_1": "a", "fc_2": "b"}
    calls = {name: item(type="function_call", id=name) for name in ("fc_1", "fc_2", "fc_3")}

    def find(name: str) -> FoundItem | None:
        if name not in made:
            return None
        by = record("r", output=(calls[name],), account=made[name]).record
        return FoundItem(calls[name], by, True)

    assert maker_of([user("x"), calls["fc_1"], reference("fc_2"), user("y")], find) == "b"
    assert maker_of([calls["fc_2"], calls["fc_1"]], find) == "a"
    assert maker_of([calls["fc_1"], calls["fc_3"]], find) is None
    assert maker_of([user("x")], find) is None


def test_the_issuer_of_the_latest_encrypted_item_made_a_history_that_is_not_remembered() -> None:
    def find(name: str) -> FoundItem | None:
        return None

    items = [user("x"), sealed("rs_1", "a"), user("y"), sealed("rs_2", "b"), user("z")]
    assert maker_of(items, find) == "b"
    assert maker_of([user("x"), sealed("rs_1", None)], find) is None
