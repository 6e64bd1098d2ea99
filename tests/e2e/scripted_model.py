"""The scripted model: what it says next follows from the transcript alone.

A user message "run N rounds into FILE" makes it call the client's shell tool N times, one call a
response; a user message with "recall" makes it list the tool outputs it can see. Because nothing is
counted elsewhere, a model that lost its history repeats itself, or says that history is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.events import Json, call_item, custom_call_item, reasoning_item, text_item
from tests.support.strict import Strict

#: How long Codex waits for a command, in milliseconds; what takes longer goes on beside.
_PATIENCE = '"yield_time_ms": 30000'
TASK = re.compile(r"run (\d+) rounds into (\S+)")


def task_prompt(rounds: int, path: object) -> str:
    """The user message that starts a tool loop."""
    return f"Please run {rounds} rounds into {path}"


def success_text(rounds: int) -> str:
    """What the model answers when it saw every round's output, in order."""
    return f"All {rounds} rounds ran in order."


def recall_text(rounds: int) -> str:
    """What the model answers to "recall" when it can see the outputs of these first rounds."""
    return "recalled: " + ", ".join(f"round-{number} ran" for number in range(1, rounds + 1))


class ScriptedModel:
    """The brain of a strict upstream. `transcripts` is what it was shown, turn by turn.

    Shell commands wait as long as there is a file `pause`.
    """

    def __init__(self) -> None:
        self.transcripts: list[list[Json]] = []
        self.pause: Path | None = None

    def __call__(self, transcript: list[Json], strict: Strict) -> list[Json]:
        self.transcripts.append(transcript)
        # Clients of these tests hold one conversation, so the last request is this turn's.
        tools = strict.requests[-1].body.get("tools") or []
        return [reasoning_item(strict.seal()), self._answer(transcript, tools)]

    def _answer(self, transcript: list[Json], tools: list[Json]) -> Json:
        start, instruction = _last_instruction(transcript)
        task = TASK.search(instruction)
        if task is None:
            return text_item("recalled: " + ", ".join(_results(transcript)))
        rounds, path = int(task.group(1)), task.group(2)
        results = _results(transcript[start:])
        for number, result in enumerate(results, 1):
            if result != f"round-{number} ran":
                return text_item(f"History is wrong: output {number} is {result!r}")
        if len(results) >= rounds:
            return text_item(success_text(rounds))
        offered = {(tool["type"], tool.get("name")) for tool in _all_tools(transcript, tools)}
        wait = f"while [ -e {self.pause} ]; do sleep 0.1; done; " if self.pause else ""
        return _call(len(results) + 1, path, wait, offered)


def _call(number: int, path: str, wait: str, offered: set[tuple[str, str | None]]) -> Json:
    command = json.dumps(f"{wait}echo round-{number} >> {path}; echo round-{number} ran")
    if ("function", "exec_command") in offered:
        return call_item(name="exec_command", arguments=f'{{"cmd": {command}, {_PATIENCE}}}')
    if ("custom", "exec") in offered:
        script = (
            f"const r = await tools.exec_command({{cmd:{command}, {_PATIENCE}}}); text(r.output)"
        )
        return custom_call_item(name="exec", text=script)
    if ("function", "record_round") in offered:
        return call_item(name="record_round", arguments=json.dumps({"number": number}))
    return text_item(f"No tool I know among {sorted(map(str, offered))}")


def _last_instruction(transcript: list[Json]) -> tuple[int, str]:
    for position in range(len(transcript) - 1, -1, -1):
        item = transcript[position]
        if item.get("role") == "user" and (TASK.search(_text(item)) or "recall" in _text(item)):
            return position, _text(item)
    return 0, ""


def _all_tools(transcript: list[Json], tools: list[Json]) -> Iterator[Json]:
    # The newest dialect of Codex brings its tools as an input item, grouped in namespaces.
    for group in (tools, *(item.get("tools", []) for item in transcript)):
        for tool in group:
            yield tool
            yield from tool.get("tools", ())


def _results(transcript: list[Json]) -> list[str]:
    """The last line of each tool output; Codex puts lines of its own before the command's."""
    outputs = [item for item in transcript if str(item.get("type")).endswith("_call_output")]
    return [_text(item).strip().rpartition("\n")[2] for item in outputs]


def _text(item: Json) -> str:
    """All text of a message or of a tool output, whichever of the wire's shapes it has."""
    content = item.get("output", item.get("content"))
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())
