"""Turns a configuration file into Settings: parse, check against the types, apply the rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import inspect

from gateway.config.environment import whence
from gateway.config.errors import ConfigError, SettingError, SettingErrors
from gateway.config.presets import additions
from gateway.config.rules import apply_rules
from gateway.config.settings import Settings
from gateway.config.source import parse
from gateway.config.validation import ShapeCheck

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
    return load(text, environ, source)[0]


def load(text: str, environ: Mapping[str, str], source: str) -> tuple[Settings, Any]:
    """The settings that `text` describes, and the value that stands in it for them.

    An account that is switched off, and could not be used, is in neither: nobody needs to set its
    variables.
    """
    mistakes = SettingErrors()
    with mistakes.noted():
        value = parse(text)
        value = {} if value is None else value
        settings, value = _load(value, environ, mistakes)
        if not mistakes:
            return settings, value
    raise ConfigError.of(source, mistakes)


def _load(value: Any, environ: Mapping[str, str], mistakes: SettingErrors) -> tuple[Settings, Any]:
    """The same of a value; what is returned is of no use when there are mistakes."""
    checked = ShapeCheck(environ, mistakes).check(_SHAPE, value, "")
    _check_upstreams(checked, mistakes)
    for entry in checked.get("accounts", ()):
        entry.update(additions(entry))
    try:
        settings = msgspec.convert(checked, Settings)
    except msgspec.ValidationError as error:  # a type that ShapeCheck does not know fully
        if not mistakes:
            raise SettingError(str(error)) from None
        return Settings(), value
    broken = SettingErrors()
    settings = apply_rules(settings, broken)
    known = [mistake.parts[0] for mistake in mistakes]
    mistakes += [
        _from_where(mistake, value, environ)
        for mistake in broken
        if not any(_is_within(mistake, path) for path in known)
    ]
    return _without_unusable(settings, value, mistakes)


def _from_where(mistake: SettingError, value: Any, environ: Mapping[str, str]) -> SettingError:
    path, *parts, words = mistake.parts
    return SettingError(path, *parts, words + whence(_at(value, path), environ))


def _without_unusable(
    settings: Settings, value: Any, mistakes: SettingErrors
) -> tuple[Settings, Any]:
    """Leave out the accounts that are switched off and not right, with their mistakes."""
    unusable = {
        index
        for index, account in enumerate(settings.accounts)
        if not account.enabled
        and any(_is_within(mistake, f"accounts[{index}]") for mistake in mistakes)
    }
    if not unusable:
        return settings, value
    mistakes[:] = [
        each
        for each in mistakes
        if not any(_is_within(each, f"accounts[{index}]") for index in unusable)
    ]
    kept = [index for index in range(len(settings.accounts)) if index not in unusable]
    accounts = tuple(settings.accounts[index] for index in kept)
    entries = [value["accounts"][index] for index in kept]
    return msgspec.structs.replace(settings, accounts=accounts), {**value, "accounts": entries}


def _is_within(mistake: SettingError, path: str) -> bool:
    """Whether it is about the value at a path, or about a part of it."""
    where = mistake.parts[0]
    return where == path or where.startswith((f"{path}.", f"{path}["))


def _at(value: Any, path: str) -> Any:
    """What the file holds at a path of the messages; None when that is nothing."""
    for name, index in _STEP.findall(path):
        try:
            value = value[int(index)] if index else value[name]
        except (LookupError, TypeError):
            return None
    return value


def _check_upstreams(checked: dict[str, Any], mistakes: SettingErrors) -> None:
    accounts, simulator = checked.get("accounts"), checked.get("simulator")
    if accounts and simulator is not None:
        words = "expected either accounts or the simulator, got both; remove one of them"
        mistakes.append(SettingError("simulator", words))
    # Only a start without any file means the simulator: a file that lost its accounts must not
    # quietly serve invented answers.
    if not accounts and simulator is None:
        words = "none; expected at least one account, or 'simulator: {accounts: 2}' in their place"
        mistakes.append(SettingError("accounts", f"{words} to try the gateway without any"))
