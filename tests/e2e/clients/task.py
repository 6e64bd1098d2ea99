"""What the Python clients' programs share: their task, the tool, and what they print."""

from __future__ import annotations

import json
import os
import sys
import traceback
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial


@dataclass(frozen=True)
class Task:
    """Where to connect, in which mode of the client, and what to say to the model.

    :ivar prompts: one conversation's, in order.
    :ivar ran: the numbers that the tool was called with, in order.
    :ivar events: by a call of the tool: an address that is asked for meanwhile, so that something
        happens to the gateway in the middle of the tool loop.
    """

    base_url: str
    key: str
    prompts: list[str]
    mode: str
    model: str
    ran: list[int] = field(default_factory=list)
    events: dict[str, str] = field(default_factory=dict)

    def record_round(self, number: int) -> str:
        """Record that a round was run."""
        self.ran.append(number)
        if str(number) in self.events:
            urllib.request.urlopen(self.events[str(number)], timeout=60).close()
        return f"round-{number} ran"


def perform(run: Callable[[Task], list[str]]) -> None:
    """Run the task in each of its modes; print a line each, for the test to read.

    :param run: holds the conversation, and returns what the model answered to each prompt.
    """
    given = json.loads(os.environ["E2E_TASK"])
    models: dict[str, str] = given.pop("models")
    at_once = len(models) if given.pop("at_once", False) else 1
    tasks = [Task(**given, mode=mode, model=model) for mode, model in models.items()]
    with ThreadPoolExecutor(at_once) as pool:
        for line in pool.map(partial(_outcome, run), tasks):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


def _outcome(run: Callable[[Task], list[str]], task: Task) -> str:
    try:
        outcome = {"texts": run(task), "ran": task.ran}
    except Exception:
        outcome = {"error": traceback.format_exc(limit=-3), "ran": task.ran}
    return json.dumps({"mode": task.mode, **outcome})
