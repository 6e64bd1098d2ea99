"""The variables that a configuration may name: those of the process, and those of files.

The files have the syntax of systemd's ``EnvironmentFile=``.  A file wins over the process, which
got its variables when it started: systemd may have read an older version of the same file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.config.errors import SettingError, SettingErrors
from gateway.config.validation import substitute

SETTING = "environment_file"

#: Before the name of a file that need not exist, as with systemd.
_OPTIONAL = "-"

#: Reading a device would never end, and no file of variables is larger.
_FILE_BYTES = 1024 * 1024

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EXPORT = re.compile(r"export[ \t]+")

#: What a backslash takes its meaning from within double quotes.
_ESCAPED = '"\\`$'


class Environment(Mapping[str, str]):
    """Variables by name.

    :param process: those of the process.
    :param files: those of the files, which win.
    :param warnings: a sentence about each file that others can read.
    """

    def __init__(
        self,
        process: Mapping[str, str],
        files: Mapping[str, str] | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self._process = process
        self._files = files or {}
        self.warnings = tuple(warnings)

    def __getitem__(self, name: str) -> str:
        value = self._files.get(name)
        return self._process[name] if value is None else value

    def __iter__(self) -> Iterator[str]:
        return iter({**self._process, **self._files})

    def __len__(self) -> int:
        return len({**self._process, **self._files})

    def origin(self, names: Sequence[str]) -> str:
        """Where the values of these variables come from, for the operator."""
        kinds: dict[str, list[str]] = {}
        for name in names:
            kind = SETTING if name in self._files else "environment"
            kinds.setdefault(kind, []).append(name)
        return " and ".join(f"{kind} {', '.join(found)}" for kind, found in kinds.items())


def read_environment(value: Any, process: Mapping[str, str], errors: SettingErrors) -> Environment:
    """The variables of the process and of the files that a configuration names.

    :param value: the whole configuration as YAML has it; its types are checked elsewhere.
    :param process: the variables of the process; names of files may refer to them.
    :param errors: takes the errors that are found.
    """
    given = value.get(SETTING) if isinstance(value, dict) else None
    names = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    variables: dict[str, str] = {}
    warnings: list[str] = []
    for name in names:
        if isinstance(name, str) and name:
            with errors.collect():
                variables.update(_read(substitute(name, process, SETTING), warnings))
    return Environment(process, variables, warnings)


def _read(name: str, warnings: list[str]) -> dict[str, str]:
    optional, path = name.startswith(_OPTIONAL), name.removeprefix(_OPTIONAL)
    try:
        with open(path, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise SettingError(SETTING, repr(path), "expected a file")
            content = file.read(_FILE_BYTES + 1)
    except FileNotFoundError as error:
        if optional:
            return {}
        raise SettingError(SETTING, repr(path), f"cannot be read: {error.strerror}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingError(SETTING, repr(path), f"cannot be read: {reason}") from None
    if len(content) > _FILE_BYTES:
        raise SettingError(SETTING, repr(path), f"expected at most {_FILE_BYTES} bytes")
    if about.st_mode & stat.S_IROTH:
        warnings.append(
            f"{SETTING}: every user of this machine can read '{path}'; chmod o-r would prevent that"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingError(SETTING, repr(path), f"line {line}", "not UTF-8 text") from None
    try:
        return parse_variables(text)
    except _BadLine as error:
        raise SettingError(SETTING, repr(path), f"line {error.line}", str(error)) from None


class _BadLine(ValueError):
    def __init__(self, line: int, words: str) -> None:
        super().__init__(words)
        self.line = line


def parse_variables(text: str) -> dict[str, str]:
    """The variables of a file; of several with one name the last.

    As systemd reads them: ``#`` and ``;`` begin comments at the begin of a line only, values may be
    quoted in whole or in part, a backslash at the end joins lines.  ``export`` before a name is
    skipped, as shells allow it.

    :raises ValueError: for a line without a name and a value; it never shows the line.
    """
    return dict(_Parser(text).variables())


class _Parser:
    """Goes through a text of variables."""

    def __init__(self, text: str) -> None:
        self._text = text.replace("\r\n", "\n")
        self._at = 0

    def variables(self) -> Iterator[tuple[str, str]]:
        while self._at < len(self._text):
            line = self._rest_of_line()
            stripped = line.strip(" \t")
            if not stripped or stripped[0] in "#;":
                self._at += len(line) + 1
                continue
            start = self._at
            name, equals, _ = line.partition("=")
            plain = _EXPORT.sub("", name.strip(" \t"), count=1)
            if not equals or not _NAME.fullmatch(plain):
                raise self._error(start, "expected NAME=value, or a comment that begins with #")
            self._at += len(name) + 1
            yield plain, self._value(start)

    def _rest_of_line(self) -> str:
        end = self._text.find("\n", self._at)
        return self._text[self._at : None if end < 0 else end]

    def _value(self, start: int) -> str:
        """The value up to the end of its line; only unquoted space around it is dropped."""
        found: list[str] = []
        kept = 0
        while self._at < len(self._text):
            char = self._text[self._at]
            self._at += 1
            if char == "\n":
                break
            if char in "\"'":
                found.append(self._quoted(char, start))
            elif char == "\\":
                found.append(self._escaped())
            elif char in " \t":
                if found:
                    found.append(char)
                continue
            else:
                found.append(char)
            kept = len(found)
        value = "".join(found[:kept])
        if "\0" in value:
            raise self._error(start, "a value cannot hold a NUL character")
        return value

    def _quoted(self, quote: str, start: int) -> str:
        found: list[str] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            self._at += 1
            if char == quote:
                return "".join(found)
            if char == "\\" and quote == '"':
                follows = self._text[self._at : self._at + 1]
                if follows and follows in _ESCAPED:
                    char = follows
                    self._at += 1
                elif follows == "\n":
                    self._at += 1
                    continue
            found.append(char)
        raise self._error(start, f"its {quote} is not closed; expected another one")

    def _escaped(self) -> str:
        follows = self._text[self._at : self._at + 1]
        self._at += 1
        return "" if follows == "\n" else follows

    def _error(self, at: int, words: str) -> _BadLine:
        return _BadLine(self._text.count("\n", 0, at) + 1, words)
