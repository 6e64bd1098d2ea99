"""The description of the admin API, OpenAPI 3.1; the file is the contract, tests hold us to it."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import msgspec

from gateway import __version__

DESCRIPTION: dict[str, Any] = msgspec.json.decode(
    (files(__package__) / "openapi.json").read_bytes()
)
DESCRIPTION["info"]["version"] = __version__
