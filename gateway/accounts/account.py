"""One upstream credential at run time: its settings, its upstream and its figures."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from ..config import AccountSettings
from ..upstream.interface import Upstream
from .learned import LearnedContinuity


class Account:
    """An account of the pool.

    :param settings: what the operator said of it.
    :param upstream: how requests get to it.
    :param now: unix seconds.
    :ivar in_flight: turns running on it.
    :ivar turns: turns that ended on it.
    :ivar failures: attempts that it refused or broke, client errors not counted.
    """

    def __init__(
        self, settings: AccountSettings, upstream: Upstream, now: Callable[[], float]
    ) -> None:
        self.settings = settings
        self.upstream = upstream
        self.learned = LearnedContinuity(now)
        self.in_flight = 0
        self.turns = 0
        self.failures = 0

    @property
    def name(self) -> str:
        """The operator's name for it."""
        return self.settings.name

    @property
    def request_headers(self) -> list[tuple[str, str]]:
        """The headers that make a request this account's."""
        return [
            ("authorization", f"Bearer {self.settings.key}"),
            *self.settings.headers.items(),
        ]

    def serves(self, model: str | None) -> bool:
        """Whether the operator offers ``model`` on this account."""
        return model is None or any(fnmatchcase(model, pattern) for pattern in self.settings.models)
