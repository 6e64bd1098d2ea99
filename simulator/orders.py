"""What a user orders in plain words: which tools to call, how often, one by one or at once."""

from __future__ import annotations

import re
from collections.abc import Sequence

from simulator.arguments import without_quoted
from simulator.items import Item
from simulator.memory import asks_to_recall
from simulator.model import ModelTurn

#: Tools to call at once.
Batch = tuple[Item, ...]

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
_SHELL = re.compile(r"\b(?:shell|commands?)\b", re.IGNORECASE)
_SHELL_TOOL = re.compile(r"exec|shell|bash|command", re.IGNORECASE)


def ordered_calls(asked: str, turn: ModelTurn) -> list[Batch]:
    """The tools the user asked for, a batch for each round."""
    named = _forced(turn) or _named_tools(asked, turn.tools)
    choice = turn.request.get("tool_choice")
    if choice == "none" or not turn.tools:
        return []
    if not named:
        if not (_ASKS_TOOL.search(asked) or choice == "required"):
            return []
        named = [_any_tool(asked, turn.tools)]
    calls = (named * _times(asked))[:_MAX_CALLS]
    parallel = turn.request.get("parallel_tool_calls") is not False
    if parallel and _PARALLEL.search(asked):
        return [tuple(calls)]
    return [(tool,) for tool in calls]


def _forced(turn: ModelTurn) -> list[Item]:
    choice = turn.request.get("tool_choice")
    name = choice.get("name") if isinstance(choice, dict) else None
    return [tool for tool in turn.tools if name is not None and tool.get("name") == name]


def _named_tools(asked: str, tools: Sequence[Item]) -> list[Item]:
    """The tools the user mentions, in the order of mention; a common word needs a verb before."""
    names = {tool["name"] for tool in tools}
    unquoted = without_quoted(asked, keep=names)
    found: list[tuple[int, Item]] = []
    for tool in tools:
        name = re.escape(tool["name"])
        is_plain_word = tool["name"].isalpha() or asks_to_recall(asked)
        before = rf"\b{_VERB}\b[^.?!]*?" if is_plain_word else ""
        match = re.search(rf"{before}(?<![\w.])({name})(?!\w)", unquoted, re.IGNORECASE)
        if match:
            found.append((match.start(1), tool))
    return [tool for _, tool in sorted(found, key=lambda pair: pair[0])]


def _any_tool(asked: str, tools: Sequence[Item]) -> Item:
    """The tool for a user who names none: the shell if they speak of one, else the first."""
    shells = [tool for tool in tools if _SHELL_TOOL.search(tool["name"])]
    return shells[0] if shells and _SHELL.search(asked) else tools[0]


def _times(asked: str) -> int:
    match = _TIMES.search(asked)
    if match is None:
        return 1
    word = (match.group(1) or match.group(2)).lower()
    if word.isdigit():
        return int(word[:4])
    return {"once": 1, "twice": 2, "thrice": 3}.get(word) or _COUNTS.index(word)
