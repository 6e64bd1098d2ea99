"""The exceptions of the configuration; `str(ConfigError)` is what the operator reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class SettingError(Exception):
    """A mistake found before it is known in which file: path, value as shown, what is allowed."""

    def __init__(self, *parts: str) -> None:
        super().__init__(*parts)
        self.parts = parts


class SettingErrors(list[SettingError]):
    """Those found so far: who mends a file wants to hear of all of them at once."""

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note a mistake that is raised within, and go on behind it."""
        try:
            yield
        except SettingError as mistake:
            self.append(mistake)


class ConfigError(ValueError):
    """A configuration cannot be used.

    `str()` has one line for each mistake: source, path, value, what is allowed; `summary` is the
    first of them, and how many more there are.
    """

    def __init__(self, source: str, *parts: str) -> None:
        self.lines = [_line(source, parts)]
        super().__init__(self.lines[0])

    @classmethod
    def of(cls, source: str, mistakes: Sequence[SettingError]) -> ConfigError:
        """All of these mistakes; at least one."""
        error = cls(source)
        error.lines = list(dict.fromkeys(_line(source, each.parts) for each in mistakes))
        error.args = ("\n".join(error.lines),)
        return error

    @property
    def summary(self) -> str:
        """One line."""
        more = len(self.lines) - 1
        return self.lines[0] + (f" (and {more} more; --check names them all)" if more else "")


def _line(source: str, parts: Sequence[str]) -> str:
    """One line whatever the file holds: a key may contain line breaks and terminal codes."""
    text = ": ".join(part for part in (source, *parts) if part)
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
