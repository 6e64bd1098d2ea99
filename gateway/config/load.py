"""Loads a configuration file: reads it, parses the YAML, checks types, applies rules.

Only safe YAML types are allowed, and no key may be given twice.  Syntax errors have line and
column.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import yaml
from msgspec import inspect
from yaml.constructor import ConstructorError

from gateway.config.environment import SETTING, Environment, read_environment
from gateway.config.errors import ConfigError, SettingError, SettingErrors, join_path
from gateway.config.presets import filled_in
from gateway.config.rules import apply_rules
from gateway.config.settings import Settings
from gateway.config.validation import ShapeCheck, variable_hint

#: A member or an index of a path such as accounts[0].key.
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_SHAPE = inspect.type_info(Settings)
_TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"
_MERGE_TAG = "tag:yaml.org,2002:merge"
#: More than a character or an escape, and not the parser's own '<stream end>'.
_QUOTED = re.compile(r"""(?<=\s)(['"])(?!<[a-z ]+>)[^'"]{3,}\1""")


def read_text(path: str) -> str:
    """The text of a file.

    :raises ConfigError: when it cannot be read or is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(path, f"byte {error.start + 1}", "not UTF-8 text") from None


class Loaded(NamedTuple):
    """A configuration that is right.

    :ivar settings: its settings.
    :ivar value: the plain value that the text holds for them.
    :ivar environ: the variables that it could name.
    """

    settings: Settings
    value: Any
    environ: Environment


def load_settings(text: str, environ: Mapping[str, str], source: str) -> Settings:
    """The settings that a text describes.

    :param environ: the variables that the text may name.
    :param source: the file's name for messages.
    :raises ConfigError: when the text is not right.
    """
    return load(text, environ, source).settings


def load(text: str, environ: Mapping[str, str], source: str) -> Loaded:
    """The settings that a text describes, with what they were made of.

    An account that is disabled and not right is left out: its variables need not be set.

    :raises ConfigError: when the text is not right.
    """
    errors = SettingErrors()
    with errors.collect():
        value = parse(text)
        variables = read_environment(value, environ, errors)
        if not errors:  # or all the variables of an unreadable file would be missing
            settings, value = _load({} if value is None else value, variables, errors)
        if not errors:
            return Loaded(settings, value, variables)
    raise ConfigError.of(source, errors)


def _load(value: Any, environ: Mapping[str, str], errors: SettingErrors) -> tuple[Settings, Any]:
    """Convert the parsed value; the result is of no use when there are errors."""
    if isinstance(value, dict) and isinstance(value.get(SETTING), str):
        value = {**value, SETTING: [value[SETTING]]}
    checked = ShapeCheck(environ, errors).check(_SHAPE, value, "")
    _check_upstreams(checked, errors)
    for entry in checked.get("accounts", ()):
        entry.update(filled_in(entry))
    try:
        settings = msgspec.convert(checked, Settings)
    except msgspec.ValidationError as error:  # a type that ShapeCheck does not know fully
        if not errors:
            raise SettingError(str(error)) from None
        return Settings(), value
    broken = SettingErrors()
    settings = apply_rules(settings, broken)
    known = [error.parts[0] for error in errors]
    for each in broken:
        path, *parts, words = each.parts
        if not any(_is_within(each, above) for above in known):
            errors.add(path, *parts, words + variable_hint(_at(value, path), environ))
    return _without_unusable(settings, value, errors)


def _check_upstreams(checked: dict[str, Any], errors: SettingErrors) -> None:
    accounts, simulator = checked.get("accounts"), checked.get("simulator")
    if accounts and simulator is not None:
        words = "expected either accounts or the simulator, got both; remove one of them"
        errors.add("simulator", words)
    # The simulator is the default only without a file: a file whose accounts were removed by
    # mistake must not make the gateway serve simulated answers.
    if not accounts and simulator is None:
        words = "none; expected at least one account, or 'simulator: {accounts: 2}' in their place"
        errors.add("accounts", f"{words} to try the gateway without any")


def _without_unusable(
    settings: Settings, value: Any, errors: SettingErrors
) -> tuple[Settings, Any]:
    """Leave out the accounts that are disabled and not right, with their errors."""
    unusable = {
        index
        for index, account in enumerate(settings.accounts)
        if not account.enabled and any(_is_within(e, f"accounts[{index}]") for e in errors)
    }
    if not unusable:
        return settings, value
    errors[:] = [
        error
        for error in errors
        if not any(_is_within(error, f"accounts[{index}]") for index in unusable)
    ]
    kept = [index for index in range(len(settings.accounts)) if index not in unusable]
    accounts = tuple(settings.accounts[index] for index in kept)
    entries = [value["accounts"][index] for index in kept]
    return msgspec.structs.replace(settings, accounts=accounts), {**value, "accounts": entries}


def _is_within(error: SettingError, path: str) -> bool:
    """Whether it is about the value at a path, or about a part of it."""
    where = error.parts[0]
    return where == path or where.startswith((f"{path}.", f"{path}["))


def _at(value: Any, path: str) -> Any:
    """The part of the file's value at the path of an error; None when there is none."""
    for name, index in _STEP.findall(path):
        try:
            value = value[int(index)] if index else value[name]
        except (LookupError, TypeError):
            return None
    return value


# --- YAML ----------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads dates as text: no setting is one, and bad ones raise ValueError."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError):
            # A number of thousands of digits; `!!int x`, `!!int`, `!!bool x`, `!!timestamp x`.
            problem = "found a value that cannot be read"
            raise ConstructorError(None, None, problem, node.start_mark) from None


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse(text: str) -> Any:
    """The value of a YAML document; None when it is empty.

    :raises SettingError: when the text is not such a document.
    """
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
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingError(place, _problem(error), _hint(error, text)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SettingError(f"line {line}", "holds a character that YAML does not allow") from None
    except RecursionError:
        raise SettingError("not usable as YAML", "nested too deeply") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise SettingError("not usable as YAML", type(error).__name__) from None


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
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE_TAG:
                line = key.start_mark.line + 1
                here = join_path(path, key.value)
                if key.value in lines:
                    where = f"first in line {lines[key.value]}, again in line {line}"
                    raise SettingError(here, f"given twice, {where}; expected once")
                lines[key.value] = line
                _refuse_repeated_keys(value, here, seen)


def _problem(error: yaml.MarkedYAMLError) -> str:
    # A quoted word may be a part of a secret (`key: *abc` is an alias to YAML); a character not.
    problem = _QUOTED.sub("(text)", error.problem or "cannot be parsed")
    context = error.context or ""
    harmless = context and not re.search(r"['\"]", context)
    return f"not valid YAML: {problem}" + (f", {context}" if harmless else "")


def _hint(error: yaml.MarkedYAMLError, text: str) -> str:
    """How to correct an error that is common in configurations; "" for the others."""
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
