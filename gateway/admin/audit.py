"""The audit log: who did what from where, and what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.logger import Logger

#: Actions that are remembered.
MAX_ACTIONS = 500

_LONGEST = 300

_log = Logger(namespace="gateway.audit")


class Action(NamedTuple):
    """Something that was done, or not.

    :ivar at: unix seconds.
    :ivar who: ``token`` or the name of a login; never what lets anybody in.
    :ivar address: from where.
    :ivar target: what it was done to, or None for the gateway.
    :ivar done: whether it was.
    :ivar result: in words.
    """

    at: float
    who: str
    address: str
    action: str
    target: str | None
    done: bool
    result: str


class Audit:
    """The last actions; each is also a line of the log.

    :param now: unix seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._actions: deque[Action] = deque(maxlen=MAX_ACTIONS)

    def __len__(self) -> int:
        return len(self._actions)

    def note(
        self, who: str, address: str, action: str, target: str | None, done: bool, result: str
    ) -> None:
        """Remember and log an action."""
        shown = None if target is None else target[:_LONGEST]
        entry = Action(self._now(), who, address, action, shown, done, result[:_LONGEST])
        self._actions.append(entry)
        _log.info(
            "{who} from {address}: {action} {target}: {result}",
            **{**entry._asdict(), "target": shown or "the gateway"},
        )

    def shown(self) -> dict[str, Any]:
        """The last actions, the newest first."""
        return {"actions": [action._asdict() for action in reversed(self._actions)]}
