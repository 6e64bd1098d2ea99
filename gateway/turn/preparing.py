"""The request of one attempt: a turn in the words of one account, and what they could spare."""

from __future__ import annotations

from collections.abc import Collection

from gateway.conversations.context import ContextPlan
from gateway.protocol.concessions import Concession, ConcessionKind, Sent, sent_by_id
from gateway.protocol.dialect import Dialect
from gateway.protocol.items import read_item
from gateway.protocol.request import TurnRequest
from gateway.protocol.upstream_request import (
    UpstreamTurn,
    added_include,
)
from gateway.routing.account import Account
from gateway.routing.affinity import derived_cache_key
from gateway.turn.context import TurnContext


def upstream_turn(
    request: TurnRequest,
    context: TurnContext,
    account: Account,
    plan: ContextPlan,
    dialect: Dialect,
    turn_state: str | None,
) -> UpstreamTurn:
    """What ``account`` is sent.

    :param turn_state: that account's own ``x-codex-turn-state``, or None.
    """
    return UpstreamTurn(
        request,
        plan.items,
        plan.previous_response_id,
        dialect,
        context.client_headers,
        account.request_headers,
        turn_state,
        context.affinity[-1] if context.affinity else None,
    )


def dialect_of(
    account: Account,
    model: str | None,
    context: TurnContext,
    concessions: Collection[Concession],
    in_one_piece: bool = False,
) -> Dialect:
    """What ``account`` wants otherwise: by its settings, and by what it refused.

    :param model: as the client calls it.
    :param concessions: what a request gives up for it.
    :param in_one_piece: whether the answer is asked for as one object, where the account has it.
    """
    settings = account.settings
    gives = {each.gives for each in concessions}
    return Dialect(
        settings.aliases.get(model or ""),
        frozenset(settings.strip),
        settings.store != "never" and ConcessionKind.STORAGE not in gives,
        settings.tools == "hoisted" or ConcessionKind.TOOL_ITEMS in gives,
        derived_cache_key(context.affinity) if settings.derive_cache_key else None,
        ConcessionKind.TEXT_INPUT in gives,
        ConcessionKind.SEALED_REASONING not in gives,
        ConcessionKind.ONE_OBJECT in gives or not (in_one_piece or ConcessionKind.STREAM in gives),
        frozenset(each.member for each in concessions if each.gives is ConcessionKind.MEMBER),
        ConcessionKind.STORED_ITEMS not in gives,
    )


def sent_with(request: TurnRequest, plan: ContextPlan, dialect: Dialect) -> Sent:
    """What of a turn's request could be given up, should it be refused."""
    items = request.items if plan.items is None else tuple(map(read_item, plan.items))
    return Sent(
        request.members,
        added_include(request, dialect) is not None,
        request.store and dialect.stores,
        dialect.streams,
        sent_by_id(items),
        plan.items is None and request.has_text_input and not dialect.takes_only_lists,
        not dialect.hoists_tools and any(item.type == "additional_tools" for item in items),
        any(item.sealed for item in items),
    )
