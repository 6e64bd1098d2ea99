"""Messages of clients about a running response, and their answers (protocol.md §3.5, §3.6).

A service that knows such a message gets the client's own; its answers go back to the client.  Where
the gateway gave the response another id than its service did, each side is shown its own.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec

from gateway.protocol.errors import UNREADABLE
from gateway.protocol.events import decode_members, raw_value, text_of
from gateway.protocol.request import Members


class Control(enum.Enum):
    """The kinds, by their names in ``websocket.controls``."""

    INTERRUPT = "interrupt"
    CANCEL = "cancel"
    STEER = "steer"
    INJECT = "inject"

    @property
    def id_member(self) -> str:
        """The member that names the response."""
        return "previous_response_id" if self is Control.STEER else "response_id"


class ControlMessage(NamedTuple):
    """What a client said.

    :ivar members: the message, split.
    :ivar payload: the same as the client's bytes.
    """

    control: Control
    members: Members
    payload: bytes

    @property
    def response_id(self) -> str | None:
        """The response that is meant, as the client calls it."""
        return text_of(self.members.get(self.control.id_member))

    @property
    def input(self) -> bytes:
        """Its ``input``; empty when there is none."""
        return bytes(self.members.get("input", b""))

    def encoded(self, upstream_id: str) -> bytes:
        """The message for the service, in which the response has the service's id.

        It names no lane: the connection to the service has one.
        """
        named = self.response_id
        if "stream_id" not in self.members and named in (None, upstream_id):
            return self.payload
        members = {name: value for name, value in self.members.items() if name != "stream_id"}
        if named is not None:
            members[self.control.id_member] = raw_value(upstream_id)
        return msgspec.json.encode(members)


class ControlAnswer(NamedTuple):
    """What a service said about such a message.

    :ivar verdict: ``accepted``, ``pending``, ``failed`` or ``created``, as the event's type ends.
    :ivar response_id: the response that is meant, as the service calls it.
    :ivar steer_id: what the service calls the steering input; None where it gave no name.
    """

    control: Control
    verdict: str
    response_id: str | None
    steer_id: str | None = None


_ANSWERS = {
    f"response.{control.value}.".encode(): control
    for control in (Control.INTERRUPT, Control.STEER, Control.INJECT)
}

#: With these the types of all answers begin.
ANSWERS = tuple(_ANSWERS)


def is_answer(name: bytes) -> bool:
    """Whether an event answers a message about a running response."""
    return name.startswith(ANSWERS)


def read_answer(name: bytes, data: bytes) -> ControlAnswer:
    """Read an event that :func:`is_answer`; members that cannot be read are None."""
    control, verdict = _kind_of(name)
    try:
        event = decode_members(data)
        steer = decode_members(event["steer"]) if control is Control.STEER else {}
    except (KeyError, *UNREADABLE):
        event, steer = {}, {}
    named = (steer if control is Control.STEER else event).get(control.id_member)
    return ControlAnswer(control, verdict, text_of(named), text_of(steer.get("id")))


def with_response_id(name: bytes, data: bytes, response_id: str) -> bytes:
    """The same answer with the id by which the client knows the response."""
    control, _ = _kind_of(name)
    own = raw_value(response_id)
    try:
        event = decode_members(data)
        if control is Control.STEER:
            steer = decode_members(event["steer"])
            event["steer"] = msgspec.Raw(msgspec.json.encode({**steer, control.id_member: own}))
        else:
            event[control.id_member] = own
    except (KeyError, *UNREADABLE):
        return data
    return msgspec.json.encode(event)


def _kind_of(name: bytes) -> tuple[Control, str]:
    prefix = next(each for each in ANSWERS if name.startswith(each))
    return _ANSWERS[prefix], name[len(prefix) :].decode(errors="replace")
