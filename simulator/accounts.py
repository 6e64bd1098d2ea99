"""A simulated account: its key, how it treats `previous_response_id`, and whose service it is."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from simulator.limits import CodexLimits, RateLimits

#: stateful: keeps responses. stateless: refuses `previous_response_id`.
#: forgetful: accepts it, ignores it and answers without history.
Mode = Literal["stateful", "stateless", "forgetful"]
MODES: tuple[Mode, ...] = ("stateful", "stateless", "forgetful")

#: platform: as documented. chatgpt: the ChatGPT backend of Codex. xai: refuses `additional_tools`.
Dialect = Literal["platform", "chatgpt", "xai"]
DIALECTS: tuple[Dialect, ...] = ("platform", "chatgpt", "xai")


def random_key() -> str:
    return f"sk-simulated-{secrets.token_urlsafe(24)}"


@dataclass(frozen=True)
class SimulatedAccount:
    """One credential of the simulator. No `models` means that any model name is served.

    `encodings`: the content encodings of requests it takes (None: those of its dialect).
    `codex_catalogue`: whether `GET /models?client_version=…` is answered in Codex's own shape
    (None: as its dialect does). `turn_state`: an `x-codex-turn-state` for every response.
    `headers`: more headers for every answer, or other values for those it has.
    """

    name: str
    key: str = field(default_factory=random_key, repr=False)
    mode: Mode = "stateful"
    models: tuple[str, ...] = ()
    dialect: Dialect = "platform"
    auth_header: Literal["authorization", "api-key"] = "authorization"
    encodings: tuple[str, ...] | None = None
    codex_catalogue: bool | None = None
    chat_completions: bool = True
    turn_state: str | None = None
    rate_limits: RateLimits = field(default_factory=RateLimits)
    codex_limits: CodexLimits = field(default_factory=CodexLimits)
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is none of {', '.join(MODES)}")
        if self.dialect not in DIALECTS:
            raise ValueError(f"dialect {self.dialect!r} is none of {', '.join(DIALECTS)}")

    @property
    def taken_encodings(self) -> tuple[str, ...]:
        if self.encodings is not None:
            return self.encodings
        return ("gzip", "zstd") if self.dialect == "chatgpt" else ()

    @property
    def has_catalogue(self) -> bool:
        if self.codex_catalogue is not None:
            return self.codex_catalogue
        return self.dialect == "chatgpt"
