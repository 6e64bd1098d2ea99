"""Reload the configuration while the gateway runs (SIGHUP, or the admin side)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from twisted.logger import Logger

from gateway.config import ConfigError, Settings
from gateway.config.settings import Section

_log = Logger(namespace="gateway.reload")

# Built once, at the start. Every other setting is read anew: by the next connection (session,
# limits, timeouts, keys), by the next turn (routing, accounts) or at once (log.level, admin.token).
_FIXED = (
    *("listen", "admin.listen", "simulator"),
    *("session.hold_seconds", "session.keepalive_seconds"),
    # The WebSocket factory negotiates with these.
    *("session.compression", "session.max_message_bytes", "timeouts.handshake_seconds"),
    *("ledger.max_bytes", "ledger.ttl_minutes", "state", "workers"),
    "log.format",
)


class RejectedReload(NamedTuple):
    """A configuration that was not put into force.

    :ivar at: unix seconds.
    :ivar error: why, in one line.
    """

    at: float
    error: str


class ConfigReloader:
    """Replaces the settings in force, all of them or none.

    :param settings: the settings with which the gateway starts.
    :param read: reads them anew.
    :param apply: puts new settings into force, given the old ones.
    :param now: unix seconds.
    :ivar generation: counts the configurations that were in force.
    :ivar last_rejected: the last rejected one, until a later one is in force.
    """

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        apply: Callable[[Settings, Settings], None],
        now: Callable[[], float],
    ) -> None:
        self.settings = settings
        self._started = settings
        self.generation = 1
        self.last_rejected: RejectedReload | None = None
        self._read = read
        self._apply = apply
        self._now = now

    def reload(self) -> str:
        """Read the configuration and put it into force; an error changes nothing.

        :return: the result, in one line.
        :raises ConfigError: when the new configuration is wrong.
        """
        try:
            settings = self._read()
        except ConfigError as error:
            self.last_rejected = RejectedReload(self._now(), error.summary)
            for line in error.lines:
                _log.error("the configuration in force stays: {error}", error=line)
            raise
        differs = list(changed(self.settings, settings))
        try:
            self._apply(settings, self.settings)
        except Exception as error:  # a file that vanished since it was checked, or a bug
            self.last_rejected = RejectedReload(self._now(), f"it cannot be applied: {error}")
            _log.failure("the configuration in force stays")
            raise
        self.settings = settings
        self.generation += 1
        self.last_rejected = None
        line = f"configuration {self.generation} is in force, "
        line += f"changed: {', '.join(differs)}" if differs else "nothing changed"
        # Compared with the start: earlier reloads did not rebuild these either.
        waiting = needs_restart(self._started, settings)
        if waiting:
            line += f"; a restart is needed for {', '.join(waiting)}"
        _log.info("{line}", line=line)
        return line

    def take_back(self, before: Settings, error: str) -> None:
        """Settings that were in force for a moment could not be applied everywhere.

        :param before: those that are in force again.
        :param error: why.
        """
        self.settings = before
        self.generation += 1
        self.last_rejected = RejectedReload(self._now(), f"it cannot be applied: {error}")
        _log.error("the configuration before is in force again: {error}", error=error)


def needs_restart(old: Settings, new: Settings) -> list[str]:
    """The paths of the settings that differ and keep their old values until a restart."""
    return [path for path in changed(old, new) if path.startswith(_FIXED)]


def changed(old: Section, new: Section, path: str = "") -> Iterator[str]:
    """The paths of all settings that differ; lists such as ``keys`` are one setting."""
    names = zip(old.__struct_fields__, old.__struct_encode_fields__, strict=True)
    for field, name in names:
        before, after = getattr(old, field), getattr(new, field)
        if before == after:
            continue
        here = f"{path}.{name}" if path else name
        if isinstance(before, Section) and isinstance(after, Section):
            yield from changed(before, after, here)
        else:
            yield here
