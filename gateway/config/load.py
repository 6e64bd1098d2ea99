"""Turns the text of a configuration file into Settings."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import yaml

from gateway.config.errors import ConfigError
from gateway.config.settings import Settings


def load_settings(text: str, environ: Mapping[str, str], source: str) -> Settings:
    """The settings that `text` describes; `source` is the file's name for messages."""
    try:
        return msgspec.convert(yaml.safe_load(text) or {}, Settings)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ConfigError(f"{source}: {error}") from None
