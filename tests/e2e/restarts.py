"""Restarts of the gateway under its clients: a process ends, the next has its address and state.

A client asks for a restart by fetching an address of the :class:`Restarter` in the middle of a tool
call; an upstream asks for one in the middle of an answer.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from tests.e2e.conftest import Scene
from tests.support.events import Json
from tests.support.gateway import Gateway

#: Longer than the flush interval, and the time that a busy machine takes for it.
FLUSHED = 0.8

#: To measure what it was like before: E2E_STATE_STORE=memory.
STORE = os.environ.get("E2E_STATE_STORE", "sqlite")

#: How long clients wait for each other, in seconds.
_MEETING_SECONDS = 30.0

#: Makes a gateway, in the place of the one before.
Start = Callable[[Gateway | None], Gateway]


class Restarter:
    """A gateway that is stopped and started anew as often as somebody asks for it.

    :param start: starts it.
    :ivar gateway: the process that runs now.
    :ivar restarts: how each was ended, in order.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self.gateway = start(None)
        self.restarts: list[str] = []
        self._lock = threading.Lock()
        self._meetings: dict[str, threading.Barrier] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Restarter:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            if not self.gateway.stopped:
                self.gateway.stop()

    def url(self, how: str, clients: int = 1) -> str:
        """The gateway is restarted once when so many clients have fetched it.

        All of them are answered when the next one listens.
        """
        self._meetings[how] = threading.Barrier(clients, partial(self.restart, how))
        return f"http://127.0.0.1:{self._server.server_port}/{how}"

    def fetched(self, how: str) -> None:
        """A client has fetched an address, and waits for the others."""
        try:
            self._meetings[how].wait(_MEETING_SECONDS)
        except threading.BrokenBarrierError:  # one of the clients has failed: go on without it
            with self._lock:
                if how not in self.restarts:
                    self._end(how)

    def restart(self, how: str) -> None:
        """Replace the process.

        :param how: ``stop``; ``kill``, when the state is written; or ``crash``, at once.
        """
        with self._lock:
            self._end(how)

    def restart_soon(self, how: str, restarted: Callable[[], object]) -> None:
        """Replace the process from now on.

        :param restarted: called when the next one listens.
        """

        def run() -> None:
            self.restart(how)
            restarted()

        threading.Thread(target=run, daemon=True).start()

    def _end(self, how: str) -> None:
        self.restarts.append(how)
        if how == "kill":
            time.sleep(FLUSHED)
        if how == "stop":
            self.gateway.stop()
        else:
            self.gateway.kill()
            self.gateway.check_log()
        self.gateway = self._start(self.gateway)


def restarter(scene: Scene, accounts: list[Json], **more: Any) -> Restarter:
    """The gateway of the test, which may be started anew."""

    def start(before: Gateway | None) -> Gateway:
        config = {"accounts": accounts, "state": {"store": STORE}, **more}
        gateway = Gateway(scene.directory, config, instead_of=before)
        scene.logs["the gateway's log"] = gateway.log
        return gateway

    return scene.enter(Restarter(start))


def _handler(restarter: Restarter) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                restarter.fetched(self.path.strip("/"))
            except Exception as error:
                self.send_error(500, repr(error))
                raise
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
