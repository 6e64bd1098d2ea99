"""What an upstream's refusal means for the turn (protocol.md §5.2, §8.1, §8.4)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway.protocol import error_messages as wording
from gateway.protocol.error_parsing import names_a_member
from gateway.protocol.errors import GATEWAY_FAILED, NOT_THE_API, PROXY_ERROR, UNREACHABLE, ApiError

#: The code, and the type, of failures that every client retries.
SERVER_ERROR = "server_error"

#: Codes that speak of the request; no other account would answer otherwise, and clients
#: must hear them as they are (§5.4).
ABOUT_THE_REQUEST = frozenset(
    {
        "bio_policy",
        "content_filter",
        "content_policy_violation",
        "context_length_exceeded",
        "cyber_policy",
        "failed_to_download_image",
        "invalid_prompt",
        "misalignment_policy_violation",
    }
)

#: Codes of what a request names, and of members that no account would take.
_OF_WHAT_IT_NAMES = re.compile(
    r"(?:assistant|batch|connector|container|conversation|file|image|image_file|item|mcp_server"
    r"|prompt|skill|thread|tool|upload|vector_store|video)_(?:not_found|access_denied|deleted"
    r"|expired|locked|not_ready|parse_error|too_large|too_small|content_policy_violation)"
    r"|image_file_too_large|empty_image_file|unsupported_image_media_type"
    r"|invalid_(?:base64_image|function_parameters|image|image_format|image_mode|image_url"
    r"|json_schema|tool_schema|type|value)"
    r"|missing_required_parameter|unknown_parameter|unsupported_(?:file|parameter|value)"
)

#: Codes that tell Codex to give up although another try may help (§10.64), and their kin.
_OVERLOADED = frozenset(
    {
        "engine_overloaded",
        "overloaded",
        "overloaded_error",
        "server_is_overloaded",
        "server_overloaded",
        "slow_down",
    }
)

#: Codes and types of an account that may spend no more (§5.3, §5.4).
_SPENT = frozenset(
    {
        "billing_hard_limit_reached",
        "credit_balance_exhausted",
        "insufficient_quota",
        "usage_limit_reached",
        "usage_not_included",
    }
)

#: Codes and types of a limit that is over soon.
_LIMITED = frozenset({"rate_limit_exceeded", "rate_limit_error"})

#: Codes and types of credentials that are refused, whatever their status.
_UNAUTHORIZED = frozenset(
    {
        "account_deactivated",
        "authentication_error",
        "invalid_api_key",
        "token_expired",
        "token_invalidated",
        "token_revoked",
        "unsupported_country_region_territory",
        "upstream_unauthorized",
    }
)

#: Codes and types of a model that an account does not offer, whatever their status.
_NO_SUCH_MODEL = frozenset(
    {
        "DeploymentNotFound",
        "ModelNotFound",
        "invalid_model",
        "key_model_access_denied",
        "model_decommissioned",
        "model_not_available",
        "model_not_found",
        "model_not_supported",
        "team_model_access_denied",
        "unavailable_model",
        "unknown_model",
        "unsupported_model",
    }
)

#: Statuses of a path that a service does not have.
NOT_SERVED = frozenset({404, 405, 501})

#: Codes of what ended before a model could work on it.
_NOT_WORKED_ON = frozenset({"previous_response_not_found", PROXY_ERROR, UNREACHABLE})

_ELSEWHERE = frozenset({401, 402, 403, 404, 408, 409, 425, 429, 431})

#: Statuses that say of the account what they say, whatever words go with them.
_SAY_IT_ALL = frozenset({401, 402, 429})

#: Statuses of what ails an account, whatever a refusal names.
_OF_THE_ACCOUNT = frozenset({401, 402, 403, 429})

#: How services say that something is not there.
_NOT_THERE = re.compile(
    r"not found|no such|not exist|n't exist|unknown|not (be )?f(ou|i)nd|expired", re.IGNORECASE
)

_ORPHANS = ("No tool call found", "No tool output found")


def refuses_continuation(error: ApiError) -> bool:
    """Whether a chained turn was refused for its ``previous_response_id`` (§10.74)."""
    if error.code == "previous_response_not_found":
        return True
    if error.status in (404, 501):
        return not (is_about_the_request(error) or refuses_model(error))
    return error.status in (400, 422) and speaks_of_the_parent(error)


def does_not_know(error: ApiError, response_id: str) -> bool:
    """Whether an account says that it has no response of this id, whatever its words are.

    :param response_id: of a previous response that another account may have.
    """
    if error.code == "previous_response_not_found":
        return True
    if response_id and response_id in error.message:
        names_it = 400 <= error.status < 500 and error.status not in _OF_THE_ACCOUNT
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
    """Whether the upstream found tool outputs without their calls, or the reverse (§5.3).

    An upstream that ignores ``previous_response_id`` says so of a chained turn: to it the
    input is wrong, to us its memory is.
    """
    return error.status == 400 and error.message.startswith(_ORPHANS)


def refuses_seals(error: ApiError) -> bool:
    """Whether the upstream could not open ``encrypted_content`` that it was sent (§1.25)."""
    return error.code == "invalid_encrypted_content" or (
        error.status == 400 and "encrypted content" in error.message.lower()
    )


def refuses_spending(error: ApiError) -> bool:
    """Whether the account's quota, credit or budget is used up (§5.3, §5.4)."""
    return (
        error.status == 402
        or error.code in _SPENT
        or error.type in _SPENT
        or (error.code or "").endswith("_spend_limit_exceeded")
        or (
            error.status in (400, 403, 429)
            and error.code not in _LIMITED
            and wording.spent(error.message)
        )
    )


def refuses_credentials(error: ApiError) -> bool:
    """Whether the account's key or token is refused, or could not be had."""
    return (
        error.status == 401
        or error.code in _UNAUTHORIZED
        or error.type in _UNAUTHORIZED
        or (error.status in (400, 403) and wording.bad_credentials(error.message))
    )


def refuses_model(error: ApiError) -> bool:
    """Whether the account says that it does not offer a model."""
    if error.code in _NO_SUCH_MODEL or error.type in _NO_SUCH_MODEL:
        return True
    if error.status in (403, 404) and error.param == "model":
        return True
    return error.status in (400, 403, 404) and wording.no_such_model(error.message)


def is_overload(error: ApiError) -> bool:
    """Whether the service says that it is too busy (§5.3)."""
    return (
        error.code in _OVERLOADED
        or error.type in _OVERLOADED
        or (
            (error.status in (400, 403) or error.status >= 500)
            and wording.overloaded(error.message)
        )
    )


def is_rate_limit(error: ApiError) -> bool:
    """Whether the account is asked too often, or for too much at a time."""
    return error.status == 429 or error.code in _LIMITED or error.type in _LIMITED


def is_not_served(error: ApiError) -> bool:
    """Whether the service does not have the path at all; another account's may."""
    return error.status in NOT_SERVED


def is_about_the_request(error: ApiError) -> bool:
    """Whether the refusal, whatever its status, speaks of what the client sent or named."""
    code = error.code or ""
    if code in ABOUT_THE_REQUEST or _OF_WHAT_IT_NAMES.fullmatch(code):
        return True
    if error.status in _SAY_IT_ALL or error.code == NOT_THE_API or speaks_of_the_parent(error):
        return False
    return names_a_member(error.param) or wording.about_the_request(error.message)


def may_move(error: ApiError) -> bool:
    """Whether another account might answer what this one refused (design law 13)."""
    if is_about_the_request(error) or error.code == GATEWAY_FAILED:
        return False
    if refuses_spending(error) or refuses_credentials(error) or refuses_model(error):
        return True
    if is_overload(error) or is_rate_limit(error):
        return True
    return error.status >= 500 or error.status in _ELSEWHERE


def costs_nothing(error: ApiError) -> bool:
    """Whether it is certain that no model worked on what was refused so.

    Nothing was sent, or whoever looks at it first – at its credentials, the account's credit,
    the model's name, the response that it continues – sent it away.
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


def most_hopeful(errors: Sequence[ApiError]) -> ApiError:
    """Of the refusals of several accounts, the one that leaves the client the best chance.

    Clients retry server errors, wait for limits, and give up on the rest.
    """

    def hope(error: ApiError) -> int:
        if error.status >= 500:
            return 2
        return 1 if error.status == 429 else 0

    return max(reversed(errors), key=hope)


def for_the_client(error: ApiError) -> ApiError:
    """A refusal as the client should hear it: never blamed for an account's credentials.

    What is the request's fault is told as such, whatever status a wrapper gave it, and what is
    not, as something that is worth another try.
    """
    if is_about_the_request(error):
        if error.status < 500 and error.code != SERVER_ERROR:
            return error
        status = error.status if error.status < 500 else 400
        return _with_status(error, status, _code_of(error))
    if error.status == 403 or refuses_credentials(error):
        return ApiError.bad_gateway(
            "The gateway's account at the upstream was refused; its operator can see why.",
            "upstream_unauthorized",
        )
    if is_overload(error):
        return ApiError(
            503, "server_error", error.message, "upstream_overloaded", None, error.headers
        )
    return _with_status(error, 502, error.code) if error.status == 431 else error


def blames_others(error: ApiError) -> bool:
    """Whether a failure, told as it is, would blame the client for an account, or stop it."""
    return not is_about_the_request(error) and for_the_client(error) is not error


def code_of_failure(error: ApiError) -> str:
    """The code of a ``response.failed`` that tells of ``error``: clients retry one of them."""
    if not is_about_the_request(error):
        return SERVER_ERROR
    return _code_of(error) or "invalid_prompt"


def _code_of(error: ApiError) -> str | None:
    """The code of what is the request's fault; not one by which clients would try again."""
    if error.code not in (None, SERVER_ERROR):
        return error.code
    return "context_length_exceeded" if wording.too_long(error.message) else None


def _with_status(error: ApiError, status: int, code: str | None) -> ApiError:
    return ApiError(
        status,
        "invalid_request_error" if status < 500 else SERVER_ERROR,
        error.message,
        code,
        error.param,
        error.headers,
        error.details,
    )
