"""The simulated model: calls tools when asked to, and recalls earlier turns.

Its answers quote the conversation that it was given, so that a lost thread shows in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from simulator.items import CALL_TYPES, CALLS_ANSWERED_BY, Item, text_of, type_of

#: Tools to call at the same time.
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

#: Only the beginning of a long message is searched for instructions.
_READ = 4000
_RECALL = re.compile(
    r"\b(?:what|which|who|repeat|recall|remind|list|quote|summari[sz]e|do you remember)\b[^.!?]*?"
    r"\b(?:did|was|were|said|asked|told|mentioned|gave|first|last|before|earlier|previous(?:ly)?|"
    r"results?|returned|answered|code ?words?|conversation|so far|my name)\b",
    re.IGNORECASE,
)
_FIRST = re.compile(r"\bfirst\b", re.IGNORECASE)
_LAST = re.compile(r"\b(?:last|before|previous(?:ly)?)\b", re.IGNORECASE)
_RESULT = re.compile(r"\b(?:results?|tools?|returned|answered)\b", re.IGNORECASE)
_ASKS_CODE_WORD = re.compile(r"\bcode ?words?\b", re.IGNORECASE)
_CODE_WORD = re.compile(
    r"\bcode ?word\b(?:\s+\w+){0,3}?\s*(?:is|=|:)\s*[\"'“`]?([\w-]+)", re.IGNORECASE
)
_CLIP = 400
_RECALLED = 60
_QUOTED = re.compile(r'"([^"\n]+)"|“([^”\n]+)”|`([^`\n]+)`|(?<!\w)\'([^\'\n]+)\'(?!\w)')
_PLACE = re.compile(r"\b(?:in|for|of|at)\s+([A-Z][\w-]*(?:\s+[A-Z][\w-]*)*)")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])")
_DEPTH = 6


@dataclass(frozen=True)
class ModelTurn:
    """One turn as the model sees it.

    :ivar context: all items of the conversation.
    :ivar tools: all tools that it may call.
    :ivar encrypt: encrypts a JSON value for the account.
    :ivar decrypt: the reverse.
    """

    context: Sequence[Item]
    tools: Sequence[Item]
    request: dict[str, Any]
    encrypt: Callable[[Any], str]
    decrypt: Callable[[str], Any]


class Model(Protocol):
    """Answers turns."""

    def respond(self, turn: ModelTurn) -> list[Item]:
        """The output items; ``id``, ``status`` and ``call_id`` may be left out."""
        ...


def message(text: str) -> Item:
    """An assistant message with one text part."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "role": "assistant", "content": [part]}


class ScriptedModel:
    """Calls the tools that the last user message asks for, else answers it."""

    def respond(self, turn: ModelTurn) -> list[Item]:
        """The next calls, an answer that quotes the conversation, or its compaction."""
        context = list(turn.context)
        if context and type_of(context[-1]) == "compaction_trigger":
            memory = Memory.of(turn, context)
            return [{"type": "compaction", "encrypted_content": turn.encrypt(memory.as_json())}]
        start = _last_user_message(context)
        asked = text_of(context[start].get("content"))[:_READ] if start is not None else ""
        since = context[start + 1 :] if start is not None else []
        batches = requested_calls(asked, turn)
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
            sentences.append(memory.recall(asked))
        if not sentences:
            number = len(memory.said) + 1
            sentences.append(
                f"You said {quote(clipped(asked))}. This is message {number} of this conversation."
            )
        return " ".join(sentences)


def _calls(batch: Batch, asked: str, made: int) -> list[Item]:
    """The calls of one round, after so many calls before it."""
    calls: list[Item] = []
    for number, tool in enumerate(batch, start=made + 1):
        if tool.get("type") == "custom":
            text = custom_input(tool, asked, number)
            call = {"type": "custom_tool_call", "name": tool["name"], "input": text}
        else:
            text = function_arguments(tool, asked, number)
            call = {"type": "function_call", "name": tool["name"], "arguments": text}
        if tool.get("namespace"):
            call["namespace"] = tool["namespace"]
        calls.append(call)
    return calls


def _last_user_message(context: Sequence[Item]) -> int | None:
    for index in range(len(context) - 1, -1, -1):
        if is_user_message(context[index]):
            return index
    return None


def _rounds(since: Sequence[Item]) -> int:
    """The number of rounds of calls: runs of calls without outputs between them."""
    rounds, in_calls = 0, False
    for item in since:
        kind = type_of(item)
        if kind in CALL_TYPES and not in_calls:
            rounds += 1
            in_calls = True
        elif kind in CALLS_ANSWERED_BY:
            in_calls = False
    return rounds


@dataclass(frozen=True)
class Memory:
    """The user messages and tool outputs of a context, also of its compacted form."""

    said: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, turn: ModelTurn, context: Sequence[Item]) -> Memory:
        """The memory of a context."""
        said: list[str] = []
        outputs: list[str] = []
        for item in context:
            if type_of(item) == "compaction":
                summary = turn.decrypt(item["encrypted_content"])
                said += summary.get("said", ())
                outputs += summary.get("outputs", ())
            elif is_user_message(item):
                said.append(clipped(text_of(item.get("content"))))
            elif type_of(item) in CALLS_ANSWERED_BY:
                outputs.append(clipped(text_of(item.get("output"))))
        return cls(tuple(said), tuple(outputs))

    def as_json(self) -> dict[str, tuple[str, ...]]:
        """The JSON of a compaction."""
        return {"said": self.said, "outputs": self.outputs}

    def recall(self, asked: str) -> str:
        """The answer to a question about earlier turns: the part it asks for, or everything."""
        words = [match.group(1) for text in self.said for match in _CODE_WORD.finditer(text)]
        sentences: list[str] = []
        if words and _ASKS_CODE_WORD.search(asked):
            sentences.append(f"The code word is {words[-1]}.")
        if self.said and _FIRST.search(asked):
            sentences.append(f"You first said {quote(self.said[0])}.")
        if self.said and _LAST.search(asked):
            sentences.append(f"Just before, you said {quote(self.said[-1])}.")
        if self.outputs and _RESULT.search(asked):
            sentences.append(f"Tools answered {listed(self.outputs)}.")
        return " ".join(sentences) or self._all()

    def _all(self) -> str:
        sentences: list[str] = []
        if self.said:
            sentences.append(f"You said {listed(self.said)}.")
        if self.outputs:
            sentences.append(f"Tools answered {listed(self.outputs)}.")
        return " ".join(sentences) or "I know of nothing said earlier in this conversation."


def asks_to_recall(text: str) -> bool:
    """Whether a text asks about earlier turns."""
    return _RECALL.search(text) is not None


def is_user_message(item: Item) -> bool:
    """Whether it is a user's own message, not the context that a client wraps in tags."""
    if type_of(item) != "message" or item.get("role") != "user":
        return False
    text = text_of(item.get("content")).lstrip()
    return not text.startswith(("<environment_context>", "<user_instructions>", "# AGENTS.md"))


def tool_outputs(items: Sequence[Item]) -> list[str]:
    """The texts of the tool outputs."""
    found = [text_of(item.get("output")) for item in items if type_of(item) in CALLS_ANSWERED_BY]
    return [clipped(text) for text in found]


def clipped(text: str) -> str:
    """The text, cut when it is long."""
    return text if len(text) <= _CLIP else text[:_CLIP] + "…"


def listed(texts: Sequence[str]) -> str:
    """The latest texts, in quotes."""
    return ", ".join(quote(text) for text in texts[-_RECALLED:])


def quote(text: str) -> str:
    """A text in quotes."""
    return f'"{text}"'


def requested_calls(asked: str, turn: ModelTurn) -> list[Batch]:
    """The tools that the user asks for, a batch for each round."""
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
    """The tools that the user mentions, in order; a plain word needs a verb before it."""
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
    """The tool when the user names none: a shell if the text mentions one, else the first."""
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


def quoted_values(text: str) -> list[str]:
    """The parts of a text in double, single, back or curly quotes, in order."""
    return [next(part for part in match.groups() if part) for match in _QUOTED.finditer(text)]


def without_quoted(text: str, keep: Collection[str] = ()) -> str:
    """The text with quoted values blanked out, except those to keep."""

    def blank(match: re.Match[str]) -> str:
        return match.group() if match.group()[1:-1] in keep else " " * len(match.group())

    return _QUOTED.sub(blank, text)


def function_arguments(tool: Item, asked: str, round_number: int) -> str:
    """JSON arguments with the required properties of a function tool's schema."""
    schema = tool.get("parameters")
    filler = _Filler(schema if isinstance(schema, dict) else {}, asked, round_number)
    return json.dumps(filler.fill_root(), ensure_ascii=False)


def custom_input(tool: Item, asked: str, round_number: int) -> str:
    """Free text for a custom tool; a script for one that runs JavaScript around a shell."""
    values = quoted_values(asked)
    text = values[(round_number - 1) % len(values)] if values else None
    if "exec_command" in str(tool.get("description", "")):
        command = json.dumps(text or f"echo round {round_number}")
        return f"const r = await tools.exec_command({{cmd: {command}}}); text(r.output)"
    return text or f"round {round_number} of {tool.get('name')}"


class _Filler:
    """Fills a schema with values from the user's text."""

    def __init__(self, schema: dict[str, Any], asked: str, round_number: int) -> None:
        self._root = schema
        self._asked = asked
        self._round = round_number
        self._quoted = self._quoted_values()

    def _quoted_values(self) -> Iterator[str]:
        """The quoted values; every round starts one further on."""
        values = quoted_values(self._asked)
        for offset in range(len(values)):
            yield values[(self._round - 1 + offset) % len(values)]

    def fill_root(self) -> Any:
        if self._root.get("type", "object") != "object":
            return {}
        return self._fill_object(self._root, 0)

    def _fill_object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        if not isinstance(properties, dict) or depth > _DEPTH:
            return {}
        required = schema.get("required")
        names = required if isinstance(required, list) else []
        return {
            name: self._fill(name, properties.get(name, {}), depth + 1)
            for name in names
            if isinstance(name, str)
        }

    def _fill(self, name: str, schema: Any, depth: int) -> Any:
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._choose(schema["enum"])
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        if kind == "object" or (kind is None and "properties" in schema):
            return self._fill_object(schema, depth)
        if kind == "array":
            return self._fill_array(name, schema, depth)
        if kind in ("integer", "number"):
            return self._number(schema, whole=kind == "integer")
        if kind in ("boolean", "null"):
            return True if kind == "boolean" else None
        return self._string(name)

    def _resolved(self, schema: Any) -> dict[str, Any]:
        """The schema behind ``$ref`` or the first choice of a union that is not null."""
        for _ in range(_DEPTH):
            if not isinstance(schema, dict):
                return {}
            choices = schema.get("anyOf") or schema.get("oneOf")
            if isinstance(schema.get("$ref"), str):
                schema = self._lookup(schema["$ref"])
            elif isinstance(choices, list):
                real = [one for one in choices if one != {"type": "null"}]
                schema = real[0] if real else {"type": "null"}
            else:
                return schema
        return {}

    def _lookup(self, reference: str) -> Any:
        found: Any = self._root
        for part in reference.removeprefix("#").strip("/").split("/"):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def _choose(self, values: list[Any]) -> Any:
        lowered = self._asked.lower()
        named = (one for one in values if isinstance(one, str) and one.lower() in lowered)
        return next(named, values[0])

    def _fill_array(self, name: str, schema: dict[str, Any], depth: int) -> list[Any]:
        if name in ("cmd", "command"):
            return ["sh", "-c", self._string(name)]
        return [] if depth > _DEPTH else [self._fill(name, schema.get("items", {}), depth + 1)]

    def _number(self, schema: dict[str, Any], *, whole: bool) -> float:
        match = _NUMBER.search(self._asked)
        value = float(match.group()) if match else 1.0
        low, high = schema.get("minimum"), schema.get("maximum")
        if isinstance(low, (int, float)):
            value = max(value, low)
        if isinstance(high, (int, float)):
            value = min(value, high)
        return int(value) if whole else value

    def _string(self, name: str) -> str:
        quoted = next(self._quoted, None)
        if quoted is not None:
            return quoted
        if name in ("cmd", "command", "script"):
            return f"echo round {self._round}"
        place = _PLACE.search(self._asked)
        if place and name in ("city", "location", "place", "country", "region"):
            return place.group(1)
        return f"{name} {self._round}"
