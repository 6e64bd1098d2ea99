"""Configuration: YAML text to typed, frozen settings; all errors at once, with their paths."""

from __future__ import annotations

from gateway.config.errors import ConfigError
from gateway.config.load import load_settings, read_text
from gateway.config.provenance import Setting, describe, in_force
from gateway.config.settings import (
    AccountSettings,
    AdminSettings,
    KeySettings,
    LedgerSettings,
    LimitSettings,
    LogSettings,
    OAuthSettings,
    RoutingSettings,
    SessionSettings,
    Settings,
    SimulatorSettings,
    TimeoutSettings,
)

__all__ = [
    "AccountSettings",
    "AdminSettings",
    "ConfigError",
    "KeySettings",
    "LedgerSettings",
    "LimitSettings",
    "LogSettings",
    "OAuthSettings",
    "RoutingSettings",
    "SessionSettings",
    "Setting",
    "Settings",
    "SimulatorSettings",
    "TimeoutSettings",
    "describe",
    "in_force",
    "load_settings",
    "read_text",
]
