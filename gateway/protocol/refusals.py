"""What an upstream's refusal means for the turn (protocol.md §5.2, §8.1, §8.4)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .errors import GATEWAY_FAILED, PROXY_ERROR, UNREACHABLE, ApiError

#: Codes that speak of the request; no other account would answer otherwise, and clients
#: must hear them as they are (§5.4).
ABOUT_THE_REQUEST = frozenset(
    {
        "bio_policy",
        "content_filter",
        "context_length_exceeded",
        "cyber_policy",
        "invalid_prompt",
        "misalignment_policy_violation",
    }
)

#: Codes that tell Codex to give up although another try may help (§10.64).
_STOPS_CLIENTS = frozenset({"server_is_overloaded", "slow_down"})

#: Codes and types of an account that may spend no more (§5.3, §5.4).
_SPENT = frozenset(
    {
        "credit_balance_exhausted",
        "insufficient_quota",
        "usage_limit_reached",
        "usage_not_included",
    }
)

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

#: Codes of a model that an account does not offer, whatever their status.
_NO_SUCH_MODEL = frozenset(
    {"model_not_available", "model_not_found", "model_not_supported", "unsupported_model"}
)

#: The same said without a code, by OpenAI and by the ChatGPT backend.
_NO_SUCH_MODEL_SAID = re.compile(
    r"The (requested )?model ['\"`][^'\"`]*['\"`] does not exist"
    r"|The ['\"`][^'\"`]*['\"`] model is not supported"
)

#: Codes of what ended before a model could work on it.
_NOT_WORKED_ON = frozenset({"previous_response_not_found", PROXY_ERROR, UNREACHABLE})

_ELSEWHERE = frozenset({401, 402, 403, 404, 408, 409, 425, 429})

#: Statuses of what ails an account, whatever a refusal names.
_OF_THE_ACCOUNT = frozenset({401, 402, 403, 429})

#: How services say that something is not there.
_NOT_THERE = re.compile(
    r"not found|no such|not exist|n't exist|unknown|not (be )?f(ou|i)nd|expired", re.IGNORECASE
)

_ORPHANS = ("No tool call found", "No tool output found")


def refuses_continuation(error: ApiError) -> bool:
    """Whether a chained turn was refused for its ``previous_response_id`` (§10.74)."""
    if error.status in (404, 501) or error.code == "previous_response_not_found":
        return True
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
    if is_about_the_request(error) or refuses_model(error) or refuses_spending(error):
        return False
    return refuses_continuation(error) or misses_calls(error)


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
    )


def refuses_credentials(error: ApiError) -> bool:
    """Whether the account's key or token is refused, or could not be had."""
    return error.status == 401 or error.code in _UNAUTHORIZED or error.type in _UNAUTHORIZED


def refuses_model(error: ApiError) -> bool:
    """Whether the account says that it does not offer the model."""
    return error.code in _NO_SUCH_MODEL or (
        error.status in (400, 403, 404)
        and error.code is None
        and _NO_SUCH_MODEL_SAID.match(error.message) is not None
    )


def is_overload(error: ApiError) -> bool:
    """Whether the service says that it is too busy (§5.3)."""
    return error.code in _STOPS_CLIENTS


def is_not_served(error: ApiError) -> bool:
    """Whether the service does not have the path at all; another account's may."""
    return error.status in (404, 405, 501)


def is_about_the_request(error: ApiError) -> bool:
    """Whether the refusal, whatever its status, speaks of what the client sent."""
    return error.code in ABOUT_THE_REQUEST or error.message.startswith("Item with id")


def may_move(error: ApiError) -> bool:
    """Whether another account might answer what this one refused (design law 13)."""
    if is_about_the_request(error) or error.code == GATEWAY_FAILED:
        return False
    if refuses_spending(error) or refuses_credentials(error) or refuses_model(error):
        return True
    return error.status >= 500 or error.status in _ELSEWHERE or is_overload(error)


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
    """A refusal as the client should hear it: never blamed for an account's credentials."""
    if error.status == 403 or refuses_credentials(error):
        return ApiError.bad_gateway(
            "The gateway's account at the upstream was refused; its operator can see why.",
            "upstream_unauthorized",
        )
    if is_overload(error):
        return ApiError(
            503, "server_error", error.message, "upstream_overloaded", None, error.headers
        )
    return error
