"""Ends that the gateway puts to an answer itself: an interruption, a failure on the way."""

from __future__ import annotations

from collections.abc import Callable

from gateway.protocol.errors import ApiError
from gateway.protocol.events import Members, response_members
from gateway.protocol.refusals import code_of_failure
from gateway.protocol.response_stream import ResponseStream
from gateway.protocol.synthetic_events import (
    created_event,
    failed_event,
    interrupted_event,
    new_response_id,
)


def interrupted_answer(
    relay: ResponseStream,
    made: Callable[[str], Members],
    accepted: Callable[[str, int], bytes] | None,
) -> tuple[str, list[bytes]]:
    """What a client gets of an answer that is interrupted: the items that are finished (§3.5).

    :param relay: of the attempt that runs, or a new one when none does.
    :param made: makes the response object for an id, where the upstream gave none yet.
    :param accepted: makes the event to send before the terminal one, of the response's id
        and the event's ``sequence_number``; or None.
    :return: the response's id, and the events.
    """
    payloads = relay.release()
    response = response_members(relay.created)
    response_id = relay.response_id
    number = relay.last_number()
    if not response_id:
        response_id = new_response_id()
        response = made(response_id)
        if number < 0:
            payloads.append(created_event(response))
            number = 0
    if accepted is not None:
        number += 1
        payloads.append(accepted(response_id, number))
    payloads.append(interrupted_event(response, relay.items, number + 1))
    return response_id, payloads


def broken_answer(relay: ResponseStream, error: ApiError) -> bytes:
    """The terminal event of an answer that the client has seen in part; it starts anew (§8.4)."""
    return failed_event(
        response_members(relay.created),
        relay.items,
        relay.last_number() + 1,
        code_of_failure(error),
        error.message,
    )
