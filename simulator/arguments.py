"""Plausible input for a tool: from its schema, and from what the user put in quotes."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from simulator.items import Item

_QUOTED = re.compile(r'"([^"\n]+)"|“([^”\n]+)”|`([^`\n]+)`|(?<!\w)\'([^\'\n]+)\'(?!\w)')
_PLACE = re.compile(r"\b(?:in|for|of|at)\s+([A-Z][\w-]*(?:\s+[A-Z][\w-]*)*)")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])")
_DEPTH = 6


def quoted_values(text: str) -> list[str]:
    """What the text has in double, single, back or curly quotes, in order."""
    return [next(part for part in match.groups() if part) for match in _QUOTED.finditer(text)]


def without_quoted(text: str, keep: Collection[str] = ()) -> str:
    """The text with its quoted values blanked out, but for some."""

    def blank(match: re.Match[str]) -> str:
        return match.group() if match.group()[1:-1] in keep else " " * len(match.group())

    return _QUOTED.sub(blank, text)


def function_arguments(tool: Item, asked: str, round_number: int) -> str:
    """JSON arguments that satisfy the required part of a function tool's schema."""
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
    def __init__(self, schema: dict[str, Any], asked: str, round_number: int) -> None:
        self._root = schema
        self._asked = asked
        self._round = round_number
        self._quoted = self._quoted_from_round()

    def _quoted_from_round(self) -> Iterator[str]:
        """The quoted values, starting with one further on in every round."""
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
        """The schema behind `$ref` and the first non-null choice of a union."""
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
