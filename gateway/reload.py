"""Reading the configuration anew while the gateway runs (SIGHUP, or the admin side)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from twisted.logger import Logger

from gateway.config import ConfigError, Settings, changed, needs_restart

_log = Logger(namespace="gateway.reload")


class RejectedReload(NamedTuple):
    """A configuration that was not taken.

    :ivar at: unix seconds.
    :ivar error: the line that says why.
    """

    at: float
    error: str


class ConfigReloader:
    """Replaces the settings in force, all of them or none.

    :param settings: those in force, with which the gateway starts.
    :param read: reads them anew.
    :param apply: puts new ones into force, given the old ones.
    :param now: unix seconds.
    :ivar generation: counts the configurations that were in force.
    :ivar last_rejected: the last one that was not taken, until a later one is; or None.
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
        """Read and apply; what cannot be read changes nothing.

        :return: what came of it, in one line.
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
        # What was built at the start is still that, whatever came between.
        waiting = needs_restart(self._started, settings)
        if waiting:
            line += f"; a restart is needed for {', '.join(waiting)}"
        _log.info("{line}", line=line)
        return line
