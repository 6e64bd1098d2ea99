"""Checks a file's values against the types of the settings, and replaces ``${NAME}`` in them.

msgspec would refuse the same values, but without the value, the allowed keys and the likely
spelling in its messages. Types and ranges are read from the Structs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from msgspec import NODEFAULT, inspect

from gateway.config.errors import SettingError, SettingErrors, join_path
from gateway.config.settings import MASK, SECRET_FIELDS

_LONGEST_SHOWN = 100
#: `${NAME}`, `${NAME:-default}`, and `$${` for a literal `${`.
_REFERENCE = re.compile(
    r"""
      (?P<escape> \$\$\{ )
    | \$\{ (?P<name> [A-Za-z_][A-Za-z0-9_]* ) (?: :- (?P<default> [^}]* ) )? \}
    | (?P<broken> \$\{ )
    """,
    re.VERBOSE,
)


def _show(value: Any) -> str:
    """A value as the operator wrote it, or only its kind when it is not a single value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, list)):
        return _kind(value)
    if isinstance(value, int) and value.bit_length() > 200:
        return "a very large number"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def _kind(value: Any) -> str:
    """What sort of value it is, in the words of the messages."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    kinds = {dict: "a mapping", list: "a list", str: "text", int: "a number", float: "a number"}
    return kinds.get(type(value), "something else")


class ShapeCheck:
    """Walks a value along a type, replaces ``${NAME}``, and collects the errors.

    A wrong value is replaced so that the rules can go on: by the default, or by a text where a
    text is needed.

    :param environ: the variables that texts may name.
    :param errors: takes the errors that are found.
    """

    def __init__(self, environ: Mapping[str, str], errors: SettingErrors) -> None:
        self._environ = environ
        self._errors = errors

    def check(self, expected: inspect.Type, value: Any, path: str, secret: bool = False) -> Any:
        """The value as msgspec.convert accepts it.

        :param path: where the value stands in the file.
        :param secret: whether errors must not show it.
        :raises SettingError: when it is no mapping or list where one is needed, or a wrong scalar.
        """
        if isinstance(expected, inspect.UnionType):
            return self._union(expected, value, path, secret)
        if isinstance(expected, inspect.StructType):
            return self._struct(expected, value, path)
        if isinstance(expected, inspect.DictType):
            self._container(dict, "a mapping of names to texts", value, path)
            checked = {}
            for name, item in value.items():
                with self._errors.collect():
                    here = join_path(path, name)
                    if not isinstance(name, str):
                        raise SettingError(here, "expected text as the name; put it in quotes")
                    checked[name] = self.check(expected.value_type, item, here, secret)
            return checked
        if isinstance(expected, inspect.VarTupleType):
            return self._list(expected, value, path)
        return self._scalar(expected, value, path, secret)

    def _union(self, expected: inspect.UnionType, value: Any, path: str, secret: bool) -> Any:
        """One type or null, or a number or a word."""
        inner, *words = [t for t in expected.types if not isinstance(t, inspect.NoneType)]
        if len(words) < len(expected.types) - 1:
            if value is None:
                return None
            if isinstance(inner, inspect.IntType):  # every such setting is a limit
                return self._scalar(inner, value, path, secret, ", or null for no limit")
            return self.check(inner, value, path, secret)
        choices = [word for each in words for word in getattr(each, "values", ())]
        if value in choices:
            return value
        return self._scalar(inner, value, path, secret, f", or {' or '.join(choices)}")

    def _struct(self, expected: inspect.StructType, value: Any, path: str) -> dict[str, Any]:
        fields = {field.encode_name: field for field in expected.fields}
        names = ", ".join(fields)
        self._container(dict, f"a mapping with the keys {names}", value, path)
        for name in value:
            if name not in fields:
                close = difflib.get_close_matches(str(name), fields, 1)
                hint = f"did you mean '{close[0]}'? " if close else ""
                words = f"unknown key; {hint}expected {names}"
                self._errors.add(join_path(path, name), words)
        checked = {}
        for name, field in fields.items():
            here = join_path(path, name)
            if name not in value:
                if field.required:
                    self._errors.add(here, "missing; every entry needs it")
                    checked[name] = here
            elif value[name] is None and _may_be_empty(field):
                continue  # `session:` with all its lines commented out
            else:
                if _is_text(field.type):
                    checked[name] = value[name] if isinstance(value[name], str) else here
                with self._errors.collect():
                    checked[name] = self.check(field.type, value[name], here, name in SECRET_FIELDS)
        return checked

    def _list(self, expected: inspect.VarTupleType, value: Any, path: str) -> list[Any]:
        self._container(list, "a list", value, path)
        if len(value) < (expected.min_length or 0):
            raise SettingError(path, "[]", "expected at least one entry")
        checked = []
        for index, item in enumerate(value):
            here = f"{path}[{index}]"
            with self._errors.collect():
                checked.append(self.check(expected.item_type, item, here))
            if len(checked) <= index:
                is_section = isinstance(expected.item_type, inspect.StructType)
                checked.append({"name": here} if is_section else here)
        return checked

    @staticmethod
    def _container(wanted: type, words: str, value: Any, path: str) -> None:
        # The value itself is not shown: `keys: [sk-…]` is a secret in the wrong place.
        if not isinstance(value, wanted):
            raise SettingError(path, f"expected {words}, got {_kind(value)}")

    def _scalar(
        self, expected: inspect.Type, value: Any, path: str, secret: bool, besides: str = ""
    ) -> Any:
        given = value
        if isinstance(value, str):
            value = substitute(value, self._environ, path)
            if value != given and not isinstance(expected, (inspect.StrType, inspect.LiteralType)):
                value = _from_environment(value)
        words = _mismatch(expected, value)
        if words:
            words += besides + variable_hint(given, self._environ)
            raise SettingError(path, MASK if secret else _show(value), f"expected {words}")
        return value


def _may_be_empty(field: inspect.Field) -> bool:
    """Whether a container without a value means its default."""
    has_default = field.default is not NODEFAULT or field.default_factory is not NODEFAULT
    containers = (inspect.StructType, inspect.VarTupleType, inspect.DictType)
    return has_default and isinstance(field.type, containers)


def _is_text(expected: inspect.Type) -> bool:
    """Whether it is a text, or one that may be left out."""
    types = expected.types if isinstance(expected, inspect.UnionType) else (expected,)
    return any(isinstance(each, inspect.StrType) for each in types)


def _from_environment(text: str) -> Any:
    """The number or boolean that the text of a variable stands for, else the text."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _mismatch(expected: inspect.Type, value: Any) -> str:
    """What was expected, or "" when the value is right."""
    if isinstance(expected, inspect.BoolType):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(expected, inspect.LiteralType):
        choices = [str(choice) for choice in expected.values]
        if isinstance(value, str) and value in choices:
            return ""
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if isinstance(expected, inspect.StrType):
        if not isinstance(value, str):
            return "text; put it in quotes" if value is not None else "text"
        return "text that is not empty" if len(value) < (expected.min_length or 0) else ""
    assert isinstance(expected, (inspect.IntType, inspect.FloatType)), expected
    whole = isinstance(expected, inspect.IntType)
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    fits = (
        number
        and (expected.ge is None or value >= expected.ge)
        and (expected.gt is None or value > expected.gt)
        and (expected.le is None or value <= expected.le)
    )
    return "" if fits else ("a whole number" if whole else "a number") + _range(expected)


def _range(expected: inspect.IntType | inspect.FloatType) -> str:
    above = f" above {expected.gt:g}" if expected.gt is not None else ""
    low = f" from {expected.ge:g}" if expected.ge is not None else above
    joint = " up to" if above else " to"
    high = f"{joint} {expected.le:.0f}" if expected.le is not None else ""
    return low + high


# --- variables ------------------------------------------------------------------------------


def substitute(text: str, environ: Mapping[str, str], path: str) -> str:
    """The text without its references; as in a shell, ``:-`` also covers an empty variable.

    :param path: of the setting, for the error.
    :raises SettingError: a variable is not set, or a reference is broken.
    """
    unset: dict[str, None] = {}

    def replace(match: re.Match[str]) -> str:
        if match["escape"]:
            return "${"
        if match["broken"]:
            # The text is not shown: it may be a secret in braces.
            reason = "expected ${NAME} or ${NAME:-default}, or $${ for a literal ${"
            raise SettingError(path, "${", reason)
        name, default = match["name"], match["default"]
        value = environ.get(name)
        if default is not None:
            return value or default
        if value is None:
            unset[name] = None
            return ""
        return value

    replaced = _REFERENCE.sub(replace, text)
    if unset:
        first = next(iter(unset))
        shown = ", ".join(f"${{{name}}}" for name in unset)
        if len(unset) == 1:
            reason = f"the environment variable {first} is not set; expected one that is"
        else:
            reason = f"the environment variables {' and '.join(unset)} are not set; expected them"
        raise SettingError(path, shown, f"{reason}, or ${{{first}:-default}}")
    return replaced


def variable_hint(given: Any, environ: Mapping[str, str]) -> str:
    """Which variables a value comes from, for an error about it; "" when it stands in the file."""
    names = references(given, environ) if isinstance(given, str) else []
    return f"; it comes from the environment variable {' and '.join(names)}" if names else ""


def references(text: str, environ: Mapping[str, str]) -> list[str]:
    """The names of the variables that replace references in the text, in order."""
    names = {
        match["name"]: None
        for match in _REFERENCE.finditer(text)
        if match["name"] and (match["default"] is None or environ.get(match["name"]))
    }
    return list(names)
