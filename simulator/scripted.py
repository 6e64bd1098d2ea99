"""The simulator's own model: calls tools when asked to, and recalls what was said before.

Its answers quote the conversation it was given, so that a lost thread shows in the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.arguments import custom_input, function_arguments
from simulator.items import CALL_TYPES, CALLS_ANSWERED_BY, Item, text_of, type_of
from simulator.memory import (
    Memory,
    asks_to_recall,
    clipped,
    is_spoken_by_user,
    listed,
    quote,
    tool_outputs,
)
from simulator.model import ModelTurn, custom_tool_call, function_call, message
from simulator.orders import Batch, ordered_calls

# Orders stand at the beginning of a message; the rest of a long one is not searched for them.
_READ = 4000


class ScriptedModel:
    """Reads the last user message as an order for tool calls, a question about earlier, or talk."""

    def respond(self, turn: ModelTurn) -> list[Item]:
        context = list(turn.context)
        if context and type_of(context[-1]) == "compaction_trigger":
            memory = Memory.of(turn, context)
            return [{"type": "compaction", "encrypted_content": turn.seal(memory.as_json())}]
        start = _last_user_message(context)
        asked = text_of(context[start].get("content"))[:_READ] if start is not None else ""
        since = context[start + 1 :] if start is not None else []
        batches = ordered_calls(asked, turn)
        rounds_done = _rounds(since)
        if rounds_done < len(batches):
            made = sum(len(batch) for batch in batches[:rounds_done])
            return _calls(batches[rounds_done], asked, made)
        return [message(self._answer(turn, asked, context[: start or 0], since))]

    def _answer(
        self, turn: ModelTurn, asked: str, before: Sequence[Item], since: Sequence[Item]
    ) -> str:
        memory = Memory.of(turn, before)
        sentences: list[str] = []
        outputs = tool_outputs(since)
        if outputs:
            sentences.append(f"The tools answered {listed(outputs)}.")
        if asks_to_recall(asked):
            sentences.append(memory.told(asked))
        if not sentences:
            number = len(memory.said) + 1
            sentences.append(
                f"You said {quote(clipped(asked))}. This is message {number} of this conversation."
            )
        return " ".join(sentences)


def _calls(batch: Batch, asked: str, made: int) -> list[Item]:
    """The calls of one round, after so many calls made before it."""
    calls: list[Item] = []
    for number, tool in enumerate(batch, start=made + 1):
        if tool.get("type") == "custom":
            call = custom_tool_call(tool["name"], custom_input(tool, asked, number))
        else:
            call = function_call(tool["name"], function_arguments(tool, asked, number))
        if tool.get("namespace"):
            call["namespace"] = tool["namespace"]
        calls.append(call)
    return calls


def _last_user_message(context: Sequence[Item]) -> int | None:
    for index in range(len(context) - 1, -1, -1):
        if is_spoken_by_user(context[index]):
            return index
    return None


def _rounds(since: Sequence[Item]) -> int:
    """How many batches of calls were made: runs of calls not interrupted by their outputs."""
    rounds, in_calls = 0, False
    for item in since:
        kind = type_of(item)
        if kind in CALL_TYPES and not in_calls:
            rounds += 1
            in_calls = True
        elif kind in CALLS_ANSWERED_BY:
            in_calls = False
    return rounds
