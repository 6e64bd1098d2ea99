"""The start of a turn, the same at every door."""

from __future__ import annotations

from twisted.logger import Logger

from gateway.protocol.errors import ApiError
from gateway.turn.turn import Turn

_log = Logger(namespace="gateway.turn")


def start_turn(turn: Turn, refusal: ApiError | None) -> None:
    """Run ``turn``; whatever goes wrong at once, its client gets one terminal event (law 5).

    :param refusal: why it cannot even start, or None.
    """
    if refusal is not None:
        turn.abandon(refusal)
        return
    try:
        turn.start()
    except Exception:
        _log.failure("turn {turn} could not start", turn=turn.record.turn)
        turn.abandon(ApiError.gateway_failed())
