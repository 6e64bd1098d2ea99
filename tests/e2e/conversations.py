"""Many conversations at a time over real WebSockets, each checked word by word."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.weather import heard
from tests.support.events import Json
from tests.support.wsclient import WsClient

TURNS = 6
MODEL = "gpt-5.5"

#: Longest time, in seconds, that a client thinks before its next turn.
_THINKS = 0.6

#: Attempts of a client at one turn that broke off before its eyes.
_MAX_TRIES = 6

#: Seconds before it asks again; twice as long each time.
_BACKS_OFF = 0.1


@dataclass
class Try:
    """One ``response.create`` of a client, and what became of it.

    :ivar name: unique; also in the request's ``metadata``.
    :ivar sent: unix seconds.
    """

    name: str
    sent: float
    over: float = 0.0
    events: list[Json] = field(default_factory=list)

    @property
    def terminal(self) -> Json:
        return self.events[-1]

    @property
    def response_id(self) -> str | None:
        response = self.terminal.get("response") or {}
        return response.get("id")

    @property
    def had_output(self) -> bool:
        return any(event["type"].startswith("response.output") for event in self.events)


class Conversation:
    """One client's; how it names itself, and whether it keeps its responses, varies.

    :ivar tries: in order.
    :ivar faults: what went otherwise than it should.
    """

    def __init__(self, number: int, port: int) -> None:
        self.number = number
        self.tries: list[Try] = []
        self.faults: list[str] = []
        self._port = port
        self._thinks = random.Random(number)
        self._said: list[str] = []
        self._items: list[Json] = []
        self._previous: str | None = None
        self._members: dict[str, Any] = {"model": MODEL}
        self._headers: list[tuple[str, str]] = []
        self._reconnects = number % 4 in (0, 1)
        if number % 4 == 0:
            self._headers = [("thread-id", f"thread-{number}"), ("session-id", "all")]
        elif number % 4 == 1:
            self._members["prompt_cache_key"] = f"key-{number}"
        if number % 3 == 0:  # keeps nothing upstream, and brings sealed reasoning along
            self._members.update(
                store=False,
                reasoning={"effort": "low"},
                include=["reasoning.encrypted_content"],
            )

    def run(self) -> None:
        """Hold it from its first to its last turn."""
        try:
            client = self._connect()
            for turn in range(1, TURNS + 1):
                if turn == 4 and self._reconnects:
                    client.drop()
                    client = self._connect()
                    if not self._members.get("store", True):
                        self._previous = None  # nobody keeps it: the client brings it all
                time.sleep(self._thinks.uniform(0, _THINKS))
                if not self._turn(client, turn):
                    break
            client.drop()
        except Exception as error:
            self.faults.append(f"conversation {self.number}: {error!r}")

    def _connect(self) -> WsClient:
        return WsClient(self._port, headers=self._headers, timeout=60.0)

    def _turn(self, client: WsClient, turn: int) -> bool:
        words = f"conversation {self.number} turn {turn}"
        self._said.append(words)
        content = [{"type": "input_text", "text": words}]
        self._items.append({"type": "message", "role": "user", "content": content})
        new = self._items if self._previous is None else self._items[-1:]
        for again in range(_MAX_TRIES):
            name = f"{self.number}.{turn}.{again}"
            attempt = Try(name, time.time())
            self.tries.append(attempt)
            attempt.events = client.turn(
                input=new,
                previous_response_id=self._previous,
                metadata={"turn": name},
                **self._members,
            )
            attempt.over = time.time()
            if attempt.terminal["type"] == "response.completed":
                return self._check(attempt, turn)
            broken = attempt.terminal["type"] == "response.failed" and attempt.had_output
            if not broken:
                self.faults.append(f"turn {name} ended with {attempt.terminal}")
                return False
            time.sleep(_BACKS_OFF * 2**again)
        self.faults.append(f"turn {turn} of conversation {self.number} broke off each time")
        return False

    def _check(self, attempt: Try, turn: int) -> bool:
        response = attempt.terminal["response"]
        texts = [
            part["text"]
            for item in response["output"]
            if item["type"] == "message"
            for part in item["content"]
        ]
        expected = [heard(self._said, turn - 1)]
        if texts != expected:
            self.faults.append(f"turn {attempt.name}: expected {expected}, the model said {texts}")
        self._previous = response["id"]
        self._items += response["output"]
        return texts == expected


def hold(count: int, at_a_time: int, port: int) -> list[Conversation]:
    """Hold so many conversations, some at a time."""
    conversations = [Conversation(number, port) for number in range(count)]
    with ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(Conversation.run, conversations))
    return conversations
