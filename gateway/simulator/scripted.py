"""The simulator's own model: calls tools when asked to, and recalls what was said before.

Its answers quote the conversation it was given, so that a lost thread shows in the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.simulator.arguments import custom_input, function_arguments, quoted_values
from gateway.simulator.items import CALL_TYPES, CALLS_ANSWERED_BY, Item, text_of, type_of
from gateway.simulator.model import ModelTurn, custom_tool_call, function_call, message

_COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_MAX_CALLS = 200
_VERB = r"(?:call|use|run|invoke|execute|try)"
_TIMES = re.compile(
    rf"\b(\d+|{'|'.join(_COUNTS)})\s+(?:more\s+)?(?:times|rounds|calls)\b|\b(once|twice|thrice)\b",
    re.IGNORECASE,
)
_ASKS_TOOL = re.compile(
    rf"\b{_VERB}\b[^.?!]*?\b(?:tools?|functions?|shell|commands?)\b", re.IGNORECASE
)
_PARALLEL = re.compile(r"\bin parallel\b|\bat once\b|\bsimultaneously\b", re.IGNORECASE)
_RECALL = re.compile(
    r"\b(?:what|which|repeat|recall|remind|remember|list|quote|summari[sz]e)\b[^.!?]*?"
    r"\b(?:did|was|were|said|asked|told|mentioned|first|last|before|earlier|previous(?:ly)?|"
    r"results?|code ?words?|password|conversation|so far|my name)\b",
    re.IGNORECASE,
)
_CODE_WORD = re.compile(
    r"\bcode ?word\b(?:\s+\w+){0,3}?\s*(?:is|=|:)\s*[\"'“`]?([\w-]+)", re.IGNORECASE
)
_CLIP = 400
_RECALLED = 60


@dataclass(frozen=True)
class _Plan:
    """Batches of tools to call, one batch a round."""

    batches: tuple[tuple[Item, ...], ...] = ()


class ScriptedModel:
    """Reads the last user message as an order for tool calls, a question about earlier, or talk."""

    def respond(self, turn: ModelTurn) -> list[Item]:
        context = list(turn.context)
        if context and type_of(context[-1]) == "compaction_trigger":
            memory = _Memory.of(turn, context)
            return [{"type": "compaction", "encrypted_content": turn.seal(memory.as_json())}]
        start = _last_user_message(context)
        asked = text_of(context[start].get("content")) if start is not None else ""
        since = context[start + 1 :] if start is not None else []
        plan = _plan(asked, turn)
        rounds_done = _rounds(since)
        if rounds_done < len(plan.batches):
            batch = plan.batches[rounds_done]
            return _calls(batch, asked, rounds_done, plan)
        return [message(self._answer(turn, asked, context[: start or 0], since))]

    def _answer(
        self, turn: ModelTurn, asked: str, before: Sequence[Item], since: Sequence[Item]
    ) -> str:
        memory = _Memory.of(turn, before)
        sentences: list[str] = []
        outputs = _tool_outputs(since)
        if outputs:
            sentences.append("The tools answered: " + ", ".join(map(_quote, outputs)) + ".")
        if asks_to_recall(asked):
            sentences.append(memory.told(asked))
        if not sentences:
            number = len(memory.said) + 1
            sentences.append(f"You said {_quote(asked)}. This is turn {number} of what I know.")
        return " ".join(sentences)


@dataclass(frozen=True)
class _Memory:
    """What was said and what tools answered, in a context or in its compacted form."""

    said: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, turn: ModelTurn, context: Sequence[Item]) -> _Memory:
        said: list[str] = []
        outputs: list[str] = []
        for item in context:
            if type_of(item) == "compaction":
                summary = turn.unseal(item.get("encrypted_content") or "")
                said += summary["said"]
                outputs += summary["outputs"]
            elif _is_spoken_by_user(item):
                said.append(_clip(text_of(item.get("content"))))
            elif type_of(item) in CALLS_ANSWERED_BY:
                outputs.append(_clip(text_of(item.get("output"))))
        return cls(tuple(said), tuple(outputs))

    def as_json(self) -> dict[str, tuple[str, ...]]:
        return {"said": self.said, "outputs": self.outputs}

    def told(self, asked: str) -> str:
        if not self.said and not self.outputs:
            return "I know of nothing said earlier in this conversation."
        sentences: list[str] = []
        words = [match.group(1) for text in self.said for match in _CODE_WORD.finditer(text)]
        if words and re.search(r"\bcode ?word\b", asked, re.IGNORECASE):
            sentences.append(f"The code word is {words[-1]}.")
        if self.said:
            first = f"You first said {_quote(self.said[0])}"
            later = self.said[1:][-_RECALLED:]
            sentences.append(first + "".join(f", then {_quote(text)}" for text in later) + ".")
        if self.outputs:
            results = ", ".join(_quote(text) for text in self.outputs[-_RECALLED:])
            sentences.append(f"Tools answered {results}.")
        return " ".join(sentences)


def asks_to_recall(text: str) -> bool:
    """Whether the text asks about earlier turns."""
    return _RECALL.search(text) is not None


def _plan(asked: str, turn: ModelTurn) -> _Plan:
    """Which tools the user asked for, in which rounds."""
    named = _forced(turn) or _named_tools(asked, turn.tools)
    choice = turn.request.get("tool_choice")
    if choice == "none" or not turn.tools:
        return _Plan()
    if not named:
        if not (_ASKS_TOOL.search(asked) or choice == "required"):
            return _Plan()
        named = list(turn.tools[:1])
    calls = (named * _times(asked))[:_MAX_CALLS]
    parallel = turn.request.get("parallel_tool_calls") is not False
    if parallel and _PARALLEL.search(asked):
        return _Plan((tuple(calls),))
    return _Plan(tuple((tool,) for tool in calls))


def _forced(turn: ModelTurn) -> list[Item]:
    choice = turn.request.get("tool_choice")
    name = choice.get("name") if isinstance(choice, dict) else None
    return [tool for tool in turn.tools if name is not None and tool.get("name") == name]


def _named_tools(asked: str, tools: Sequence[Item]) -> list[Item]:
    """The tools the user mentions, in the order of mention; a common word needs a verb before."""
    unquoted = asked
    for value in quoted_values(asked):
        if value not in {tool["name"] for tool in tools}:
            unquoted = unquoted.replace(value, " " * len(value))
    found: list[tuple[int, Item]] = []
    for tool in tools:
        name = re.escape(tool["name"])
        is_plain_word = tool["name"].isalpha() or asks_to_recall(asked)
        before = rf"\b{_VERB}\b[^.?!]*?" if is_plain_word else ""
        match = re.search(rf"{before}(?<![\w.])({name})(?!\w)", unquoted, re.IGNORECASE)
        if match:
            found.append((match.start(1), tool))
    return [tool for _, tool in sorted(found, key=lambda pair: pair[0])]


def _times(asked: str) -> int:
    match = _TIMES.search(asked)
    if match is None:
        return 1
    word = (match.group(1) or match.group(2)).lower()
    if word.isdigit():
        return int(word[:4])
    return {"once": 1, "twice": 2, "thrice": 3}.get(word) or _COUNTS.index(word)


def _calls(batch: Sequence[Item], asked: str, rounds_done: int, plan: _Plan) -> list[Item]:
    calls: list[Item] = []
    made = sum(len(one) for one in plan.batches[:rounds_done])
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
        if _is_spoken_by_user(context[index]):
            return index
    return None


def _is_spoken_by_user(item: Item) -> bool:
    """A user's own message, not the surroundings a client wraps in tags."""
    if type_of(item) != "message" or item.get("role") != "user":
        return False
    text = text_of(item.get("content")).lstrip()
    return not text.startswith(("<environment_context>", "<user_instructions>", "# AGENTS.md"))


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


def _tool_outputs(items: Sequence[Item]) -> list[str]:
    found = [text_of(item.get("output")) for item in items if type_of(item) in CALLS_ANSWERED_BY]
    return [_clip(text) for text in found]


def _clip(text: str) -> str:
    return text if len(text) <= _CLIP else text[:_CLIP] + "…"


def _quote(text: str) -> str:
    return f'"{text}"'
