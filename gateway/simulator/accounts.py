"""A simulated account: its key, and how it treats `previous_response_id`."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Literal

#: stateful: keeps responses. stateless: refuses `previous_response_id`.
#: forgetful: accepts it, ignores it and answers without history.
Mode = Literal["stateful", "stateless", "forgetful"]
MODES: tuple[Mode, ...] = ("stateful", "stateless", "forgetful")


def random_key() -> str:
    return f"sk-simulated-{secrets.token_urlsafe(24)}"


@dataclass(frozen=True)
class SimulatedAccount:
    """One credential of the simulator. No `models` means that any model name is served.

    `codex_catalogue`: whether `GET /models?client_version=…` is answered in Codex's own shape.
    """

    name: str
    key: str = field(default_factory=random_key, repr=False)
    mode: Mode = "stateful"
    models: tuple[str, ...] = ()
    codex_catalogue: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is none of {', '.join(MODES)}")
