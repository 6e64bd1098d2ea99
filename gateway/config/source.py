"""YAML text to plain values: safe types only, no key given twice, errors with line and column."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from gateway.config.errors import SettingError

TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"
MERGE_TAG = "tag:yaml.org,2002:merge"
# More than a character or an escape, and not the parser's own '<stream end>'.
_QUOTED = re.compile(r"""(?<=\s)(['"])(?!<[a-z ]+>)[^'"]{3,}\1""")


class _Loader(yaml.SafeLoader):
    """A SafeLoader to which dates are text: no setting is one, and bad ones raise ValueError."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As it does, but whatever cannot be a value says where it stands."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError):
            # A number of thousands of digits; `!!int x`, `!!int`, `!!bool x`, `!!timestamp x`.
            problem = "found a value that cannot be read"
            raise ConstructorError(None, None, problem, node.start_mark) from None


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
        mark = error.problem_mark
        raise SettingError(_position(mark), _problem(error), _hint(error, text)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SettingError(f"line {line}", "holds a character that YAML does not allow") from None
    except RecursionError:
        raise SettingError("not usable as YAML", "nested too deeply") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise SettingError("not usable as YAML", type(error).__name__) from None


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
                    raise SettingError(here, f"given twice, {where}; expected once")
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


def _hint(error: yaml.MarkedYAMLError, text: str) -> str:
    """What helps against the mistakes that a configuration invites; "" for the others."""
    mark = error.problem_mark
    if mark is None:
        return ""
    line = "".join(text.splitlines()[mark.line : mark.line + 1])
    if line[mark.column : mark.column + 1] == "\t":
        return "expected spaces in place of the tab"
    if line[mark.column - 1 : mark.column + 1] == "${":
        return "expected quotes around ${NAME} inside {} and []"
    if "alias" in (error.problem or "") or "alias" in (error.context or ""):
        return "expected quotes around text that begins with *"
    return ""
