"""What became of the WebSockets of one account: how many were opened, and why each ended."""

from __future__ import annotations

import enum
from collections import Counter


class SocketEnd(str, enum.Enum):
    """Why a socket ended; the values are labels of a metric.

    What the peer closed with is one of the codes of RFC 6455 §7.4.1 and the registry of IANA, or
    ``closed otherwise``: services choose their own codes.
    """

    # By the gateway, between two responses.
    AGE = "age"
    IDLE = "idle"
    ROOM = "room for another"
    ACCOUNT_CLOSED = "account closed"
    # By the gateway, with a response.
    CANCELLED = "cancelled"
    REFUSED = "refused"
    NOT_FINISHED = "not finished"
    FAILED = "failed"
    SILENCE = "silence"
    # Because of what the upstream does or says.
    NO_PONG = "no pong"
    UNEXPECTED_MESSAGE = "unexpected message"
    CONNECTION_LIMIT = "connection limit"
    # By the upstream, or because what it sent cannot be read.
    CLOSED = "closed 1000"
    GOING_AWAY = "closed 1001"
    PROTOCOL_ERROR = "closed 1002"
    UNREADABLE = "closed 1003"
    WITHOUT_CODE = "closed 1005"
    CONNECTION_LOST = "closed 1006"
    NO_UTF8 = "closed 1007"
    POLICY = "closed 1008"
    TOO_BIG = "closed 1009"
    SERVER_ERROR = "closed 1011"
    RESTART = "closed 1012"
    TRY_LATER = "closed 1013"
    BAD_GATEWAY = "closed 1014"
    CLOSED_OTHERWISE = "closed otherwise"


def end_of_code(code: int) -> SocketEnd:
    """The end of a socket that was closed with ``code``; 1006 stands for no Close frame."""
    try:
        return SocketEnd(f"closed {code}")
    except ValueError:
        return SocketEnd.CLOSED_OTHERWISE


class SocketCounts:
    """The sockets of one account so far; they outlive a change of its settings.

    :ivar opened: how many were opened.
    :ivar lost: how many are gone, by reason.
    """

    def __init__(self) -> None:
        self.opened = 0
        self.lost: Counter[SocketEnd] = Counter()
