"""The typed, frozen settings and their defaults; ranges and choices stand here, nowhere else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

MASK = "<hidden>"

# The upper bound keeps `.inf` and slips of the keyboard out of reactor.callLater.
YEAR = 365 * 24 * 3600
Seconds = Annotated[float, Meta(ge=0, le=YEAR)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=YEAR)]
PositiveMinutes = Annotated[float, Meta(gt=0, le=YEAR / 60)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Bytes = Annotated[int, Meta(ge=1024, le=2**40)]
Text = Annotated[str, Meta(min_length=1)]

Continuity = Literal["auto", "chain", "replay"]
Chaining = Literal["auto", "always"]
Strategy = Literal["round-robin"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warn", "error"]
SimulatorMode = Literal["stateful", "stateless", "forgetful"]

DEFAULT_LISTEN = "tcp:8080:interface=127.0.0.1"
DEFAULT_ADMIN_LISTEN = "tcp:8081:interface=127.0.0.1"


class Section(Struct, frozen=True, forbid_unknown_fields=True):
    """A mapping of the file; its repr masks the secrets."""

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={mask(name, getattr(self, name))}" for name in self.__struct_fields__
        )
        return f"{type(self).__name__}({shown})"


SECRET_FIELDS = frozenset({"key", "token", "headers"})


def mask(name: str, value: Any) -> str:
    """The repr of a field, or of its shape alone when it is a secret."""
    if name not in SECRET_FIELDS or value is None:
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{header!r}: {MASK}" for header in value) + "}"
    return MASK


class AdminSettings(Section, frozen=True, forbid_unknown_fields=True):
    """The admin side; `listen=None` switches it off."""

    listen: Text | None = DEFAULT_ADMIN_LISTEN
    token: Text | None = None


class KeySettings(Section, frozen=True, forbid_unknown_fields=True):
    """One key that clients may present."""

    name: Text
    key: Text


class AccountSettings(Section, frozen=True, forbid_unknown_fields=True):
    """One upstream credential; `base_url` has no trailing slash, `models` are shell patterns."""

    name: Text
    base_url: Text
    key: Text
    continuity: Continuity = "auto"
    models: Annotated[tuple[Text, ...], Meta(min_length=1)] = ("*",)
    headers: dict[str, str] = field(default_factory=dict)


class RoutingSettings(Section, frozen=True, forbid_unknown_fields=True):
    """How a turn finds its account."""

    strategy: Strategy = "round-robin"
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3


class SessionSettings(Section, frozen=True, forbid_unknown_fields=True):
    """One client connection; `keepalive_seconds=0` sends no keep-alives."""

    chaining: Chaining = "auto"
    keepalive_seconds: Seconds = 20.0
    max_age_minutes: PositiveMinutes = 60.0
    max_message_bytes: Annotated[int, Meta(ge=1024, le=2**31 - 1)] = 67_108_864
    hold_seconds: Seconds = 5.0
    compression: bool = False


class LedgerSettings(Section, frozen=True, forbid_unknown_fields=True):
    """How much of past responses is remembered, and for how long."""

    max_bytes: Bytes = 268_435_456
    ttl_minutes: PositiveMinutes = 60.0


class TimeoutSettings(Section, frozen=True, forbid_unknown_fields=True):
    """Upstream: connect, first byte, idle (between events). Client: stall, handshake. Shutdown."""

    connect_seconds: PositiveSeconds = 10.0
    first_byte_seconds: PositiveSeconds = 120.0
    idle_seconds: PositiveSeconds = 300.0
    stall_seconds: PositiveSeconds = 60.0
    handshake_seconds: PositiveSeconds = 10.0
    shutdown_seconds: Seconds = 30.0


class LimitSettings(Section, frozen=True, forbid_unknown_fields=True):
    """Bounds on what clients may hold open."""

    max_connections: Count = 10_000
    max_queued_turns: Count = 64


class LogSettings(Section, frozen=True, forbid_unknown_fields=True):
    """The log's shape and its threshold."""

    format: LogFormat = "text"
    level: LogLevel = "info"


class SimulatorSettings(Section, frozen=True, forbid_unknown_fields=True):
    """The embedded upstream that needs no key."""

    accounts: Annotated[int, Meta(ge=1, le=100)] = 2
    mode: SimulatorMode = "stateful"


class Settings(Section, frozen=True, forbid_unknown_fields=True):
    """Everything. `Settings()` is what a start without a file means: two simulated accounts."""

    listen: Text = DEFAULT_LISTEN
    admin: AdminSettings = AdminSettings()
    keys: tuple[KeySettings, ...] = ()
    accounts: tuple[AccountSettings, ...] = ()
    routing: RoutingSettings = RoutingSettings()
    session: SessionSettings = SessionSettings()
    ledger: LedgerSettings = LedgerSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()
    simulator: SimulatorSettings | None = None

    def __post_init__(self) -> None:
        if not self.accounts and self.simulator is None:
            msgspec.structs.force_setattr(self, "simulator", SimulatorSettings())
