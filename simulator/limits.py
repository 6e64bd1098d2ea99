"""What an account says of its limits; it says so only, the limits themselves are not kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RateLimits:
    """The platform's limits by requests and by tokens; resets are durations like `6m0s`."""

    limit_requests: int = 10_000
    remaining_requests: int = 9_999
    reset_requests: str = "6ms"
    limit_tokens: int = 2_000_000
    remaining_tokens: int = 1_999_000
    reset_tokens: str = "30ms"

    def headers(self) -> Mapping[str, str]:
        return {
            "x-ratelimit-limit-requests": str(self.limit_requests),
            "x-ratelimit-remaining-requests": str(self.remaining_requests),
            "x-ratelimit-reset-requests": self.reset_requests,
            "x-ratelimit-limit-tokens": str(self.limit_tokens),
            "x-ratelimit-remaining-tokens": str(self.remaining_tokens),
            "x-ratelimit-reset-tokens": self.reset_tokens,
        }


@dataclass(frozen=True)
class Window:
    """How much of a quota window is used; it ends so many seconds after it is asked about."""

    used_percent: float
    window_minutes: int
    resets_in_seconds: int

    def as_json(self, now: float) -> dict[str, Any]:
        return {
            "used_percent": self.used_percent,
            "window_minutes": self.window_minutes,
            "reset_at": int(now) + self.resets_in_seconds,
        }


@dataclass(frozen=True)
class CodexLimits:
    """The two windows of a ChatGPT subscription."""

    primary: Window = field(default_factory=lambda: Window(12, 300, 3_600))
    secondary: Window = field(default_factory=lambda: Window(4.5, 10_080, 86_400))

    def headers(self, now: float) -> Mapping[str, str]:
        found = {"x-codex-plan-type": "plus", "x-codex-active-limit": "codex"}
        for name, window in (("primary", self.primary), ("secondary", self.secondary)):
            for key, value in window.as_json(now).items():
                found[f"x-codex-{name}-{key.replace('_', '-')}"] = str(value)
        return found
