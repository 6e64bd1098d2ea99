"""Items of a conversation as plain dicts: ids, texts, calls and outputs, encrypted content."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable
from typing import Any

Item = dict[str, Any]

#: The types of calls that each type of tool output answers.
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

#: How encrypted content begins.
_PREFIX = "gAAAAA"
_TAG_BYTES = 32
_NONCE_BYTES = 16

#: How the ids of items begin, by their types.
ID_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "additional_tools": "at",
    "compaction": "cmp",
}


def new_id(prefix: str) -> str:
    """A random id like the API's: the prefix and 48 hex digits."""
    return f"{prefix}_{secrets.token_hex(24)}"


def type_of(item: Item) -> str:
    """The item's type; an item with a role and no type is a message."""
    kind = item.get("type")
    if isinstance(kind, str):
        return kind
    return "message" if "role" in item else ""


def input_items(value: object) -> list[Item]:
    """The ``input`` of a request as a list: a string is one user message."""
    if isinstance(value, str):
        content = [{"type": "input_text", "text": value}]
        return [{"type": "message", "role": "user", "content": content}]
    if isinstance(value, list):
        return [item for item in value if isinstance(item, dict)]
    return []


def as_stored(item: Item, seed: str) -> Item:
    """An input item as the API shows it later, with an id and full parts.

    :param seed: the same one gives the same id.
    """
    kind = type_of(item)
    digest = hashlib.sha256(seed.encode()).hexdigest()[:48]
    shown: Item = {**item, "type": kind}
    if not isinstance(item.get("id"), str):
        shown["id"] = f"{ID_PREFIXES.get(kind, 'item')}_{digest}"
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
    """All tools: the request's and those of ``additional_tools`` items, namespaces flattened.

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


class ContentCipher:
    """The encrypted content of one account; no other account accepts it.

    It is signed, not hidden: tests can read it.

    :param key: the account's key.
    """

    def __init__(self, key: str) -> None:
        self._key = hashlib.sha256(b"simulator content " + key.encode()).digest()

    def encrypt(self, value: Any) -> str:
        """The text for a JSON value."""
        payload = secrets.token_bytes(_NONCE_BYTES) + json.dumps(value).encode()
        return _armoured(self._tag(payload) + payload)

    def decrypt(self, text: str) -> Any:
        """The value of a text.

        :raises ValueError: when the text was altered, cut or issued by another account.
        """
        encoded = text.removeprefix(_PREFIX).encode()
        signed = base64.b64decode(encoded, altchars=b"-_", validate=True)
        tag, payload = signed[:_TAG_BYTES], signed[_TAG_BYTES:]
        # Several base64 texts decode to the same bytes; only the issued one is accepted.
        if text != _armoured(signed) or not hmac.compare_digest(tag, self._tag(payload)):
            raise ValueError("not issued by this account")
        return json.loads(payload[_NONCE_BYTES:])

    def issued(self, text: str) -> bool:
        """Whether this account issued the text."""
        try:
            self.decrypt(text)
        except ValueError:
            return False
        return True

    def _tag(self, payload: bytes) -> bytes:
        return hmac.new(self._key, payload, hashlib.sha256).digest()


def _armoured(signed: bytes) -> str:
    return _PREFIX + base64.urlsafe_b64encode(signed).decode()
