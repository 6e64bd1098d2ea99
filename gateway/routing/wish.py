"""What the operator wants of an account, and what each action makes of it."""

from __future__ import annotations

import enum


class Wish(enum.Enum):
    """What the operator wants of an account."""

    SERVE = "serve"
    DRAIN = "drain"
    DISABLE = "disable"


#: What each action of the operator makes of what was wished before.
WISHES = {
    "disable": dict.fromkeys(Wish, Wish.DISABLE),
    "enable": {Wish.DISABLE: Wish.SERVE},
    "drain": {Wish.SERVE: Wish.DRAIN},
    "resume": {Wish.DRAIN: Wish.SERVE},
}
