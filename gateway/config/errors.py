"""The errors of a configuration: each is one line with its path, and all are reported at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class SettingError(Exception):
    """One error in a configuration, before its file's name is known.

    :param parts: the path of the setting, its value as it may be shown, and what is expected.
    """

    def __init__(self, *parts: str) -> None:
        super().__init__(*parts)
        self.parts = parts


class SettingErrors(list[SettingError]):
    """The errors found so far: the operator sees all of them at once."""

    def add(self, *parts: str) -> None:
        """Add an error of these parts, see :class:`SettingError`."""
        self.append(SettingError(*parts))

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Add an error that is raised within the block, and go on behind it."""
        try:
            yield
        except SettingError as error:
            self.append(error)


class ConfigError(ValueError):
    """A configuration cannot be used; ``str()`` has one line for each error.

    :param source: the name of the file.
    :param parts: as those of :class:`SettingError`.
    :ivar lines: one line for each error: source, path, value, what is expected.
    """

    def __init__(self, source: str, *parts: str) -> None:
        self.lines = [_line(source, parts)]
        super().__init__(self.lines[0])

    @classmethod
    def of(cls, source: str, errors: Sequence[SettingError]) -> ConfigError:
        """The error for all of these, at least one."""
        error = cls(source)
        error.lines = list(dict.fromkeys(_line(source, each.parts) for each in errors))
        error.args = ("\n".join(error.lines),)
        return error

    @property
    def summary(self) -> str:
        """The first line, and how many more there are."""
        more = len(self.lines) - 1
        return self.lines[0] + (f" (and {more} more; --check names them all)" if more else "")


def join_path(path: str, key: object) -> str:
    """The path of a mapping's member."""
    return f"{path}.{key}" if path else str(key)


def _line(source: str, parts: Sequence[str]) -> str:
    """One line whatever the file holds: a key may contain line breaks and terminal codes."""
    text = ": ".join(part for part in (source, *parts) if part)
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
