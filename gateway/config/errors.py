"""The exceptions of the configuration; `str(ConfigError)` is the line the operator reads."""

from __future__ import annotations


class ConfigError(ValueError):
    """A mistake in the configuration; `str()` is one line: source, path, value, what is allowed."""

    def __init__(self, source: str, *parts: str) -> None:
        super().__init__(_printable(": ".join(part for part in (source, *parts) if part)))


class MistakeError(Exception):
    """A mistake found before it is known in which file: path, value as shown, what is allowed."""

    def __init__(self, *parts: str) -> None:
        super().__init__(*parts)
        self.parts = parts


def _printable(text: str) -> str:
    """One line whatever the file holds: a key may contain line breaks and terminal codes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
