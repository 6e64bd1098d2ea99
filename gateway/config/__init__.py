"""Configuration: YAML text to typed, frozen settings; all errors at once, with their paths."""

from __future__ import annotations

from gateway.config.errors import ConfigError
from gateway.config.load import Loaded, load, load_settings, read_text
from gateway.config.provenance import Setting, described, in_force
from gateway.config.settings import (
    AccountSettings,
    AdminSettings,
    ContentLogSettings,
    KeySettings,
    LedgerSettings,
    LimitSettings,
    LogSettings,
    OAuthSettings,
    RoutingSettings,
    SessionSettings,
    Settings,
    SimulatorSettings,
    StateSettings,
    TimeoutSettings,
    UpstreamWebSocketSettings,
)

__all__ = [
    "AccountSettings",
    "AdminSettings",
    "ConfigError",
    "ContentLogSettings",
    "KeySettings",
    "LedgerSettings",
    "LimitSettings",
    "Loaded",
    "LogSettings",
    "OAuthSettings",
    "RoutingSettings",
    "SessionSettings",
    "Setting",
    "Settings",
    "SimulatorSettings",
    "StateSettings",
    "TimeoutSettings",
    "UpstreamWebSocketSettings",
    "described",
    "in_force",
    "load",
    "load_settings",
    "read_text",
]
