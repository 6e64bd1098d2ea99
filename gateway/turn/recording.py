"""What later turns need of a response: written down once it ended well (design law 3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from gateway.conversations.context import pin_of
from gateway.conversations.resent_history import without_resent_history
from gateway.conversations.store import ResponseRecord, Transcript
from gateway.protocol.items import read_item, with_issuers
from gateway.protocol.request import TurnRequest
from gateway.turn.context import TurnContext, TurnServices


def record_response(
    services: TurnServices,
    context: TurnContext,
    request: TurnRequest,
    response_id: str,
    raw_items: Sequence[bytes],
    account: str | None,
    held_upstream: bool,
) -> Transcript:
    """Put a response into the ledger, and its seals under its account's name.

    :param raw_items: the finished items as the client saw them, in ``output_index`` order.
    :param account: who made it, or None for the gateway itself.
    :param held_upstream: whether that account can know it by this id.
    """
    output = with_issuers(tuple(map(read_item, raw_items)), lambda _: account)
    if account is not None:
        for item in output:
            if item.sealed:
                services.issuers.note(item.raw, account)
    record = ResponseRecord(
        tenant=context.tenant,
        id=response_id,
        parent=None if context.parent is None else context.parent.record.key,
        input=tuple(without_resent_history(context.parent, request.items)),
        output=output,
        account=account,
        store=request.store,
        held_upstream=held_upstream,
        model=request.model,
        created_at=services.clock.seconds(),
        pinned_to=pin_of(
            context.parent,
            (*request.items, *output),
            partial(services.ledger.find_item, context.tenant),
        )
        or _holder_of_the_rest(context, account),
    )
    transcript = Transcript(record, context.parent)
    services.ledger.add(transcript)
    return transcript


def _holder_of_the_rest(context: TurnContext, account: str | None) -> str | None:
    """The one account that knows what came before, where the ledger does not."""
    return account if context.parent is not None and context.parent.record.foreign else None
