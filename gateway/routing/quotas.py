"""The quotas that an account's answers reported, and its requests per minute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from gateway.protocol.rate_limits import QuotaWindow

#: Bound on the windows that are remembered of one account; upstreams choose their names.
_MAX_WINDOWS = 32

#: How ChatGPT names limits of single models.
_OF_A_MODEL = "codex-"

_RATE_SECONDS = 60.0

#: When to ask again while requests of other processes fill the minute, in seconds.
_ASK_AGAIN_SECONDS = 1.0

#: Requests within such a slice of time are counted at its end, which bounds the memory.
_SLICE_SECONDS = 0.125


class AccountQuotas:
    """The reported quotas of one account: shown, and a reason to prefer another account.

    :param now: unix seconds; may jump.
    :ivar changed: called after a report.
    :ivar believed_seconds: how long a quota counts as used up without a new report; it may have
        been raised meanwhile.
    """

    def __init__(self, now: Callable[[], float], believed_seconds: float) -> None:
        self._now = now
        self.believed_seconds = believed_seconds
        self.changed: Callable[[], None] = lambda: None
        self._windows: dict[str, QuotaWindow] = {}
        self._spent_until = 0.0

    @property
    def spent(self) -> bool:
        """Whether a quota that most turns need is used up, as reported."""
        until = self._spent_until
        return until != 0.0 and 0.0 < until - self._now() <= self.believed_seconds

    def observe(self, windows: Iterable[QuotaWindow]) -> None:
        """Remember what an answer reported."""
        reported = {window.name: window for window in windows}
        if reported:
            self._take(reported)
            self.changed()

    def windows(self) -> list[QuotaWindow]:
        """What was reported."""
        return list(self._windows.values())

    def restore(self, windows: Iterable[QuotaWindow]) -> None:
        """Take what was reported before a restart, or to another process."""
        self._take({window.name: window for window in windows})

    def _take(self, reported: dict[str, QuotaWindow]) -> None:
        self._windows.update(reported)
        for name in list(self._windows)[:-_MAX_WINDOWS]:
            del self._windows[name]
        resets = [each.resets_at or 0.0 for each in self._windows.values() if _keeps_turns(each)]
        believed_until = self._now() + self.believed_seconds
        self._spent_until = min(max(resets, default=0.0), believed_until)

    def reset(self) -> None:
        """Count nothing as used up until it is reported again."""
        self._spent_until = 0.0

    def used_up_until(self) -> float | None:
        """When the quotas that are used up reset, unix seconds; None when unknown.

        Rate limits, which report what remains, are left out.
        """
        now = self._now()
        spent = [each for each in self._windows.values() if each.remaining is None and each.used_up]
        resets = [each.resets_at for each in spent]
        return max((at for at in resets if at is not None and at > now), default=None)

    def shown(self) -> list[dict[str, Any]]:
        """For JSON."""
        now = self._now()
        return [_current(window, now)._asdict() for window in self._windows.values()]


def _keeps_turns(window: QuotaWindow) -> bool:
    """Whether it is used up and most turns need it; some limits are for single models."""
    return window.used_up and not window.name.startswith(_OF_A_MODEL)


def _current(window: QuotaWindow, now: float) -> QuotaWindow:
    """A window past its reset has begun anew, though no answer has said so."""
    if window.resets_at is None or now <= window.resets_at:
        return window
    used = None if window.used_percent is None else 0.0
    return window._replace(used_percent=used, remaining=window.limit, resets_at=None)


class RequestRate:
    """Requests per minute: never more than so many in any 60 seconds.

    :param per_minute: how many requests fit into 60 seconds.
    :param now: seconds; a clock that does not jump is better.
    :ivar per_minute: may be changed at any time.
    :ivar elsewhere: requests of the last minute in other processes, as they told lately.
    """

    def __init__(self, per_minute: int, now: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self.elsewhere = 0
        self._now = now
        self._taken: deque[list[float]] = deque()
        self._count = 0

    def wait_seconds(self) -> float:
        """How long until a request fits; 0 when one does now."""
        now = self._forget()
        if self._count + self.elsewhere < self.per_minute:
            return 0.0
        if self.elsewhere:
            return _ASK_AGAIN_SECONDS  # theirs may leave the minute at any time
        return self._taken[0][0] + _RATE_SECONDS - now

    @property
    def count(self) -> int:
        """Requests of the last minute in this process."""
        self._forget()
        return self._count

    def take(self) -> None:
        """A request goes out now."""
        now = self._forget()
        slice_end = (now // _SLICE_SECONDS + 1) * _SLICE_SECONDS
        if self._taken and self._taken[-1][0] == slice_end:
            self._taken[-1][1] += 1
        else:
            self._taken.append([slice_end, 1])
        self._count += 1

    def _forget(self) -> float:
        """Forget requests older than a minute; shift them if the clock was set back."""
        now = self._now()
        taken = self._taken
        while taken and now >= taken[0][0] + _RATE_SECONDS:
            self._count -= int(taken.popleft()[1])
        if taken and taken[-1][0] > now + _SLICE_SECONDS:
            behind = taken[-1][0] - now
            for entry in taken:
                entry[0] -= behind
        return now
