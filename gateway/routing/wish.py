"""What the operator wants of an account, and what each action makes of it."""

from __future__ import annotations

import enum


class AdminState(enum.Enum):
    """What the operator wants of an account."""

    SERVE = "serve"
    DRAIN = "drain"
    DISABLE = "disable"


#: What each action of the operator makes of what was wished before.
WISHES = {
    "disable": dict.fromkeys(AdminState, AdminState.DISABLE),
    "enable": {AdminState.DISABLE: AdminState.SERVE},
    "drain": {AdminState.SERVE: AdminState.DRAIN},
    "resume": {AdminState.DRAIN: AdminState.SERVE},
}
