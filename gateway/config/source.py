"""YAML text to plain values: safe types only, no key given twice, errors with line and column."""

from __future__ import annotations

import re
from typing import Any

import yaml

from gateway.config.errors import MistakeError

TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"
MERGE_TAG = "tag:yaml.org,2002:merge"
# More than a character or an escape, and not the parser's own '<stream end>'.
_QUOTED = re.compile(r"""(?<=\s)(['"])(?!<[a-z ]+>)[^'"]{3,}\1""")


class _Loader(yaml.SafeLoader):
    """A SafeLoader to which dates are text: no setting is one, and bad ones raise ValueError."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse(text: str) -> Any:
    """The document's value; None when it is empty. Raises MistakeError."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _refuse_repeated_keys(node, "", set())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise MistakeError(_position(error.problem_mark), _problem(error)) from None
    except yaml.reader.ReaderError as error:
        raise MistakeError(f"character {error.position + 1}", "not allowed in YAML") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise MistakeError("not usable as YAML", type(error).__name__) from None


def join_path(path: str, key: object) -> str:
    """`path` extended by a mapping's key."""
    return f"{path}.{key}" if path else str(key)


def _refuse_repeated_keys(node: yaml.Node, path: str, seen: set[int]) -> None:
    if id(node) in seen:  # an alias, possibly to a parent
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _refuse_repeated_keys(item, f"{path}[{index}]", seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE_TAG:
                line = key.start_mark.line + 1
                here = join_path(path, key.value)
                if key.value in lines:
                    where = f"first in line {lines[key.value]}, again in line {line}"
                    raise MistakeError(here, f"given twice, {where}; expected once")
                lines[key.value] = line
                _refuse_repeated_keys(value, here, seen)


def _position(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _problem(error: yaml.MarkedYAMLError) -> str:
    # A quoted word may be a piece of a secret (`key: *abc` is an alias to YAML); a character not.
    problem = _QUOTED.sub("(text)", error.problem or "cannot be parsed")
    context = error.context or ""
    harmless = context and not re.search(r"['\"]", context)
    return f"not valid YAML: {problem}" + (f", {context}" if harmless else "")
