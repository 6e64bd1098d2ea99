"""The one exception of the configuration: its str() is the line the operator reads."""

from __future__ import annotations


class ConfigError(ValueError):
    """A mistake in the configuration; `str()` is one line: source, path, value, what is allowed."""
