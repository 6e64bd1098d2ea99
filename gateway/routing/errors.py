"""The client's error when no account can serve its turn (protocol.md §5.2, §10.62, §10.63)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gateway.protocol.error_classification import (
    FaultKind,
    for_the_client,
    most_hopeful,
    refuses_model,
)
from gateway.protocol.errors import ApiError
from gateway.routing.health import AccountState, Unavailable
from gateway.routing.selection import KEPT, NoAccount

#: States that, for clients, last until the operator acts.
_OUT = frozenset({AccountState.DISABLED, AccountState.DRAINING, AccountState.UNAUTHORIZED})

#: How much of a model's name is repeated, in characters.
_SHOWN = 200


def pool_error(found: NoAccount, refusals: Sequence[ApiError], now: float) -> ApiError:
    """One error for the whole pool.

    :param found: why no account can serve; the router's answer.
    :param refusals: what accounts answered to this very turn, the latest last.
    :param now: unix seconds.
    """
    if not found.candidates:
        return _not_offered(found)
    unclear = all(reason.kind is FaultKind.UNCLEAR for reason in found.reasons)
    if refusals and (len(found.candidates) == 1 or unclear):
        return for_the_client(most_hopeful(refusals))
    if found.refuse_the_model:
        return _model_refused(found, refusals, now)
    working = [reason for reason in found.reasons if reason.state not in _OUT]
    unknown = [error for error in refusals if error.code == "previous_response_not_found"]
    if unknown and len(unknown) == len(refusals) and not working:
        return unknown[-1]
    # Candidates without a reason refused the turn, but do not cool down.
    all_explained = len(found.reasons) == len(found.candidates)
    if all_explained and working and all(each.state is AccountState.EXHAUSTED for each in working):
        return _exhausted(working, refusals, now)
    if refusals and most_hopeful(refusals).status >= 500:
        return for_the_client(most_hopeful(refusals))
    if not working and all_explained:
        unauthorized = any(each.state is AccountState.UNAUTHORIZED for each in found.reasons)
        refused = ApiError(401, "authentication_error", "")
        return for_the_client(refused) if unauthorized else _unavailable(found)
    return _limited(found, now)


def attempts_error(refusals: Sequence[ApiError]) -> ApiError:
    """The error of a turn that used up its attempts while accounts are left.

    The limit of one account is not that of the pool, so clients should try again.

    :param refusals: what accounts answered to it, at least one, the latest last.
    """
    error = most_hopeful(refusals)
    if error.status >= 500:
        return for_the_client(error)
    return ApiError.bad_gateway(
        f"{len(refusals)} accounts of this gateway refused this turn; please try again.",
        "upstream_refused",
    )


def _limited(found: NoAccount, now: float) -> ApiError:
    wait = _seconds_until(found.free_at, now)
    return ApiError(
        429,
        "rate_limit_error",
        f"{_subject(found)} of this gateway can take this turn now; please try again in {wait}s.",
        "rate_limit_exceeded",
        headers={"retry-after": str(wait)},
    )


def _model_refused(found: NoAccount, refusals: Sequence[ApiError], now: float) -> ApiError:
    """The refusal of this turn, or an error that the model was refused just before."""
    if refusals:
        said = [error for error in refusals if refuses_model(error)]
        return said[-1] if said else for_the_client(most_hopeful(refusals))
    wait = _seconds_until(found.free_at, now)
    return ApiError(
        503,
        "server_error",
        f"Every account that could serve this turn refused the model '{_model(found)}' a moment"
        f" ago; the gateway asks again in {wait}s.",
        "model_unavailable",
        "model",
    )


def _model(found: NoAccount) -> str:
    return (found.wanted.model or "")[:_SHOWN]


def _not_offered(found: NoAccount) -> ApiError:
    if found.waits_for is not None and found.rule == KEPT:
        return ApiError.invalid_request(
            f"The previous response is kept by the account '{found.waits_for}', and the gateway"
            " has it no longer; send the conversation in full.",
            "previous_response_id",
            "previous_response_not_found",
        )
    if found.waits_for is not None:
        return ApiError.invalid_request(
            f"This conversation has encrypted items that only the account '{found.waits_for}'"
            " can read, and the gateway has it no longer; start a new conversation.",
            "input",
            "invalid_encrypted_content",
        )
    what = f" with '{_model(found)}'"
    if found.wanted.background:
        return ApiError.invalid_request(
            f"No account of this gateway takes background responses{what}.",
            "background",
            "unsupported_parameter",
        )
    return ApiError.invalid_request(
        f"No account of this gateway may serve this turn{what}.", "model", "model_not_found"
    )


def _exhausted(
    reasons: Sequence[Unavailable], refusals: Sequence[ApiError], now: float
) -> ApiError:
    """The usage limit of all accounts, with the earliest reset among them."""
    resets = [reason.resets_at for reason in reasons if reason.resets_at is not None]
    if not resets:
        return ApiError(
            429,
            "insufficient_quota",
            "Every account of this gateway has used up its quota.",
            "insufficient_quota",
        )
    wait = _seconds_until(min(resets), now)
    plans = [error.details["plan_type"] for error in refusals if "plan_type" in error.details]
    return ApiError(
        429,
        "usage_limit_reached",
        "Every account of this gateway has reached its usage limit.",
        headers={"retry-after": str(wait)},
        details={
            **({"plan_type": plans[-1]} if plans else {}),
            "resets_at": math.ceil(max(min(resets), now + 1)),
            "resets_in_seconds": wait,
        },
    )


def _unavailable(found: NoAccount) -> ApiError:
    return ApiError(
        503,
        "server_error",
        f"{_subject(found)} of this gateway is in service.",
        "no_account_available",
        headers={"retry-after": "30"},
    )


def _subject(found: NoAccount) -> str:
    if found.waits_for is not None:
        return "The account of this conversation is the only one that can serve it, and none"
    return "No account"


def _seconds_until(at: float | None, now: float) -> int:
    """Whole seconds, at least one."""
    return 1 if at is None else max(1, math.ceil(at - now))
