"""What the admin side manages: a gateway of one process, or of a supervisor's workers.

The API, the page and the live events know a :class:`ManagedGateway` only: views that are values for
JSON, and actions.  :class:`ManagedProcess` is the gateway that runs in this process, and answers at
once.  :class:`~gateway.admin.managed_workers.ManagedWorkers` asks processes, and answers later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from gateway.admin.actions import Actions
from gateway.admin.dry_run import dry_run
from gateway.admin.running_gateway import RunningGateway
from gateway.admin.views.accounts import accounts
from gateway.admin.views.conversations import conversations, turns, why
from gateway.admin.views.overview import (
    configuration,
    current,
    keys,
    memory,
    overview,
    part,
    readiness,
)
from gateway.admin.views.recordings import recorded, recording, recordings
from gateway.server.connections import OpenFiles

#: The views by name: plain functions from the running gateway to JSON.
VIEWS: Mapping[str, Callable[..., Any]] = {
    "readiness": readiness,
    "overview": overview,
    "current": current,
    "part": part,
    "accounts": lambda running: {"accounts": accounts(running)},
    "conversations": conversations,
    "why": why,
    "turns": turns,
    "keys": keys,
    "memory": memory,
    "configuration": configuration,
    "recorded": recorded,
    "recordings": recordings,
    "recording": recording,
    "dry_run": dry_run,
}

#: The actions by name: methods of :class:`~gateway.admin.actions.Actions`.
ACTIONS: Mapping[str, Callable[..., Any]] = {
    "account": Actions.account,
    "conversation": Actions.conversation,
    "log_level": Actions.log_level,
    "drain": Actions.drain,
    "resume": Actions.resume,
    "reload": Actions.reload,
    "record": Actions.record,
    "stop_recording": Actions.stop_recording,
}


class EndedTurn(Protocol):
    """A turn that ended."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""


TurnWatcher = Callable[[EndedTurn], None]


class ManagedGateway(Protocol):
    """A gateway as its operators see it.

    What it answers is a value, or a ``Deferred`` of one; see :func:`when_known`.
    """

    @property
    def clock(self) -> IReactorTime:
        """For what happens by itself."""

    @property
    def files(self) -> OpenFiles:
        """The open files of this process."""

    def now(self) -> float:
        """Unix seconds."""

    def view(self, name: str, /, **arguments: Any) -> Any:
        """One of :data:`VIEWS`.

        :raises AdminError: what was asked for makes no sense, or cannot be had.
        """

    def act(self, name: str, /, **arguments: Any) -> Any:
        """Do one of :data:`ACTIONS`.

        :return: its result, with a sentence as ``result``.
        :raises AdminError: it was not done.
        """

    def metrics(self, accept: str) -> Any:
        """The type and the text of ``/metrics``.

        :param accept: the ``Accept`` header.
        """

    def watch_turns(self, watcher: TurnWatcher) -> None:
        """Call ``watcher`` with turns that end while somebody follows them."""

    def follow_turns(self, seconds: float) -> None:
        """Somebody follows the turns that end, for so long."""


class ManagedProcess:
    """The gateway of this process.

    :param metrics: makes the type and text of ``/metrics`` for an ``Accept`` header.
    """

    def __init__(
        self, running: RunningGateway, metrics: Callable[[str], tuple[str, bytes]]
    ) -> None:
        self._running = running
        self._actions = Actions(running)
        self.metrics = metrics

    @property
    def clock(self) -> IReactorTime:
        """The reactor's."""
        return self._running.services.clock

    @property
    def files(self) -> OpenFiles:
        """Those of clients and operators."""
        return self._running.limiter.files

    def now(self) -> float:
        """Unix seconds."""
        return self._running.now()

    def view(self, name: str, /, **arguments: Any) -> Any:
        """One of :data:`VIEWS`, computed now."""
        return VIEWS[name](self._running, **arguments)

    def act(self, name: str, /, **arguments: Any) -> Any:
        """Do one of :data:`ACTIONS`."""
        return ACTIONS[name](self._actions, **arguments)

    def watch_turns(self, watcher: TurnWatcher) -> None:
        """Call ``watcher`` with every turn that ends."""
        self._running.services.turn_log.watchers.append(watcher)

    def follow_turns(self, seconds: float) -> None:
        """Watchers are always called."""


def when_known(value: Any, use: Callable[[Any], Any]) -> Any:
    """Use a value now, or a ``Deferred`` of it later.

    :return: what ``use`` returns, or a ``Deferred`` of it.
    """
    return value.addCallback(use) if isinstance(value, Deferred) else use(value)


def all_known(values: Mapping[str, Any]) -> Any:
    """The same values once all are known: at once, unless one of them is a ``Deferred``."""
    later = {name: value for name, value in values.items() if isinstance(value, Deferred)}
    if not later:
        return values
    found = gatherResults(list(later.values()), consumeErrors=True)
    return found.addCallbacks(
        lambda known: {**values, **dict(zip(later, known, strict=True))}, _first_failure
    )


def _first_failure(failure: Failure) -> Failure:
    """What failed, without what ``gatherResults`` wraps it in."""
    failure.trap(FirstError)
    first: Any = failure.value
    found: Failure = first.subFailure
    return found
