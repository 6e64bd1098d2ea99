"""What a conversation contains, for a model that recalls it when asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.items import CALLS_ANSWERED_BY, Item, text_of, type_of
from simulator.model import ModelTurn

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


@dataclass(frozen=True)
class Memory:
    """What was said and what tools answered, in a context or in its compacted form."""

    said: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, turn: ModelTurn, context: Sequence[Item]) -> Memory:
        said: list[str] = []
        outputs: list[str] = []
        for item in context:
            if type_of(item) == "compaction":
                summary = turn.unseal(item["encrypted_content"])
                said += summary.get("said", ())
                outputs += summary.get("outputs", ())
            elif is_spoken_by_user(item):
                said.append(clipped(text_of(item.get("content"))))
            elif type_of(item) in CALLS_ANSWERED_BY:
                outputs.append(clipped(text_of(item.get("output"))))
        return cls(tuple(said), tuple(outputs))

    def as_json(self) -> dict[str, tuple[str, ...]]:
        return {"said": self.said, "outputs": self.outputs}

    def told(self, asked: str) -> str:
        """An answer to a question about earlier: what it names, or everything."""
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
    """Whether the text asks about earlier turns."""
    return _RECALL.search(text) is not None


def is_spoken_by_user(item: Item) -> bool:
    """A user's own message, not the surroundings a client wraps in tags."""
    if type_of(item) != "message" or item.get("role") != "user":
        return False
    text = text_of(item.get("content")).lstrip()
    return not text.startswith(("<environment_context>", "<user_instructions>", "# AGENTS.md"))


def tool_outputs(items: Sequence[Item]) -> list[str]:
    """The texts of the tool outputs among the items."""
    found = [text_of(item.get("output")) for item in items if type_of(item) in CALLS_ANSWERED_BY]
    return [clipped(text) for text in found]


def clipped(text: str) -> str:
    """The text, or the beginning of a long one."""
    return text if len(text) <= _CLIP else text[:_CLIP] + "…"


def listed(texts: Sequence[str]) -> str:
    """The latest of them, in quotes."""
    return ", ".join(quote(text) for text in texts[-_RECALLED:])


def quote(text: str) -> str:
    return f'"{text}"'
