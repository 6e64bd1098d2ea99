"""Clients that were turned away for want of a key: counted, and told to the log now and then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from twisted.logger import Logger

_log = Logger(namespace="gateway.api_keys")

#: One line of the log for each address in so many seconds.
_QUIET_SECONDS = 60.0

#: Addresses that are remembered; more than these share their quiet.
MAX_ADDRESSES = 1_000


class UnknownKeyThrottle:
    """Keeps who knocks without a key from filling the log.

    :param now: in seconds.
    :ivar refusals: how often it happened, by the error's code.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._told_at: dict[str, float] = {}
        self._untold: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._told_at)

    def refused(self, address: str, code: str) -> None:
        """A client was turned away.

        :param address: of its end of the connection, for people.
        :param code: of the error that it got.
        """
        self.refusals[code] += 1
        now = self._now()
        told_at = self._told_at.get(address)
        if told_at is not None and 0 <= now - told_at < _QUIET_SECONDS:
            self._untold[address] += 1
            return
        if told_at is None and len(self._told_at) >= MAX_ADDRESSES and not self._forget(now):
            return
        self._told_at[address] = now
        more = self._untold.pop(address, 0)
        _log.warn(
            "a client at {address} was turned away: {code}{more}",
            address=address,
            code=code,
            more=f", and {more} times before since the last line" if more else "",
        )

    def _forget(self, now: float) -> bool:
        """Make room; whether there is some."""
        quiet = [each for each, at in self._told_at.items() if not 0 <= now - at < _QUIET_SECONDS]
        for address in quiet:
            del self._told_at[address]
            self._untold.pop(address, None)
        return bool(quiet)
