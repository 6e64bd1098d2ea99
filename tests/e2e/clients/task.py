"""What the Python clients' programs share: their task, the tool, and what they print."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Task:
    """Where to connect, in which mode of the client, and what to say to the model.

    :ivar prompts: one conversation's, in order.
    :ivar ran: the numbers that the tool was called with, in order.
    """

    base_url: str
    key: str
    prompts: list[str]
    mode: str
    model: str
    ran: list[int] = field(default_factory=list)

    def record_round(self, number: int) -> str:
        """Record that a round was run."""
        self.ran.append(number)
        return f"round-{number} ran"


def perform(run: Callable[[Task], list[str]]) -> None:
    """Run the task in each of its modes; print a line each, for the test to read.

    :param run: holds the conversation, and returns what the model answered to each prompt.
    """
    given = json.loads(os.environ["E2E_TASK"])
    models: dict[str, str] = given.pop("models")
    for mode, model in models.items():
        task = Task(**given, mode=mode, model=model)
        try:
            outcome = {"texts": run(task), "ran": task.ran}
        except Exception:
            outcome = {"error": traceback.format_exc(limit=-3), "ran": task.ran}
        sys.stdout.write(json.dumps({"mode": mode, **outcome}) + "\n")
        sys.stdout.flush()
