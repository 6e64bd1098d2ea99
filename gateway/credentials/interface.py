"""What an upstream needs of an account's credentials, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred


class Credentials(Protocol):
    """What makes a request an account's."""

    def headers(self) -> Mapping[str, str] | Deferred[Mapping[str, str]]:
        """The headers that authorize a request now, names in lower case.

        The Deferred fails with an :class:`~gateway.protocol.errors.ApiError` when there
        are none to be had.
        """

    def refused(self, used: Mapping[str, str]) -> bool | Deferred[bool]:
        """An upstream answered 401 to a request with the headers ``used``.

        :return: whether :meth:`headers` now gives others, worth one more try.  The Deferred
            fails as that of :meth:`headers` does.
        """

    def secrets(self) -> Sequence[str]:
        """What must never be shown, as it is now."""

    def close(self) -> object:
        """Stop what runs; returns a Deferred or None."""
