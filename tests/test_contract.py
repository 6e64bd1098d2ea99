"""The published words: operators' files, dashboards and programs go by them.

``tests/contract.txt`` lists them. A word may be added, and its line with it; one that is gone or
changed breaks somebody's set-up. ``python -m tests.test_contract`` writes the file anew.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import msgspec

from gateway.config import Settings
from gateway.protocol.errors import ApiError
from gateway.server.http_site import endpoints
from gateway.tap import Options
from gateway.turn.turn_log import AttemptRecord, TurnRecord

ROOT = Path(__file__).parent.parent
CONTRACT = Path(__file__).parent / "contract.txt"

#: Constructors of errors, and which of their arguments is the code.
CODES = {"ApiError": 3, "invalid_request": 2, "bad_gateway": 1}


def words() -> list[str]:
    """Every published word, each with its kind, sorted."""
    found = {
        *_options(),
        *_settings(msgspec.json.schema(Settings)),
        *_client_routes(),
        *_admin_side(),
        *_metrics(),
        *_log_fields(),
        *_source_words(),
    }
    return sorted(found)


def _options() -> Iterator[str]:
    for option in (*Options.optFlags, *Options.optParameters):
        yield f"option --{option[0]}"


def _settings(schema: dict[str, Any]) -> Iterator[str]:
    definitions = schema["$defs"]

    def walk(part: dict[str, Any], path: str) -> Iterator[str]:
        if "$ref" in part:
            part = definitions[part["$ref"].rpartition("/")[2]]
        for each in part.get("anyOf", ()):
            yield from walk(each, path)
        if isinstance(part.get("items"), dict):
            yield from walk(part["items"], f"{path}[]")
        if isinstance(part.get("additionalProperties"), dict):
            yield from walk(part["additionalProperties"], f"{path}.*")
        for choice in part.get("enum", ()):
            yield f"setting {path} = {choice}"
        for name, member in part.get("properties", {}).items():
            below = f"{path}.{name}" if path else name
            yield f"setting {below}"
            yield from walk(member, below)

    yield from walk(schema, "")


def _client_routes() -> Iterator[str]:
    for path, methods in endpoints(*[MagicMock() for _ in range(5)]).items():
        yield from (f"route {method} /v1{path}" for method in methods)


def _admin_side() -> Iterator[str]:
    description = json.loads((ROOT / "gateway" / "admin" / "openapi.json").read_text())
    for path, operations in description["paths"].items():
        yield from (f"admin route {method.upper()} {path}" for method in operations)
    for name, schema in description["components"]["schemas"].items():
        for member, described in schema.get("properties", {}).items():
            yield f"admin field {name}.{member}"
            for choice in described.get("enum", ()):
                yield f"admin field {name}.{member} = {choice}"


def _metrics() -> Iterator[str]:
    """A test of /metrics holds this page to what is there."""
    for row in (ROOT / "config" / "metrics.md").read_text().splitlines():
        if row.startswith("| `gateway_"):
            names, labels, *_ = (cell.strip() for cell in row.strip("|").split("|"))
            for name in re.findall(r"`(\w+)`", names):
                yield f"metric {name}{{{labels}}}"


def _log_fields() -> Iterator[str]:
    for record in (TurnRecord, AttemptRecord):
        for name in record.__annotations__:
            yield f"log field {record.__name__}.{name}"


def _source_words() -> Iterator[str]:
    sources = [*(ROOT / "gateway").rglob("*.py")]
    texts = [source.read_text() for source in sources]
    trees = [ast.parse(text) for text in texts]
    constants = dict(found for tree in trees for found in _constants(tree))
    for text in texts:
        yield from (f"header {name}" for name in re.findall(r"\bx-gateway-[a-z-]+[a-z]", text))
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield from (f"error code {code}" for code in _codes(node, constants))


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The names of a module that stand for a text."""
    for node in tree.body:
        match node:
            case ast.Assign([ast.Name(name)], ast.Constant(str(value))):
                yield name, value


def _codes(call: ast.Call, constants: dict[str, str]) -> Iterator[str]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    place = CODES.get(name)
    if place is None:
        return
    given = [*call.args[place : place + 1], *(k.value for k in call.keywords if k.arg == "code")]
    for value in given:
        match value:
            case ast.Constant(str(code)):
                yield code
            case ast.Name(name) if name in constants:
                yield constants[name]


def test_no_published_word_is_lost() -> None:
    known = set(CONTRACT.read_text().splitlines())
    found = set(words())
    assert not known - found, "published words are gone"
    assert not found - known, "new words need their line in contract.txt"


def test_codes_are_found_where_they_are_made() -> None:
    """Else the list would shrink to nothing without a word."""
    assert ApiError.bad_gateway("x", "y").code == "y"
    assert ApiError.invalid_request("x", None, "y").code == "y"
    assert ApiError(400, "t", "m", "y").code == "y"


if __name__ == "__main__":
    CONTRACT.write_text("".join(f"{word}\n" for word in words()))
