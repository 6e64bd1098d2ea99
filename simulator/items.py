"""Items of a conversation as plain dicts: ids, texts, and which output answers which call."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from typing import Any

Item = dict[str, Any]

#: What a tool output answers, and how the API's messages name the two sides.
CALLS_ANSWERED_BY: dict[str, tuple[str, ...]] = {
    # Older clients answer a local shell call with a function call output.
    "function_call_output": ("function_call", "local_shell_call"),
    "custom_tool_call_output": ("custom_tool_call",),
    "tool_search_output": ("tool_search_call",),
    "local_shell_call_output": ("local_shell_call",),
    "shell_call_output": ("shell_call",),
    "apply_patch_call_output": ("apply_patch_call",),
    "computer_call_output": ("computer_call",),
}
CALL_TYPES = frozenset(call for calls in CALLS_ANSWERED_BY.values() for call in calls)


def new_id(prefix: str) -> str:
    """An id nobody else has: `prefix_` and 48 hex digits, like the API's."""
    return f"{prefix}_{secrets.token_hex(24)}"


def spoken(item_type: str) -> str:
    """The name of an item type as the API's messages write it: `function call output`."""
    return item_type.replace("_", " ")


def type_of(item: Item) -> str:
    """The item's type; a role without a type is an easy message."""
    kind = item.get("type")
    if isinstance(kind, str):
        return kind
    return "message" if "role" in item else ""


def input_items(value: object) -> list[Item]:
    """The `input` of a request as a list: a string is one user message."""
    if isinstance(value, str):
        content = [{"type": "input_text", "text": value}]
        return [{"type": "message", "role": "user", "content": content}]
    if isinstance(value, list):
        return [item for item in value if isinstance(item, dict)]
    return []


_INPUT_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "additional_tools": "at",
    "compaction": "cmp",
}


def as_stored(item: Item, seed: str) -> Item:
    """An input item as the API shows it later: an id (the same for the same seed), full parts."""
    kind = type_of(item)
    digest = hashlib.sha256(seed.encode()).hexdigest()[:48]
    shown: Item = {**item, "type": kind}
    if not isinstance(item.get("id"), str):
        shown["id"] = f"{_INPUT_PREFIXES.get(kind, 'item')}_{digest}"
    if kind == "message":
        shown.setdefault("status", "completed")
        if isinstance(item.get("content"), str):
            part = "output_text" if item.get("role") == "assistant" else "input_text"
            shown["content"] = [{"type": part, "text": item["content"]}]
    return shown


def text_of(value: object) -> str:
    """The plain text inside a message content or a tool output (a string or a list of parts)."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [part.get("text", "") for part in value if isinstance(part, dict)]
        return " ".join(part for part in parts if isinstance(part, str) and part)
    return ""


def estimated_tokens(value: object) -> int:
    """A rough token count (four characters each), so that usage grows with the context."""
    characters, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            characters += len(part)
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
        else:
            characters += 1
    return (characters + 3) // 4


def pieces(text: str) -> list[str]:
    """The text cut before every word, so that the pieces joined are the text again."""
    return re.findall(r"\s*\S+\s*$|\s*\S+|\s+", text)


def tools_of(request_tools: object, context: Iterable[Item]) -> list[Item]:
    """Every tool on offer: top-level ones and those of `additional_tools` items, namespaces opened.

    A later definition of a name replaces an earlier one.
    """
    found: dict[tuple[str | None, str], Item] = {}
    lists: list[object] = [request_tools]
    lists += [item.get("tools") for item in context if type_of(item) == "additional_tools"]
    for tools in lists:
        for tool in _flat(tools, None):
            found[tool.get("namespace"), str(tool["name"])] = tool
    return list(found.values())


def _flat(tools: object, namespace: str | None) -> Iterable[Item]:
    for tool in tools if isinstance(tools, list) else []:
        if not isinstance(tool, dict):
            continue
        if tool.get("type") == "namespace":
            yield from _flat(tool.get("tools"), tool.get("name"))
        elif tool.get("type") in ("function", "custom") and isinstance(tool.get("name"), str):
            yield {**tool, "namespace": namespace} if namespace else tool
