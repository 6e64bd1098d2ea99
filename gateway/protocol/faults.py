"""Whose fault a refusal or failure is: what must rest because of it (design law 13)."""

from __future__ import annotations

import enum
from collections.abc import Collection, Hashable
from typing import NamedTuple

from gateway.protocol import error_messages as wording
from gateway.protocol import rate_limits as limits
from gateway.protocol.error_classification import (
    is_about_the_request,
    is_overload,
    is_rate_limit,
    refuses_credentials,
    refuses_model,
    refuses_spending,
    speaks_of_the_parent,
)
from gateway.protocol.errors import GATEWAY_FAILED, PROXY_ERROR, ApiError

#: A 429 of a request that is larger than the account's limit: waiting does not help it.
_TOO_LARGE = "Request too large"

_MAX_WHY = 200


class FaultKind(enum.Enum):
    """What a fault belongs to, and so what rests."""

    REQUEST = "request"
    """Nothing: the request, or something that the account cannot help."""

    EXHAUSTED = "exhausted"
    """The account: its quota, credit or budget is used up."""

    RATE_LIMITED = "rate limited"
    """The account, for this model."""

    MODEL_REFUSED = "model refused"
    """The account, for this model: it says that it does not offer it."""

    UNCLEAR = "unclear"
    """Nobody, as far as it says.  Where another account serves the same request it is this
    account, for this model, once it happens often."""

    UNAUTHORIZED = "unauthorized"
    """The account: its credentials are refused."""

    SERVICE = "service"
    """The service behind the account, once it happens often, and not to one request alone."""

    PROXY = "proxy"
    """The way out, not the account."""


class Fault(NamedTuple):
    """A refusal or failure, attributed.

    :ivar kind: what it belongs to.
    :ivar why: for the operator: status, code and message.
    :ivar retry_at: unix seconds from which the upstream is ready again by its own word.
    :ivar request: what tells the request that met it from others; None when that is not known,
        and then it is like no other.
    """

    kind: FaultKind
    why: str
    retry_at: float | None = None
    request: Hashable | None = None


def attribute(
    error: ApiError,
    now: float,
    request: Hashable | None = None,
    models: Collection[str] = (),
) -> Fault:
    """Say whose fault ``error`` is (protocol.md §5.2-§5.4).

    :param error: as the upstream or the connection to it gave it, not as clients hear it.
    :param now: unix seconds.
    :param request: see :class:`Fault`.
    :param models: the names of the model that was asked for; none where that is not known.
    """
    kind = _kind(error)
    if kind is FaultKind.MODEL_REFUSED and models:
        named = wording.named_model(error.message)
        if named is not None and not any(named in each or each in named for each in models):
            kind = FaultKind.REQUEST  # a tool's model, say; it tells nothing of the turn's own
    why = " ".join(str(error).split())
    if len(why) > _MAX_WHY:
        why = why[: _MAX_WHY - 1] + "…"
    at: float | None = None
    if kind in (FaultKind.EXHAUSTED, FaultKind.RATE_LIMITED):
        at = limits.retry_at(error.hints, error.details, error.message, now)
    elif kind in (FaultKind.SERVICE, FaultKind.MODEL_REFUSED):
        at = limits.ready_at(error.hints, error.message, now)
    return Fault(kind, why, at, request)


def _kind(error: ApiError) -> FaultKind:
    if error.code == PROXY_ERROR:
        return FaultKind.PROXY
    if is_about_the_request(error) or error.code == GATEWAY_FAILED:
        return FaultKind.REQUEST
    if refuses_spending(error):
        for_model = limits.limits_single_model(error.hints)
        return FaultKind.RATE_LIMITED if for_model else FaultKind.EXHAUSTED
    if refuses_model(error):
        return FaultKind.MODEL_REFUSED
    if refuses_credentials(error):
        return FaultKind.UNAUTHORIZED
    if is_overload(error):
        return FaultKind.SERVICE
    if is_rate_limit(error):
        too_large = error.message.startswith(_TOO_LARGE)
        return FaultKind.REQUEST if too_large else FaultKind.RATE_LIMITED
    if error.status >= 500 or error.status in (408, 431):
        return FaultKind.SERVICE
    if error.status in (403, 404) and not speaks_of_the_parent(error):
        return FaultKind.UNCLEAR
    return FaultKind.REQUEST
