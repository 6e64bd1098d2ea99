"""Questions to workers over their links: each has a short time to answer, and none fails another's.

What a worker answers, refuses or leaves unanswered is kept by its name.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.admin.requests import AdminError
from gateway.admin.worker_answers import decode_reply
from gateway.worker_link import Link, LinkError

#: Why a gateway without workers that answer is not ready, and does nothing.
NO_WORKER = "no worker answers"

_log = Logger(namespace="gateway.admin")


class ManagedWorker(Protocol):
    """A worker, as its supervisor knows it.

    :ivar number: from 1; a restarted worker keeps it.
    :ivar restarts: how often it was started again; tells its processes apart.
    :ivar started_at: when its process was started, in seconds of the clock.
    :ivar link: to its process.
    :ivar state: what it does.
    """

    number: int
    restarts: int
    started_at: float
    link: Link

    @property
    def state(self) -> enum.Enum:
        """What it does."""

    @property
    def pid(self) -> int | None:
        """Of its process, if one runs."""


#: States in which a worker answers; in others its process does not read yet, or is gone.
_ANSWERING = frozenset({"ready", "stopping"})


def answers(worker: ManagedWorker) -> bool:
    """Whether a worker can be asked at all."""
    return worker.state.value in _ANSWERING


def name_of(worker: ManagedWorker) -> str:
    """What a worker is called on the page and in labels."""
    return str(worker.number)


class Answers:
    """What workers answered to one question.

    :ivar found: by worker.
    :ivar refused: the errors of those that refused.
    :ivar silent: those that did not answer.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.refused: dict[str, AdminError] = {}
        self.silent: list[str] = []

    def any(self) -> Mapping[str, Any]:
        """What was found.

        :raises AdminError: nothing, and why.
        """
        if self.found:
            return self.found
        if self.refused:
            raise next(iter(self.refused.values()))
        raise AdminError(503, NO_WORKER)


def reply(worker: ManagedWorker, payload: bytes) -> Any:
    """A worker's reply to a view or an action.

    :raises AdminError: it refused.
    """
    return decode_reply(payload).found()


def ask(
    workers: Sequence[ManagedWorker],
    method: str,
    payload: bytes,
    seconds: float,
    read: Callable[[ManagedWorker, bytes], Any] = reply,
) -> Deferred[Answers]:
    """Ask workers.

    :param seconds: how long each may take.
    :param read: what an answer is.
    :return: fires when all have answered or had their time; fails only because of a bug.
    """
    told = Answers()
    order = [name_of(worker) for worker in workers]
    calls = []
    for worker in workers:
        if not answers(worker):
            told.silent.append(name_of(worker))
            continue
        call: Deferred[Any] = worker.link.call(method, payload, seconds)
        call.addCallback(partial(_take, told, worker, read))
        call.addErrback(partial(_missing, told, name_of(worker)))
        calls.append(call)

    def all_answered(results: list[tuple[bool, Any]]) -> Any:
        for done, result in results:
            if not done:
                return result
        told.found = {name: told.found[name] for name in order if name in told.found}
        told.silent.sort(key=order.index)
        return told

    return DeferredList(calls, consumeErrors=True).addCallback(all_answered)


def _take(
    answers: Answers,
    worker: ManagedWorker,
    read: Callable[[ManagedWorker, bytes], Any],
    payload: bytes,
) -> None:
    try:
        answers.found[name_of(worker)] = read(worker, payload)
    except AdminError as error:
        answers.refused[name_of(worker)] = error


def _missing(answers: Answers, name: str, failure: Failure) -> None:
    failure.trap(LinkError)
    answers.silent.append(name)


def note_failure(failure: Failure) -> None:
    """Log what failed; that no worker answers is no failure."""
    if not failure.check(AdminError):
        _log.failure("workers could not be asked", failure)
