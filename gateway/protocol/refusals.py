"""What an upstream's refusal means for the turn (protocol.md §5.2, §8.1, §8.4)."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import ApiError

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

_ELSEWHERE = frozenset({401, 402, 403, 404, 408, 409, 425, 429})

_ORPHANS = ("No tool call found", "No tool output found")


def refuses_continuation(error: ApiError) -> bool:
    """Whether a chained turn was refused for its ``previous_response_id`` (§10.74)."""
    if error.status in (404, 501) or error.code == "previous_response_not_found":
        return True
    if error.status not in (400, 422):
        return False
    return (
        error.param == "previous_response_id"
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


def may_move(error: ApiError) -> bool:
    """Whether another account might answer what this one refused (design law 13)."""
    if error.code in ABOUT_THE_REQUEST or error.message.startswith("Item with id"):
        return False
    return error.status >= 500 or error.status in _ELSEWHERE


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
    if error.status in (401, 403):
        return ApiError.bad_gateway(
            "The gateway's account at the upstream was refused; its operator can see why.",
            "upstream_unauthorized",
        )
    if error.code in _STOPS_CLIENTS:
        return ApiError(
            503, "server_error", error.message, "upstream_overloaded", None, error.headers
        )
    return error
