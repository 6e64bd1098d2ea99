"""How a worker answers its supervisor for the admin side: views, actions, metrics, ended turns.

Methods and payloads of the link; :mod:`~gateway.admin.managed_workers` is the other side.
"""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from gateway.admin.managed_gateway import EndedTurn, ManagedGateway
from gateway.admin.metric_families import encoded, families
from gateway.admin.prometheus import Metrics
from gateway.admin.requests import AdminError
from gateway.worker_link import Link

#: Methods that a worker answers.
VIEW = "admin.view"
ACT = "admin.act"
METRICS = "admin.metrics"
FOLLOW = "admin.follow"

#: What a worker tells: a turn that ended.
TURN = "admin.turn"

#: Bound on the turns that are told between two calls of :data:`FOLLOW`.
_MAX_TURNS = 20


class Question(msgspec.Struct, array_like=True):
    """A view or an action that is asked for."""

    name: str
    arguments: dict[str, Any]


class Reply(msgspec.Struct, array_like=True):
    """What a worker answers.

    :ivar value: the view, or the result of the action.
    :ivar status: of the error that there is instead, or 0.
    :ivar sentence: of the error.
    """

    value: Any = None
    status: int = 0
    sentence: str = ""

    def found(self) -> Any:
        """The value.

        :raises AdminError: the worker refused.
        """
        if self.status:
            raise AdminError(self.status, self.sentence)
        return self.value


encode = msgspec.msgpack.Encoder().encode
decode_reply = msgspec.msgpack.Decoder(Reply).decode
decode_turn = msgspec.msgpack.Decoder(dict[str, Any]).decode
_decode_question = msgspec.msgpack.Decoder(Question).decode
_decode_seconds = msgspec.msgpack.Decoder(float).decode


class WorkerAnswers:
    """Answers for one worker.

    :param managed: its gateway.
    """

    def __init__(self, managed: ManagedGateway, metrics: Metrics, link: Link) -> None:
        self._managed = managed
        self._metrics = metrics
        self._link = link
        self._followed_until = 0.0
        self._turns = 0
        for method, handler in (
            (VIEW, self._view),
            (ACT, self._act),
            (METRICS, self._families),
            (FOLLOW, self._follow),
        ):
            link.handle(method, handler)
        managed.watch_turns(self._turn_ended)

    def _view(self, payload: bytes) -> Any:
        asked = _decode_question(payload)
        return _replied(lambda: self._managed.view(asked.name, **asked.arguments))

    def _act(self, payload: bytes) -> Any:
        asked = _decode_question(payload)
        return _replied(lambda: self._managed.act(asked.name, **asked.arguments))

    def _families(self, _: bytes) -> bytes:
        return encoded(families(self._metrics.collect()))

    def _follow(self, payload: bytes) -> None:
        self._followed_until = self._managed.now() + _decode_seconds(payload)
        self._turns = 0

    def _turn_ended(self, turn: EndedTurn) -> None:
        if self._turns < _MAX_TURNS and self._managed.now() < self._followed_until:
            self._turns += 1
            self._link.tell(TURN, encode(turn.as_dict()))


def _replied(ask: Any) -> Any:
    """The reply, now or later; errors for the operator are replies, too."""
    try:
        found = ask()
    except AdminError as error:
        return _refused(error)
    if isinstance(found, Deferred):
        return found.addCallbacks(lambda value: encode(Reply(value)), _failed)
    return encode(Reply(found))


def _refused(error: AdminError) -> bytes:
    return encode(Reply(None, error.status, error.sentence))


def _failed(failure: Failure) -> bytes:
    failure.trap(AdminError)
    error: Any = failure.value
    return _refused(error)
