"""Turns a configuration file into Settings: parse, check against the types, apply the rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import inspect

from gateway.config.environment import whence
from gateway.config.errors import ConfigError, MistakeError
from gateway.config.presets import additions
from gateway.config.rules import apply_rules
from gateway.config.settings import Settings
from gateway.config.shape import ShapeCheck
from gateway.config.source import parse

# A member or an index of a path such as accounts[0].key.
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_SHAPE = inspect.type_info(Settings)


def read_settings(path: str, environ: Mapping[str, str]) -> Settings:
    """The settings in the file at `path`."""
    return load_settings(read_text(path), environ, path)


def read_text(path: str) -> str:
    """What stands in the file at `path`. Raises ConfigError."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(path, f"byte {error.start + 1}", "not UTF-8 text") from None


def load_settings(text: str, environ: Mapping[str, str], source: str) -> Settings:
    """The settings that `text` describes; `source` is the file's name for messages."""
    try:
        value = parse(text)
        checked = ShapeCheck(environ).check(_SHAPE, {} if value is None else value, "")
        _check_upstreams(checked)
        for entry in checked.get("accounts", ()):
            entry.update(additions(entry))
        return _applied(msgspec.convert(checked, Settings), value, environ)
    except MistakeError as mistake:
        raise ConfigError(source, *mistake.parts) from None
    except msgspec.ValidationError as error:  # a type that ShapeCheck does not know fully
        raise ConfigError(source, str(error)) from None


def _applied(settings: Settings, value: Any, environ: Mapping[str, str]) -> Settings:
    try:
        return apply_rules(settings)
    except MistakeError as mistake:
        path, *parts, words = mistake.parts
        raise MistakeError(path, *parts, words + whence(_at(value, path), environ)) from None


def _at(value: Any, path: str) -> Any:
    """What the file holds at a path of the messages; None when that is nothing."""
    for name, index in _STEP.findall(path):
        try:
            value = value[int(index)] if index else value[name]
        except (LookupError, TypeError):
            return None
    return value


def _check_upstreams(checked: dict[str, Any]) -> None:
    accounts, simulator = checked.get("accounts"), checked.get("simulator")
    if accounts and simulator is not None:
        words = "expected either accounts or the simulator, got both; remove one of them"
        raise MistakeError("simulator", words)
    # Only a start without any file means the simulator: a file that lost its accounts must not
    # quietly serve invented answers.
    if not accounts and simulator is None:
        words = "none; expected at least one account, or 'simulator: {accounts: 2}' in their place"
        raise MistakeError("accounts", f"{words} to try the gateway without any")
