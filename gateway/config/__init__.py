"""Configuration: YAML text to typed, frozen settings; every mistake is one line with its path."""

from __future__ import annotations

from gateway.config.errors import ConfigError
from gateway.config.load import load_settings, read_settings
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
    "Settings",
    "SimulatorSettings",
    "TimeoutSettings",
    "load_settings",
    "read_settings",
]
