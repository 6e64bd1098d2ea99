"""Slows down who guesses tokens: each failure of an address makes it wait twice as long.

Only wrong tokens are asked after: who has the right one never waits for what others did.  What
keeps a token from being guessed is its length.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from gateway.admin.errors import AdminError

#: The first wait and the longest, in seconds.
_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 60.0

#: How long an address that failed is remembered after its last failure, in seconds.
_REMEMBERED_SECONDS = 3_600.0

#: Addresses that are remembered.
MAX_ADDRESSES = 1024

#: Failures a minute, of all addresses, that are looked at.
MAX_FAILURES = 60

_MINUTE = 60.0


class _Failures(NamedTuple):
    times: int
    last: float
    barred_until: float


class Throttle:
    """Failures by address, bounded in count.

    :param now: seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failures: OrderedDict[str, _Failures] = OrderedDict()
        self._minute = 0.0
        self._in_minute = 0

    def __len__(self) -> int:
        return len(self._failures)

    def check(self, address: str) -> None:
        """Whether ``address`` may try.

        :raises AdminError: 429 when it has to wait.
        """
        now = self._now()
        network = _network(address)
        failures = self._failures.get(network)
        if failures is not None and failures.barred_until > now:
            raise _wait(failures.barred_until - now)
        if now - self._minute < _MINUTE and self._in_minute >= MAX_FAILURES:
            raise _wait(self._minute + _MINUTE - now)

    def failed(self, address: str) -> None:
        """``address`` tried a wrong token."""
        now = self._now()
        network = _network(address)
        known = self._failures.pop(network, None)
        count = 1
        if known is not None and now - known.last < _REMEMBERED_SECONDS:
            count += known.times
        wait = min(_FIRST_SECONDS * 2 ** min(count - 1, 16), _LONGEST_SECONDS)
        self._failures[network] = _Failures(count, now, now + wait)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
        if now - self._minute >= _MINUTE:
            self._minute, self._in_minute = now, 0
        self._in_minute += 1


def _wait(seconds: float) -> AdminError:
    whole = max(1, math.ceil(seconds))
    return AdminError(
        429,
        f"too many wrong tokens; wait {whole} seconds before the next try",
        {"retry-after": str(whole)},
    )


def _network(address: str) -> str:
    """Whoever has one IPv6 address has 2**64 of them."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False))
