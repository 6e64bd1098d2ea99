"""The client keys: what each uses, what it may use, and what it was refused."""

from __future__ import annotations

from typing import Any

from gateway.admin.running import Running


def keys(running: Running) -> dict[str, Any]:
    """All client keys, by name; never the keys themselves."""
    return {"keys": running.tenants.snapshot()}
