"""What an account's answers told of its quotas: shown, and a reason to prefer another account."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gateway.protocol.rate_limits import QuotaWindow

#: Bound on the windows that are remembered of one account; upstreams choose their names.
_MAX_WINDOWS = 32

#: How ChatGPT names limits of single models.
_OF_A_MODEL = "codex-"


class AccountQuotas:
    """One account's.

    :param now: unix seconds; may jump.
    :ivar believed_seconds: how long a quota is taken for used up without being told anew: the
        account may have been given more meanwhile.
    """

    def __init__(self, now: Callable[[], float], believed_seconds: float) -> None:
        self._now = now
        self.believed_seconds = believed_seconds
        self._windows: dict[str, QuotaWindow] = {}
        self._spent_until = 0.0

    @property
    def spent(self) -> bool:
        """Whether the account would likely refuse a turn, by its own word."""
        until = self._spent_until
        return until != 0.0 and 0.0 < until - self._now() <= self.believed_seconds

    def observe(self, windows: Iterable[QuotaWindow]) -> None:
        """Remember what an answer told."""
        told = {window.name: window for window in windows}
        if not told:
            return
        self._windows.update(told)
        for name in list(self._windows)[:-_MAX_WINDOWS]:
            del self._windows[name]
        resets = [each.resets_at or 0.0 for each in self._windows.values() if _keeps_turns(each)]
        believed_until = self._now() + self.believed_seconds
        self._spent_until = min(max(resets, default=0.0), believed_until)

    def doubt(self) -> None:
        """Take nothing for used up until it is told again."""
        self._spent_until = 0.0

    def used_up_until(self) -> float | None:
        """When those reset that were told to be used up, unix seconds; None when unknown.

        Rate limits, which count what remains, are none of them.
        """
        now = self._now()
        spent = [each for each in self._windows.values() if each.remaining is None and each.used_up]
        resets = [each.resets_at for each in spent]
        return max((at for at in resets if at is not None and at > now), default=None)

    def shown(self) -> list[dict[str, Any]]:
        """For JSON."""
        now = self._now()
        return [_as_it_is(window, now)._asdict() for window in self._windows.values()]


def _keeps_turns(window: QuotaWindow) -> bool:
    """Whether it is used up and most turns need it; some limits are for single models."""
    return window.used_up and not window.name.startswith(_OF_A_MODEL)


def _as_it_is(window: QuotaWindow, now: float) -> QuotaWindow:
    """What is past its reset has begun anew, though no answer has told so."""
    if window.resets_at is None or now <= window.resets_at:
        return window
    used = None if window.used_percent is None else 0.0
    return window._replace(used_percent=used, remaining=window.limit, resets_at=None)
