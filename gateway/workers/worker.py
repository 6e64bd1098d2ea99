"""A worker: the gateway in a process of its own, which accepts from its supervisor's sockets.

``python -m gateway.workers.worker NUMBER REACTOR`` is for supervisors only.  A worker gets its
settings over the link and logs where the supervisor does.  Signals are the supervisor's, but for
SIGTERM.  When the supervisor is gone, the worker lets its turns end and ends, too.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ReactorNotRunning
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LegacyLogObserverWrapper,
    Logger,
    globalLogBeginner,
)
from twisted.python.failure import Failure
from twisted.python.reflect import namedModule

from gateway.config import Settings
from gateway.daemon import allow_open_files, collect_rarely, on_second_stop
from gateway.inheritance import LINK, Inheritance, inherited
from gateway.log import LogFile, LogThreshold, log_observer
from gateway.service import GatewayService
from gateway.worker_link import Link, connect_link
from gateway.workers import orders
from gateway.workers.orders import (
    Reconfiguration,
    StopOrder,
    WorkerOrder,
    decode,
    encode,
)

_log = Logger(namespace="gateway.workers")

#: Signals that a terminal or an operator sends to all processes of the gateway.
_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

#: How long the supervisor may take to say what the worker is to do, in seconds.
_ORDER_SECONDS = 30.0

#: Makes the gateway of a worker.
MakeGateway = Callable[[Settings, Any, Inheritance], GatewayService]

#: Begins to log as an order says, from a level, with the worker's number in each line.
BeginLog = Callable[[WorkerOrder, LogThreshold, int], "LogFile | None"]


class Worker:
    """The worker's side of what its supervisor asks of it.

    :param reactor: clock, network and threads.
    :param inheritance: its sockets, link and number.
    :param begin_log: begins to log, and returns the file if it is one.
    :param make: makes the gateway.
    :ivar gateway: what serves clients, once it has started.
    :ivar log_file: what is logged to; None for standard output and syslog.
    """

    def __init__(
        self,
        reactor: Any,
        inheritance: Inheritance,
        begin_log: BeginLog,
        make: MakeGateway = GatewayService,
    ) -> None:
        self._reactor = reactor
        self._inheritance = inheritance
        self._begin_log = begin_log
        self._make = make
        self._stopping = False
        self._link: Link = inheritance.link or Link(reactor)
        self.gateway: GatewayService | None = None
        self.log_file: LogFile | None = None
        for method, handler in (
            (orders.RECONFIGURE, self._reconfigure),
            (orders.ACCEPT, self._accept),
            (orders.STOP, self._stop),
            (orders.ABANDON, self.abandon),
            (orders.REOPEN, self._reopen),
            (orders.PING, lambda _: b""),
        ):
            self._link.handle(method, handler)
        self._link.closed.addCallback(self._orphaned)

    def start(self) -> Deferred[None]:
        """Ask the supervisor for the order, and start.

        :return: fires when the worker can accept; never fails, because a worker that cannot start
            tells its supervisor why, and ends.
        """
        self._reactor.addSystemEventTrigger("before", "shutdown", self._shut_down)
        asked = self._link.call(orders.ORDER, seconds=_ORDER_SECONDS)
        started = asked.addCallback(self._started)
        return started.addErrback(self._cannot_start)

    def _started(self, payload: bytes) -> None:
        order = decode(payload, WorkerOrder)
        gateway = self._make(order.settings, self._reactor, self._inheritance)
        number = self._inheritance.worker or 0
        self.log_file = self._begin_log(order, gateway.threshold, number)
        self.gateway = gateway
        gateway.privilegedStartService()
        gateway.startService()
        self._listen_to(())
        collect_rarely()
        self._link.tell(orders.READY)

    def _cannot_start(self, failure: Failure) -> None:
        if self._stopping:
            return  # nobody waits for it any more
        line = failure.getErrorMessage()
        _log.failure("the worker cannot start", failure)

        def end(_: object) -> None:
            self._stop(encode(StopOrder()))

        self._link.call(orders.FAILED, encode(line)).addBoth(end)

    # ---- what the supervisor asks

    def _reconfigure(self, payload: bytes) -> None:
        wanted = decode(payload, Reconfiguration)
        if self.gateway is not None:
            self.gateway.reconfigure(wanted.settings, wanted.before)

    def _accept(self, payload: bytes) -> None:
        self._listen_to(decode(payload, list[int]))

    def _listen_to(self, places: Sequence[int]) -> None:
        if self.gateway is not None:
            self.gateway.listeners["listen"].accept_from(places)

    def _stop(self, payload: bytes) -> None:
        if self._stopping:
            return
        if self.gateway is not None:
            drain, order = self.gateway.drain, decode(payload, StopOrder)
            drain.handed_over = drain.has_successor = order.handed_over
        self._stopping = True
        with suppress(ReactorNotRunning):  # a signal was faster
            self._reactor.stop()

    def abandon(self, _: bytes = b"") -> None:
        """End the turns that run."""
        if self.gateway is not None:
            self.gateway.drain.abandon()

    def second_signal(self) -> None:
        """A signal to stop came while it stops: whether turns end is for the supervisor to say.

        A signal to the whole group of processes often comes after the supervisor's own order.
        """
        if not self._link.is_open:
            self.abandon()

    def _reopen(self, _: bytes) -> None:
        if self.log_file is not None:
            self.log_file.reopen()

    def _orphaned(self, link: Link) -> None:
        if not self._stopping:
            _log.error("the supervisor is gone: the worker ends once its turns have")
            self._stop(encode(StopOrder()))
            if self.gateway is not None:
                self.gateway.drain.handed_over = True  # the next supervisor can have the port

    def _shut_down(self) -> Deferred[Any]:
        """Let turns end before the reactor stops."""
        self._stopping = True
        gateway = self.gateway
        return succeed(None) if gateway is None else gateway.stopService()


def begin_log(order: WorkerOrder, threshold: LogThreshold, number: int) -> LogFile | None:
    """Log where the supervisor does; each line names the worker.

    :return: the file that is logged to, if it is one.
    """
    log, file = order.log, None
    if log.syslog is not None:
        from twisted.python.syslog import SyslogObserver

        emit: Any = SyslogObserver(f"{log.syslog} worker {number}").emit
        observer: ILogObserver = FilteringLogObserver(
            LegacyLogObserverWrapper(emit), [threshold.predicate]
        )
    else:
        file = None if log.path is None else LogFile(log.path, rotates=False)
        observer = log_observer(order.settings.log, file, threshold, number)
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    return file


def main(arguments: Sequence[str]) -> None:
    """Run a worker until it is told to stop.

    :param arguments: its number, and the module of the reactor.
    """
    number, reactor_module = int(arguments[0]), arguments[1]
    for each in _IGNORED:
        signal.signal(each, signal.SIG_IGN)
    namedModule(reactor_module).install()
    from twisted.internet import reactor as installed

    reactor: Any = installed
    allow_open_files()
    files = inherited(os.environ)
    link = Link(reactor)
    connect_link(reactor, files.of(LINK)[0], link)
    worker = Worker(reactor, Inheritance(files.descriptors, link, number), begin_log)
    reactor.callWhenRunning(worker.start)
    on_second_stop(reactor, worker.second_signal)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
