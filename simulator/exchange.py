"""One request that was let in, as the endpoints see it, and how its query is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulator.engine import AccountEngine
from simulator.faults import Fault
from simulator.refusals import bad_request, invalid_type, invalid_value
from simulator.request_log import LoggedRequest

if TYPE_CHECKING:
    from simulator.simulator import Simulator


@dataclass(frozen=True)
class Exchange:
    """A request: whose it is, what it names, and what is to go wrong with its answer."""

    simulator: Simulator
    engine: AccountEngine
    entry: LoggedRequest
    fault: Fault
    named: str = ""

    @property
    def body(self) -> Any:
        return self.entry.body

    def text(self, name: str) -> str | None:
        """A query parameter; the last of several wins."""
        values = self.entry.query.get(name)
        return values[-1] if values else None

    def texts(self, name: str) -> Sequence[str]:
        """A query parameter that is a list: `name[]=a&name[]=b`, or without the brackets."""
        return self.entry.query.get(f"{name}[]") or self.entry.query.get(name) or ()

    def flag(self, name: str) -> bool:
        value = self.text(name)
        if value not in (None, "true", "false"):
            raise invalid_type(name, "a boolean", value)
        return value == "true"

    def integer(self, name: str, low: int, high: int | None = None) -> int | None:
        """A query parameter between bounds; None if it is not there."""
        value = self.text(name)
        if value is None:
            return None
        if not value.removeprefix("-").isdecimal():
            raise invalid_type(name, "an integer", value)
        number = int(value)
        if number < low:
            message = f"Invalid '{name}': expected a value >= {low}, but got {number} instead."
            raise bad_request(message, name, "integer_below_min_value")
        if high is not None and number > high:
            message = f"Invalid '{name}': expected a value <= {high}, but got {number} instead."
            raise bad_request(message, name, "integer_above_max_value")
        return number

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        """A query parameter out of a few words, the first of which is the default."""
        value = self.text(name)
        if value is not None and value not in allowed:
            raise invalid_value(name, value, allowed)
        return allowed[0] if value is None else value
