"""Classifies refusals and failures of upstreams (protocol.md §5.2-§5.4, §8).

Turns use it to decide whether another account may help and which error the client gets; the health
of accounts uses it to decide what cools down (design law 13).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Hashable, Sequence
from typing import NamedTuple

from gateway.protocol import error_messages as messages
from gateway.protocol import rate_limits
from gateway.protocol.error_parsing import names_a_member
from gateway.protocol.errors import (
    GATEWAY_FAILED,
    NOT_THE_API,
    PROXY_ERROR,
    SOCKET_LOST,
    SOCKET_UNSUITED,
    UNREACHABLE,
    ApiError,
)

#: The code, and the type, of failures that every client retries.
SERVER_ERROR = "server_error"

#: Statuses of a path that a service does not have at all; another account's may.
NOT_SERVED = frozenset({404, 405, 501})


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Codes that speak of the request; no other account would answer otherwise, and clients
#: must get them as they are.
ABOUT_THE_REQUEST = _names(
    "bio_policy content_filter content_policy_violation context_length_exceeded cyber_policy"
    " failed_to_download_image invalid_prompt misalignment_policy_violation"
)

#: Codes of what a request names, and of members that no account would take.
_ABOUT_NAMED_OBJECT = re.compile(
    r"(?:assistant|batch|connector|container|conversation|file|image|image_file|item|mcp_server"
    r"|prompt|skill|thread|tool|upload|vector_store|video)_(?:not_found|access_denied|deleted"
    r"|expired|locked|not_ready|parse_error|too_large|too_small|content_policy_violation)"
    r"|image_file_too_large|empty_image_file|unsupported_image_media_type"
    r"|invalid_(?:base64_image|function_parameters|image|image_format|image_mode|image_url"
    r"|json_schema|tool_schema|type|value)"
    r"|missing_required_parameter|unknown_parameter|unsupported_(?:file|parameter|value)"
)

#: Codes and types of a service that is too busy: they tell Codex to give up although another
#: try may help.
_OVERLOADED = _names(
    "engine_overloaded overloaded overloaded_error server_is_overloaded server_overloaded slow_down"
)

#: Codes and types of an account that may spend no more.
_SPENT = _names(
    "billing_hard_limit_reached credit_balance_exhausted insufficient_quota usage_limit_reached"
    " usage_not_included"
)

#: Codes and types of a limit that is over soon.
_LIMITED = _names("rate_limit_exceeded rate_limit_error")

#: Codes and types of credentials that are refused, whatever their status.
_UNAUTHORIZED = _names(
    "account_deactivated authentication_error invalid_api_key token_expired token_invalidated"
    " token_revoked unsupported_country_region_territory upstream_unauthorized"
)

#: Codes and types of a model that an account does not offer, whatever their status.
_NO_SUCH_MODEL = _names(
    "DeploymentNotFound ModelNotFound invalid_model key_model_access_denied model_decommissioned"
    " model_not_available model_not_found model_not_supported team_model_access_denied"
    " unavailable_model unknown_model unsupported_model"
)

#: Codes of requests that ended before a model could work on them.
_NOT_WORKED_ON = frozenset({"previous_response_not_found", PROXY_ERROR, UNREACHABLE})

#: Codes of failures that say nothing about an account: many things cut a socket.
_ABOUT_NO_ACCOUNT = frozenset({GATEWAY_FAILED, SOCKET_LOST, SOCKET_UNSUITED})

#: Statuses below 500 that another account may not answer with.
_MAY_MOVE = frozenset({401, 402, 403, 404, 408, 409, 425, 429, 431})

#: Statuses that are about the account, whatever words go with them.
_ABOUT_THE_ACCOUNT = frozenset({401, 402, 429})

#: How services say that something is not there.
_NOT_THERE = re.compile(
    r"not found|no such|not exist|n't exist|unknown|not (be )?f(ou|i)nd|expired", re.IGNORECASE
)

#: How upstreams say that a tool's output has no call, or a call no output.
_CALL_MISSING = ("No tool call found", "No tool output found")

#: A 429 of a request that is larger than the account's limit: waiting does not help it.
_TOO_LARGE = "Request too large"

_MAX_WHY = 200


# --- previous responses and items --------------------------------------------------------


def refuses_continuation(error: ApiError) -> bool:
    """Whether a chained turn was refused for its ``previous_response_id``."""
    if error.code == "previous_response_not_found" or messages.misses_response(error.message):
        return True
    if error.status in (404, 501):
        return not (is_about_the_request(error) or refuses_model(error))
    return error.status in (400, 422) and speaks_of_the_parent(error)


def does_not_know(error: ApiError, response_id: str) -> bool:
    """Whether an account says, in any words, that it has no response of this id.

    :param response_id: of a previous response that another account may have.
    """
    if error.code == "previous_response_not_found":
        return True
    if response_id and response_id in error.message:
        is_of_account = error.status in _ABOUT_THE_ACCOUNT or error.status == 403
        names_it = 400 <= error.status < 500 and not is_of_account
        return names_it or _NOT_THERE.search(error.message) is not None
    if misses_calls(error):
        return True
    if is_about_the_request(error) or refuses_model(error) or refuses_spending(error):
        return False
    return refuses_continuation(error)


def speaks_of_the_parent(error: ApiError) -> bool:
    """Whether a refusal names the previous response as its reason."""
    return (
        error.code == "previous_response_not_found"
        or error.param == "previous_response_id"
        or "previous_response_id" in error.message
        or "previous response" in error.message.lower()
    )


def misses_calls(error: ApiError) -> bool:
    """Whether the upstream found tool outputs without their calls, or the reverse.

    An upstream that ignores ``previous_response_id`` answers a chained turn so: to it the
    input is wrong, to the gateway its memory is.
    """
    return error.status == 400 and error.message.startswith(_CALL_MISSING)


def refuses_encrypted_content(error: ApiError) -> bool:
    """Whether the upstream could not read ``encrypted_content`` that it was sent."""
    return error.code == "invalid_encrypted_content" or (
        error.status == 400 and "encrypted content" in error.message.lower()
    )


# --- the account -------------------------------------------------------------------------


def refuses_spending(error: ApiError) -> bool:
    """Whether the account's quota, credit or budget is used up."""
    if error.status == 402 or error.code in _SPENT or error.type in _SPENT:
        return True
    if (error.code or "").endswith("_spend_limit_exceeded"):
        return True
    says_so = error.status in (400, 403, 429) and messages.spent(error.message)
    return says_so and error.code not in _LIMITED


def refuses_credentials(error: ApiError) -> bool:
    """Whether the account's key or token is refused, or could not be obtained."""
    if error.status == 401 or error.code in _UNAUTHORIZED or error.type in _UNAUTHORIZED:
        return True
    return error.status in (400, 403) and messages.bad_credentials(error.message)


def refuses_model(error: ApiError) -> bool:
    """Whether the account says that it does not offer a model."""
    if error.code in _NO_SUCH_MODEL or error.type in _NO_SUCH_MODEL:
        return True
    if error.status in (403, 404) and error.param == "model":
        return True
    return error.status in (400, 403, 404) and messages.no_such_model(error.message)


def is_overload(error: ApiError) -> bool:
    """Whether the service says that it is too busy."""
    if error.code in _OVERLOADED or error.type in _OVERLOADED:
        return True
    may_say_so = error.status in (400, 403) or error.status >= 500
    return may_say_so and messages.overloaded(error.message)


def is_rate_limit(error: ApiError) -> bool:
    """Whether the account is asked too often, or for too much at a time."""
    return error.status == 429 or error.code in _LIMITED or error.type in _LIMITED


# --- the request -------------------------------------------------------------------------


def is_about_the_request(error: ApiError) -> bool:
    """Whether the refusal, whatever its status, is about what the client sent or named."""
    code = error.code or ""
    if code in ABOUT_THE_REQUEST or _ABOUT_NAMED_OBJECT.fullmatch(code):
        return True
    if error.status in _ABOUT_THE_ACCOUNT or code == NOT_THE_API or speaks_of_the_parent(error):
        return False
    return names_a_member(error.param) or messages.about_the_request(error.message)


def may_move(error: ApiError) -> bool:
    """Whether another account might answer what this one refused (design law 13)."""
    if is_about_the_request(error) or error.code in _ABOUT_NO_ACCOUNT:
        return False
    if refuses_spending(error) or refuses_credentials(error) or refuses_model(error):
        return True
    if is_overload(error) or is_rate_limit(error):
        return True
    return error.status >= 500 or error.status in _MAY_MOVE


def costs_nothing(error: ApiError) -> bool:
    """Whether it is certain that no model worked on what was refused.

    Nothing was sent, or the service refused it before that: for its credentials, the account's
    credit, the model's name, or the response that it continues.
    """
    return (
        error.code in _NOT_WORKED_ON
        or error.status in (401, 403)
        or refuses_credentials(error)
        or refuses_spending(error)
        or refuses_model(error)
    )


def is_clients_fault(error: ApiError) -> bool:
    """Whether the request itself was wrong."""
    return error.status < 500 and not may_move(error)


# --- the client --------------------------------------------------------------------------


def most_hopeful(errors: Sequence[ApiError]) -> ApiError:
    """Of the refusals of several accounts, the one that leaves the client the best chance.

    Clients retry server errors, wait for limits, and do not retry others.
    """

    def hope(error: ApiError) -> int:
        if error.status >= 500:
            return 2
        return 1 if error.status == 429 else 0

    return max(reversed(errors), key=hope)


def for_the_client(error: ApiError) -> ApiError:
    """A refusal as the client gets it: never one of the account's credentials.

    A fault of the request is reported with a 4xx status, whatever status a wrapper gave it.
    Other faults get a status that clients retry.
    """
    if is_about_the_request(error):
        if error.status < 500 and error.code != SERVER_ERROR:
            return error
        return _with_status(error, error.status if error.status < 500 else 400)
    if error.status == 403 or refuses_credentials(error):
        return ApiError.bad_gateway(
            "The gateway's account at the upstream was refused; its operator can see why.",
            "upstream_unauthorized",
        )
    if is_overload(error):
        return ApiError(
            503, "server_error", error.message, "upstream_overloaded", None, error.headers
        )
    return _with_status(error, 502) if error.status == 431 else error


def blames_others(error: ApiError) -> bool:
    """Whether a failure, reported as it is, would blame the client for an account, or stop it."""
    return not is_about_the_request(error) and for_the_client(error) is not error


def code_of_failure(error: ApiError) -> str:
    """The code of a ``response.failed`` for ``error``: clients retry ``server_error`` alone."""
    if not is_about_the_request(error):
        return SERVER_ERROR
    return _code_of_request(error) or "invalid_prompt"


def _code_of_request(error: ApiError) -> str | None:
    """The code of the request's fault; not one by which clients would try again."""
    if error.code not in (None, SERVER_ERROR):
        return error.code
    return "context_length_exceeded" if messages.too_long(error.message) else None


def _with_status(error: ApiError, status: int) -> ApiError:
    return ApiError(
        status,
        "invalid_request_error" if status < 500 else SERVER_ERROR,
        error.message,
        _code_of_request(error) if status < 500 else error.code,
        error.param,
        error.headers,
        error.details,
    )


# --- faults ------------------------------------------------------------------------------


class FaultKind(enum.Enum):
    """The party that a fault belongs to, which is what cools down."""

    REQUEST = "request"
    """Nothing: the request, or something that the account cannot help."""

    EXHAUSTED = "exhausted"
    """The account: its quota, credit or budget is used up."""

    RATE_LIMITED = "rate limited"
    """The account, for this model."""

    MODEL_REFUSED = "model refused"
    """The account, for this model: it says that it does not offer it."""

    UNCLEAR = "unclear"
    """Nothing, as far as it says.  Where another account serves the same request it is this
    account, for this model, once it happens often."""

    UNAUTHORIZED = "unauthorized"
    """The account: its credentials are refused."""

    SERVICE = "service"
    """The service behind the account, once it happens often, and not to one request alone."""

    PROXY = "proxy"
    """The egress proxy, not the account."""


class Fault(NamedTuple):
    """A refusal or failure, attributed.

    :ivar kind: what it belongs to.
    :ivar why: for the operator: status, code and message.
    :ivar retry_at: unix seconds from which the upstream says it is ready again.
    :ivar request: identifies the request that met it; None when that is not known, and then it
        is like no other.
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
    """Attribute ``error`` to the party at fault.

    :param error: as the upstream or the connection to it gave it, not as clients get it.
    :param now: unix seconds.
    :param request: see :class:`Fault`.
    :param models: the names of the model that was asked for; none where that is not known.
    """
    kind = _kind(error)
    if kind is FaultKind.MODEL_REFUSED and models:
        named = messages.named_model(error.message)
        if named is not None and not any(named in each or each in named for each in models):
            kind = FaultKind.REQUEST  # a tool's model, say; not the turn's own
    why = " ".join(str(error).split())
    if len(why) > _MAX_WHY:
        why = why[: _MAX_WHY - 1] + "…"
    at: float | None = None
    if kind in (FaultKind.EXHAUSTED, FaultKind.RATE_LIMITED):
        at = rate_limits.retry_at(error.hints, error.details, error.message, now)
    elif kind in (FaultKind.SERVICE, FaultKind.MODEL_REFUSED):
        at = rate_limits.ready_at(error.hints, error.message, now)
    return Fault(kind, why, at, request)


def _kind(error: ApiError) -> FaultKind:
    if error.code == PROXY_ERROR:
        return FaultKind.PROXY
    if is_about_the_request(error) or error.code in _ABOUT_NO_ACCOUNT:
        return FaultKind.REQUEST
    if refuses_spending(error):
        for_model = rate_limits.limits_single_model(error.hints)
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
