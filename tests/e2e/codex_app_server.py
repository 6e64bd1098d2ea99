"""Drives the app server of the real Codex: what an editor does, JSON-RPC in lines over a pipe."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.e2e.codex import NODE_MODULES, CodexClient, configured, kill_group
from tests.support.events import Json

SECONDS = 60.0


class CodexAppServer:
    """One process with one thread of conversation; a context manager.

    :ivar notices: what it said without being asked, in order.
    """

    def __init__(
        self, client: CodexClient, base_url: str, key: str, directory: Path, *, proxy: str
    ) -> None:
        binary = client.binary()
        assert binary is not None, f"{client} is not installed under {NODE_MODULES}"
        work, environment = configured(client, base_url, key, directory, proxy=proxy)
        self.notices: list[Json] = []
        self.thread = ""
        self._answers: dict[int, Json] = {}
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._errors = (directory / "app-server.log").open("w+")
        self._process = subprocess.Popen(
            [str(binary), "app-server"],
            cwd=work,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> CodexAppServer:
        self.ask("initialize", clientInfo={"name": "tests", "title": "tests", "version": "1"})
        self._send(method="initialized")
        self.thread = self.ask("thread/start")["thread"]["id"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        kill_group(self._process)
        self._process.wait(10)
        self._errors.close()

    # ---- what an editor does

    def start(self, text: str) -> str:
        """Begin a turn; returns its id."""
        answer = self.ask("turn/start", threadId=self.thread, input=_input(text))
        return str(answer["turn"]["id"])

    def steer(self, turn: str, text: str) -> None:
        """Say something to a turn that runs."""
        self.ask("turn/steer", threadId=self.thread, expectedTurnId=turn, input=_input(text))

    def interrupt(self, turn: str) -> None:
        """Stop a turn that runs."""
        self.ask("turn/interrupt", threadId=self.thread, turnId=turn)

    def wait_delta(self, turn: str, text: str) -> None:
        """Wait until so much of the model's message has been shown."""
        self.wait(lambda: text in "".join(self._deltas(turn)), f"{text!r} of turn {turn}")

    def wait_end(self, turn: str) -> Json:
        """Wait for the end of a turn, and return it."""
        self.wait(lambda: bool(self._ends(turn)), f"the end of turn {turn}")
        return self._ends(turn)[0]

    def messages(self, turn: str) -> list[str]:
        """The model's whole messages in a turn."""
        items = [each["item"] for each in self._of("item/completed", turn)]
        return [item["text"] for item in items if item["type"] == "agentMessage"]

    def errors(self) -> list[Json]:
        return [each["params"] for each in self.notices if each["method"] == "error"]

    def report(self) -> str:
        self._errors.seek(0)
        return "\n".join([*map(json.dumps, self.notices), self._errors.read()])

    # ---- JSON-RPC

    def ask(self, method: str, **params: Any) -> Json:
        """Call, and wait for the result."""
        number = next(self._numbers)
        self._send(id=number, method=method, params=params)
        self.wait(lambda: number in self._answers, f"an answer to {method}")
        answer = self._answers[number]
        assert "error" not in answer, f"{method} was refused: {answer}"
        result: Json = answer["result"]
        return result

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, f"Codex never came to {what}"
                self._changed.wait(left)

    def _send(self, **message: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._changed:
                if "method" in message:
                    self.notices.append(message)
                else:
                    self._answers[message["id"]] = message
                self._changed.notify_all()

    def _of(self, method: str, turn: str) -> list[Json]:
        notices = [each["params"] for each in self.notices if each["method"] == method]
        return [each for each in notices if each.get("turnId") == turn]

    def _deltas(self, turn: str) -> list[str]:
        return [each["delta"] for each in self._of("item/agentMessage/delta", turn)]

    def _ends(self, turn: str) -> list[Json]:
        ended = [e["params"]["turn"] for e in self.notices if e["method"] == "turn/completed"]
        return [each for each in ended if each["id"] == turn]


def _input(text: str) -> list[Json]:
    return [{"type": "text", "text": text}]
