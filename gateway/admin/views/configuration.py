"""The configuration in force, each value with its origin; secrets are masked."""

from __future__ import annotations

from typing import Any

from gateway.admin.running import Running


def configuration(running: Running) -> dict[str, Any]:
    """Every setting."""
    in_force = running.configuration
    rejected = in_force.last_rejected()
    return {
        "generation": in_force.generation(),
        "source": in_force.source,
        "last_rejected_reload": None if rejected is None else rejected._asdict(),
        "can_reload": in_force.reload is not None,
        "log_level": running.threshold.level,
        "settings": [setting._asdict() for setting in in_force.settings()],
    }
