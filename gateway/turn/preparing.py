"""The request of one attempt: a turn in the words of one account."""

from __future__ import annotations

from ..accounts.account import Account
from ..accounts.affinity import derived_cache_key
from ..ledger.continuation import Plan
from ..protocol.dialect import Dialect
from ..protocol.request import TurnRequest
from ..protocol.upstream_request import UpstreamRequest, build_body, build_headers
from .environment import TurnContext


def upstream_request(
    request: TurnRequest,
    context: TurnContext,
    account: Account,
    plan: Plan,
    turn_state: str | None,
) -> UpstreamRequest:
    """What ``account`` is sent.

    :param turn_state: that account's own ``x-codex-turn-state``, or None.
    """
    settings = account.settings
    dialect = Dialect(
        settings.aliases.get(request.model or ""),
        frozenset(settings.strip),
        settings.store != "never",
        settings.tools == "hoisted",
        derived_cache_key(context.affinity) if settings.derive_cache_key else None,
    )
    return UpstreamRequest(
        build_headers(request, context.client_headers, account.request_headers, turn_state),
        build_body(request, plan.items, plan.previous_response_id, dialect),
    )
