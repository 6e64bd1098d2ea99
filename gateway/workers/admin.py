"""The admin side of a supervisor: one address for all workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import MultiService

from gateway.admin.api import Api
from gateway.admin.auth import AccessControl
from gateway.admin.managed_workers import ManagedWorkers
from gateway.admin.metric_families import Family, families
from gateway.admin.prometheus import process_metrics, state_metrics
from gateway.admin.site import AdminSite
from gateway.admin.worker_calls import ManagedWorker
from gateway.config import Settings
from gateway.config.endpoints import is_loopback
from gateway.inheritance import Descriptors, Inheritance, listener_name
from gateway.listening import ListenerService
from gateway.log import LogThreshold
from gateway.metrics.process import memory_budget, read_process
from gateway.server.connections import OpenFiles
from gateway.state.keeper import StateFigures, nothing_kept

_SETTING = "admin.listen"


class WorkersAdmin(MultiService):
    """Listens for operators, and asks the workers what they want to know.

    :param endpoint: where it listens.
    :param workers: called for the workers.
    :param threshold: of the supervisor's own log.
    :param inherited: from the process that this one succeeds.
    :param kept: called for how the supervisor keeps the state.
    :ivar managed: the workers as one gateway.
    """

    def __init__(
        self,
        settings: Settings,
        endpoint: str,
        reactor: Any,
        workers: Callable[[], Sequence[ManagedWorker]],
        threshold: LogThreshold,
        inherited: Inheritance,
        kept: Callable[[], StateFigures | None] = nothing_kept,
    ) -> None:
        super().__init__()
        self._name = listener_name(_SETTING, endpoint)
        budget = memory_budget()
        self.managed = ManagedWorkers(
            reactor,
            workers,
            threshold,
            OpenFiles(time.monotonic),
            lambda: _own(budget, kept()),
            kept,
        )
        self.managed.setServiceParent(self)
        admin = settings.admin
        self._access = AccessControl(
            admin.token, is_loopback(endpoint), admin.hosts, reactor.seconds
        )
        site = AdminSite(Api(self.managed, self._access), reactor)
        sockets = inherited.sockets(_SETTING, endpoint)
        self._waits = bool(sockets)
        self._listener = ListenerService(reactor, endpoint, site, _SETTING, sockets)
        self._listener.setServiceParent(self)

    def startService(self) -> None:
        """Listen; on inherited sockets not before :meth:`accept`.

        :raises CannotListen: with the setting, its value and the reason.
        """
        super().startService()
        if self._waits:
            self._listener.accept_from(())

    def accept(self) -> None:
        """All workers are ready: answer in place of the process before this one."""
        self._waits = False
        self._listener.accept_from(range(len(self._listener.descriptors)))

    @property
    def descriptors(self) -> Descriptors:
        """The listening sockets, for a successor."""
        return {self._name: self._listener.descriptors}

    def reconfigure(self, settings: Settings) -> None:
        """Let in whom changed settings let in."""
        self._access.reconfigure(settings.admin.token, settings.admin.hosts)

    def leave(self) -> None:
        """A successor goes on with the sockets."""
        self._listener.leave()


def _own(budget: int | None, kept: StateFigures | None) -> list[Family]:
    """The supervisor's own part of the metrics."""
    return families([*process_metrics(read_process(), budget), *state_metrics(kept)])
