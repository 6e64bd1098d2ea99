"""Checks a file's values against the settings' types and says in plain words what is wrong.

msgspec would refuse the same values, but its messages lack the value, the allowed keys and the
likely spelling. The types and ranges are read from the Structs, so they are written down once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from msgspec import NODEFAULT, inspect

from gateway.config.environment import SubstitutionError, substitute, whence
from gateway.config.errors import SettingError, SettingErrors
from gateway.config.secrets import MASK, SECRET_FIELDS
from gateway.config.source import join_path

_LONGEST_SHOWN = 100


def show(value: Any) -> str:
    """A value as the operator wrote it, or only its kind when it is not a single value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, list)):
        return kind(value)
    if isinstance(value, int) and value.bit_length() > 200:
        return "a very large number"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def kind(value: Any) -> str:
    """What sort of value it is, in the words of the messages."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    kinds = {dict: "a mapping", list: "a list", str: "text", int: "a number", float: "a number"}
    return kinds.get(type(value), "something else")


class ShapeCheck:
    """Walks a value along a type, replacing `${NAME}`, and notes what is wrong.

    In place of a wrong value stands one that the rules may go on with: the default, or a text
    where there was to be one.
    """

    def __init__(self, environ: Mapping[str, str], mistakes: SettingErrors) -> None:
        self._environ = environ
        self._mistakes = mistakes

    def check(self, expected: inspect.Type, value: Any, path: str, secret: bool = False) -> Any:
        """`value` as msgspec.convert will accept it."""
        if isinstance(expected, inspect.UnionType):
            if value is None:
                return None
            inner = next(t for t in expected.types if not isinstance(t, inspect.NoneType))
            if isinstance(inner, inspect.IntType):  # every such setting is a limit
                return self._scalar(inner, value, path, secret, ", or null for no limit")
            return self.check(inner, value, path, secret)
        if isinstance(expected, inspect.StructType):
            return self._struct(expected, value, path)
        if isinstance(expected, inspect.DictType):
            self._container(dict, "a mapping of names to texts", value, path)
            checked = {}
            for name, item in value.items():
                with self._mistakes.noted():
                    here = join_path(path, self._text(name, path))
                    checked[name] = self.check(expected.value_type, item, here, secret)
            return checked
        if isinstance(expected, inspect.VarTupleType):
            return self._list(expected, value, path)
        return self._scalar(expected, value, path, secret)

    def _struct(self, expected: inspect.StructType, value: Any, path: str) -> dict[str, Any]:
        fields = {field.encode_name: field for field in expected.fields}
        names = ", ".join(fields)
        self._container(dict, f"a mapping with the keys {names}", value, path)
        for name in value:
            if name not in fields:
                close = difflib.get_close_matches(str(name), fields, 1)
                hint = f"did you mean '{close[0]}'? " if close else ""
                words = f"unknown key; {hint}expected {names}"
                self._mistakes.append(SettingError(join_path(path, name), words))
        checked = {}
        for name, field in fields.items():
            here = join_path(path, name)
            if name not in value:
                if field.required:
                    self._mistakes.append(SettingError(here, "missing; every entry needs it"))
                    checked[name] = here
            elif value[name] is None and self._means_default(field):
                continue  # `session:` with all its lines commented out
            else:
                if _is_text(field.type):
                    checked[name] = value[name] if isinstance(value[name], str) else here
                with self._mistakes.noted():
                    checked[name] = self.check(field.type, value[name], here, name in SECRET_FIELDS)
        return checked

    @staticmethod
    def _means_default(field: inspect.Field) -> bool:
        has_default = field.default is not NODEFAULT or field.default_factory is not NODEFAULT
        containers = (inspect.StructType, inspect.VarTupleType, inspect.DictType)
        return has_default and isinstance(field.type, containers)

    def _list(self, expected: inspect.VarTupleType, value: Any, path: str) -> list[Any]:
        self._container(list, "a list", value, path)
        if len(value) < (expected.min_length or 0):
            raise SettingError(path, "[]", "expected at least one entry")
        checked = []
        for index, item in enumerate(value):
            here = f"{path}[{index}]"
            with self._mistakes.noted():
                checked.append(self.check(expected.item_type, item, here))
            if len(checked) <= index:
                checked.append({"name": here} if _is_section(expected.item_type) else here)
        return checked

    @staticmethod
    def _container(wanted: type, words: str, value: Any, path: str) -> None:
        # The value itself is not shown: `keys: [sk-…]` is a secret in the wrong place.
        if not isinstance(value, wanted):
            raise SettingError(path, f"expected {words}, got {kind(value)}")

    def _text(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise SettingError(
                join_path(path, value), "expected text as the name; put it in quotes"
            )
        return value

    def _scalar(
        self, expected: inspect.Type, value: Any, path: str, secret: bool, besides: str = ""
    ) -> Any:
        given = value
        if isinstance(value, str):
            try:
                value = substitute(value, self._environ)
            except SubstitutionError as error:
                raise SettingError(path, error.shown, error.reason) from None
            if value != given and not isinstance(expected, (inspect.StrType, inspect.LiteralType)):
                value = _from_environment(value)
        words = _mismatch(expected, value)
        if words:
            words += besides + whence(given, self._environ)
            raise SettingError(path, MASK if secret else show(value), f"expected {words}")
        return value


def _is_section(expected: inspect.Type) -> bool:
    return isinstance(expected, inspect.StructType)


def _is_text(expected: inspect.Type) -> bool:
    """Whether it is a text, or one that may be left out."""
    types = expected.types if isinstance(expected, inspect.UnionType) else (expected,)
    return any(isinstance(each, inspect.StrType) for each in types)


def _from_environment(text: str) -> Any:
    """A number or a boolean out of a variable, which can only hold text."""
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
        fits = isinstance(value, str) and value in choices
        return "" if fits else _one_of(choices)
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


def _one_of(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"


def _range(expected: inspect.IntType | inspect.FloatType) -> str:
    above = f" above {expected.gt:g}" if expected.gt is not None else ""
    low = f" from {expected.ge:g}" if expected.ge is not None else above
    joint = " up to" if above else " to"
    high = f"{joint} {_plain(expected.le)}" if expected.le is not None else ""
    return low + high


def _plain(number: float) -> str:
    return f"{number:.0f}"
