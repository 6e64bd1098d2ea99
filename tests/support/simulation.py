"""A simulator in a process of its own, for tests whose gateway is a process, too.

Faults, accounts and models go to it pickled; what it logged comes back the same way.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simulator import SimulatedAccount, Simulator, SimulatorService
from simulator.faults import Fault
from simulator.request_log import Endpoint, LoggedRequest, SocketRecord

ROOT = Path(__file__).resolve().parents[2]


class SimulatorProcess:
    """A running simulator. Options are those of ``Simulator``.

    >>> simulated = SimulatorProcess([SimulatedAccount("a", dialect="chatgpt")])
    >>> simulated.push("a", BreakAt("output"), to="create")
    """

    def __init__(self, accounts: Sequence[SimulatedAccount], **options: Any) -> None:
        self.accounts = {account.name: account for account in accounts}
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.simulation"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self._ask("start", list(accounts), options)

    def base_url(self, account: str) -> str:
        """The base URL of the account's service."""
        return str(self._ask("base_url", account))

    def key(self, account: str) -> str:
        return self.accounts[account].key

    def push(self, account: str, *faults: Fault, to: Endpoint | None = None) -> None:
        """Queue faults for the account's next requests, one each; ``to="upgrade"`` for upgrades."""
        self._ask("push", account, faults, to)

    def always(self, account: str, fault: Fault, to: Endpoint | None = None) -> None:
        """Apply this fault to every request for which none is queued."""
        self._ask("always", account, fault, to)

    def clear(self, account: str) -> None:
        """Remove all faults of the account."""
        self._ask("clear", account)

    def requests(self, account: str | None = None, to: Endpoint = "create") -> list[LoggedRequest]:
        """The logged requests to an endpoint, the oldest first."""
        logged: list[LoggedRequest] = self._ask("requests")
        return [each for each in logged if each.endpoint == to and account in (None, each.account)]

    def sockets(self, account: str | None = None) -> list[SocketRecord]:
        """The WebSockets of an account, the oldest first."""
        known: list[SocketRecord] = self._ask("sockets")
        return [each for each in known if account in (None, each.account)]

    def wait_for(self, condition: Callable[[], Any], timeout: float = 15.0) -> None:
        """Wait until a condition holds that asks the simulator."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "the simulator never got there"
            time.sleep(0.02)

    def drop_sockets(self) -> None:
        """Reset every open WebSocket, idle ones too."""
        self._ask("drop_sockets")

    def stop(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, name: str, *arguments: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with self._lock:
            pickle.dump((name, arguments), stdin)
            stdin.flush()
            failed, value = pickle.load(stdout)
        if failed:
            raise AssertionError(f"the simulator could not {name}: {value}")
        return value


class _Served:
    """The simulator in its process; each method is one question."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.service: SimulatorService

    def start(self, accounts: list[SimulatedAccount], options: dict[str, Any]) -> None:
        self.service = SimulatorService(
            Simulator(accounts, self._reactor, **options), self._reactor
        )
        self.service.startService()

    def base_url(self, account: str) -> str:
        return self.service.base_url(account)

    def push(self, account: str, faults: Sequence[Fault], to: Endpoint | None) -> None:
        self.service.simulator.faults.push(account, *faults, to=to)

    def always(self, account: str, fault: Fault, to: Endpoint | None) -> None:
        self.service.simulator.faults.always(account, fault, to)

    def clear(self, account: str) -> None:
        self.service.simulator.faults.clear(account)

    def requests(self) -> list[LoggedRequest]:
        return list(self.service.simulator.requests)

    def sockets(self) -> list[SocketRecord]:
        return list(self.service.simulator.sockets)

    def drop_sockets(self) -> None:
        self.service.drop_sockets()


def _serve() -> None:
    from twisted.internet import reactor
    from twisted.internet.threads import blockingCallFromThread

    anything: Any = reactor
    served = _Served(anything)

    def answer_questions() -> None:
        """Answer until the parent closes the pipe, also by its end."""
        try:
            while True:
                name, arguments = pickle.load(sys.stdin.buffer)
                try:
                    value = blockingCallFromThread(anything, getattr(served, name), *arguments)
                    answer = pickle.dumps((False, value))
                except Exception as error:
                    answer = pickle.dumps((True, repr(error)))
                sys.stdout.buffer.write(answer)
                sys.stdout.buffer.flush()
        except (EOFError, OSError):
            anything.callFromThread(anything.stop)

    anything.callInThread(answer_questions)
    anything.run()


if __name__ == "__main__":
    _serve()
