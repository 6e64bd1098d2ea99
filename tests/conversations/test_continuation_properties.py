"""Whatever the conversation, an account gets all of it once, and nothing it may not read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from gateway.conversations.context import (
    ContextPlan,
    ContextRoute,
    TargetAccount,
    chain_plan,
    chain_point,
    replay_plan,
)
from gateway.conversations.store import ResponseRecord, Transcript
from gateway.protocol.items import Item, read_item, with_issuers

ACCOUNTS = ("a", "b")
numbers = itertools.count()

MESSAGE, SEALED, BARE = "message", "sealed", "bare"
KINDS = st.sampled_from([MESSAGE, MESSAGE, SEALED, BARE])


def made(kind: str, issuer: str | None) -> Item:
    """An item that no other one repeats."""
    name = next(numbers)
    if kind == MESSAGE:
        return read_item(json.dumps({"type": "message", "content": f"{name}"}).encode())
    members = {"type": "reasoning", "id": f"rs_{name}"}
    if kind == SEALED:
        members["encrypted_content"] = f"g{name}"
    return with_issuers((read_item(json.dumps(members).encode()),), lambda _: issuer)[0]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Transcript | None, list[Item]]:
    """A path of responses, some made by the gateway, some interrupted; and the new input."""
    parent: Transcript | None = None
    for number in range(draw(st.integers(0, 5))):
        account = draw(st.sampled_from([*ACCOUNTS, None]))
        inputs = [made(kind, None) for kind in draw(st.lists(KINDS, max_size=2))]
        outputs = [] if account is None else draw(st.lists(KINDS, max_size=3))
        record = ResponseRecord(
            tenant="laptop",
            id=f"resp_{number}",
            parent=None if parent is None else parent.record.key,
            input=tuple(inputs),
            output=tuple(made(kind, account) for kind in outputs),
            account=account,
            store=draw(st.booleans()),
            held_upstream=account is not None and draw(st.integers(0, 3)) > 0,
            model=None,
            created_at=0.0,
        )
        parent = Transcript(record, parent)
    issuers = st.sampled_from([*ACCOUNTS, None])
    new = [made(kind, draw(issuers)) for kind in draw(st.lists(KINDS, max_size=3))]
    return parent, new


def path_of(parent: Transcript | None) -> list[ResponseRecord]:
    return list(parent.ancestry())[::-1] if parent is not None else []


def sent_by(plan: ContextPlan, new: Sequence[Item]) -> list[bytes]:
    return [item.raw for item in new] if plan.items is None else plan.items


def must_travel(items: Sequence[Item]) -> list[bytes]:
    return [item.raw for item in items if item.type != "reasoning"]


def foreign_seals(items: Sequence[Item], account: str) -> set[bytes]:
    return {item.raw for item in items if item.encrypted and item.issuer not in (None, account)}


CONVERSATIONS = conversations()


@given(CONVERSATIONS)
def test_chained_the_account_knows_or_gets_the_whole_transcript(
    conversation: tuple[Transcript | None, list[Item]],
) -> None:
    parent, new = conversation
    anchor, after = chain_point(parent)
    if anchor is None or anchor.record.account is None:
        return
    plan = chain_plan(anchor, after, new, TargetAccount(anchor.record.account or ""))
    assert (plan.route, plan.previous_response_id) == (ContextRoute.CHAINED, anchor.record.id)
    known = [item for record in path_of(anchor) for item in record.items()]
    everything = [item for record in path_of(parent) for item in record.items()] + new
    sent = sent_by(plan, new)
    travelled = [item.raw for item in known] + sent
    order = {raw: place for place, raw in enumerate(item.raw for item in everything)}
    places = [order[raw] for raw in travelled]
    assert places == sorted(set(places)), "in order, and nothing twice"
    assert set(must_travel(everything)) <= set(travelled), "nothing is missing"
    assert not foreign_seals(everything, anchor.record.account) & set(sent)
    assert not {item.raw for item in known} & set(sent), "never both chained and replayed"


@given(CONVERSATIONS, st.sampled_from(ACCOUNTS), st.booleans(), st.booleans())
def test_replayed_the_account_gets_the_transcript_minus_what_may_not_travel(
    conversation: tuple[Transcript | None, list[Item]],
    account: str,
    store: bool,
    unsealed: bool,
) -> None:
    parent, new = conversation
    path = path_of(parent)
    plan = replay_plan(
        parent, new, TargetAccount(account, store=store, drops_encrypted=unsealed), "why"
    )
    assert plan.previous_response_id is None, "never both chained and replayed"
    held = any(record.held_upstream for record in path)
    assert plan.route is (ContextRoute.REPLAYED if held else ContextRoute.ROOT)
    assert plan.reason == ("why" if held else None)
    everything = [item for record in path for item in record.items()] + new
    sent = sent_by(plan, new)
    order = {item.raw: place for place, item in enumerate(everything)}
    places = [order[raw] for raw in sent]
    assert places == sorted(set(places)), "in order, and nothing twice"
    assert set(must_travel(everything)) <= set(sent), "nothing is missing"
    assert not foreign_seals(everything, account) & set(sent)
    by_raw = {item.raw: item for item in everything}
    reasoning = [by_raw[raw] for raw in sent if by_raw[raw].type == "reasoning"]
    assert store or all(item.encrypted for item in reasoning), "unstored reasoning needs its seal"
    assert not (unsealed and any(item.encrypted for item in reasoning))


@given(CONVERSATIONS, st.sampled_from(ACCOUNTS))
def test_reasoning_an_account_sealed_itself_is_replayed_to_it(
    conversation: tuple[Transcript | None, list[Item]], account: str
) -> None:
    parent, new = conversation
    sent = sent_by(replay_plan(parent, new, TargetAccount(account, store=False), None), new)
    for record in path_of(parent):
        for item in record.output:
            if item.encrypted and item.issuer == account:
                assert item.raw in sent, "what the account can read it gets"
