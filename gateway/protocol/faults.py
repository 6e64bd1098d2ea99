"""Whose fault a refusal or failure is: what must rest because of it (design law 13)."""

from __future__ import annotations

import enum
from typing import NamedTuple

from . import limits
from .errors import ApiError
from .refusals import (
    is_about_the_request,
    is_overload,
    refuses_credentials,
    refuses_model,
    refuses_spending,
    speaks_of_the_parent,
)

#: The code of what went wrong before the upstream was reached.
PROXY_ERROR = "egress_proxy_error"

#: A 429 of a request that is larger than the account's limit: waiting does not help it.
_TOO_LARGE = "Request too large"

#: How ChatGPT's limit for everything is named; the others are for single models.
_WHOLE_ACCOUNT = "codex"

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
    """The account, for this model: it does not offer it."""

    UNAUTHORIZED = "unauthorized"
    """The account: its credentials are refused."""

    SERVICE = "service"
    """The service behind the account, once it happens often."""

    PROXY = "proxy"
    """The way out, not the account."""


class Fault(NamedTuple):
    """A refusal or failure, attributed.

    :ivar kind: what it belongs to.
    :ivar why: for the operator: status, code and message.
    :ivar retry_at: unix seconds from which the upstream is ready again by its own word.
    """

    kind: FaultKind
    why: str
    retry_at: float | None = None


def attribute(error: ApiError, now: float) -> Fault:
    """Say whose fault ``error`` is (protocol.md §5.2-§5.4).

    :param error: as the upstream or the connection to it gave it, not as clients hear it.
    :param now: unix seconds.
    """
    kind = _kind(error)
    why = " ".join(str(error).split())
    if len(why) > _MAX_WHY:
        why = why[: _MAX_WHY - 1] + "…"
    if kind in (FaultKind.REQUEST, FaultKind.PROXY, FaultKind.UNAUTHORIZED):
        return Fault(kind, why)
    return Fault(kind, why, limits.retry_at(error.hints, error.details, error.message, now))


def _kind(error: ApiError) -> FaultKind:
    if error.code == PROXY_ERROR:
        return FaultKind.PROXY
    if is_about_the_request(error):
        return FaultKind.REQUEST
    if refuses_spending(error):
        active = limits.active_limit(error.hints)
        whole = active is None or active == _WHOLE_ACCOUNT
        return FaultKind.EXHAUSTED if whole else FaultKind.RATE_LIMITED
    if refuses_model(error):
        return FaultKind.MODEL_REFUSED
    if refuses_credentials(error):
        return FaultKind.UNAUTHORIZED
    if is_overload(error):
        return FaultKind.SERVICE
    if error.status == 429:
        too_large = error.message.startswith(_TOO_LARGE)
        return FaultKind.REQUEST if too_large else FaultKind.RATE_LIMITED
    if error.status >= 500 or error.status == 408:
        return FaultKind.SERVICE
    if error.status in (403, 404) and not speaks_of_the_parent(error):
        return FaultKind.MODEL_REFUSED
    return FaultKind.REQUEST
