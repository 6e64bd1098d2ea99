"""`${NAME}`, `${NAME:-default}` and `$${` in the text values of a configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_REFERENCE = re.compile(
    r"""
      (?P<escape> \$\$\{ )
    | \$\{ (?P<name> [A-Za-z_][A-Za-z0-9_]* ) (?: :- (?P<default> [^}]* ) )? \}
    | (?P<broken> \$\{ )
    """,
    re.VERBOSE,
)


class SubstitutionError(Exception):
    """A reference that cannot be replaced: what stands there (shown to anyone) and why not."""

    def __init__(self, shown: str, reason: str) -> None:
        super().__init__(shown, reason)
        self.shown = shown
        self.reason = reason


def substitute(text: str, environ: Mapping[str, str]) -> str:
    """`text` with its references replaced; as in a shell, `:-` also covers an empty variable."""
    unset: dict[str, None] = {}

    def replace(match: re.Match[str]) -> str:
        if match["escape"]:
            return "${"
        if match["broken"]:
            # What follows is not shown: it may be a secret that somebody put in braces.
            reason = "expected ${NAME} or ${NAME:-default}, or $${ for a literal ${"
            raise SubstitutionError("${", reason)
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
        raise SubstitutionError(shown, f"{reason}, or ${{{first}:-default}}")
    return replaced


def whence(given: Any, environ: Mapping[str, str]) -> str:
    """Where to mend a value that the file takes from elsewhere; "" when it stands in the file."""
    names = references(given, environ) if isinstance(given, str) else []
    return f"; it comes from the environment variable {' and '.join(names)}" if names else ""


def references(text: str, environ: Mapping[str, str]) -> list[str]:
    """The variables whose values are in `text` after `substitute`, each once, in order."""
    names = {
        match["name"]: None
        for match in _REFERENCE.finditer(text)
        if match["name"] and (match["default"] is None or environ.get(match["name"]))
    }
    return list(names)
