"""What upstreams say which models they offer: asked seldom, remembered, stale rather than none.

Accounts of one service are asked as one: the first that answers well speaks for all of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IReactorTime

from gateway.routing.account import Account
from gateway.routing.inquiry import AccountModels, ModelListRequest

#: How long an answer holds, in seconds, and how long nobody is asked after a failure.
FRESH_SECONDS = 300.0
RETRY_SECONDS = 30.0

#: Versions of Codex that one service is asked about within :data:`FRESH_SECONDS`.
_MAX_VERSIONS = 8

#: Catalogues that are remembered: services times versions of Codex.
MAX_CATALOGUES = 64


class _Entry:
    """What is known of one service."""

    __slots__ = ("asked_at", "asking", "catalogue", "failed", "waiting")

    def __init__(self) -> None:
        self.catalogue: AccountModels | None = None
        self.asked_at = float("-inf")
        self.failed = False
        self.asking: ModelListRequest | None = None
        self.waiting: list[Callable[[AccountModels | None], None]] = []


class ModelCatalog:
    """Asks upstreams for their models.

    :param clock: for deadlines and ages.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str | None], _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def of(
        self,
        accounts: Sequence[Account],
        client_version: str | None,
        told: Callable[[AccountModels | None], None],
    ) -> None:
        """Tell what the service of ``accounts`` offers; at once where that is known.

        :param accounts: of one service, at least one.
        :param client_version: ask in Codex's shape, for this version of it; None for the
            platform's.
        :param told: called once, with None when nothing could be learned.
        """
        key = self._known(accounts[0].settings.base_url, client_version)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry()
            self._forget()
        self._entries.move_to_end(key)
        holds = RETRY_SECONDS if entry.failed else FRESH_SECONDS
        if entry.asking is None and self._clock.seconds() - entry.asked_at < holds:
            told(entry.catalogue)
            return
        entry.waiting.append(told)
        if entry.asking is None:
            self._ask(entry, accounts, client_version)

    def close(self) -> None:
        """Ask nobody any more; who waits gets what is known."""
        for entry in list(self._entries.values()):
            if entry.asking is not None:
                entry.asking.cancel()
                self._answered(entry, None)

    def _known(self, service: str, version: str | None) -> tuple[str, str | None]:
        """Whose answer will do for ``version``: of many, another's which was told of late.

        Versions are the clients' to choose: they must not make the gateway ask all the time.
        """
        key = (service, version)
        told = [each for each in self._entries if each[0] == service and each[1] is not None]
        if version is None or key in self._entries or len(told) < _MAX_VERSIONS:
            return key
        now = self._clock.seconds()
        for each in told:
            entry = self._entries[each]
            if entry.asking is None and now - entry.asked_at >= FRESH_SECONDS:
                del self._entries[each]
                return key
        return told[-1]

    def _ask(self, entry: _Entry, accounts: Sequence[Account], client_version: str | None) -> None:
        """Who answered last is asked first, and those that are not ready come last."""
        known = entry.catalogue
        likeliest = sorted(
            accounts,
            key=lambda each: (
                each.unready() is not None,
                known is None or each.name != known.account,
            ),
        )
        entry.asking = ModelListRequest(
            self._clock, likeliest, client_version, lambda found: self._answered(entry, found)
        )
        entry.asking.start()

    def _answered(self, entry: _Entry, found: AccountModels | None) -> None:
        entry.asking = None
        entry.asked_at = self._clock.seconds()
        entry.failed = found is None
        if found is not None:
            entry.catalogue = found
        waiting, entry.waiting = entry.waiting, []
        for told in waiting:
            told(entry.catalogue)

    def _forget(self) -> None:
        """Client versions are the clients' to choose: remember only so many."""
        for key, entry in list(self._entries.items()):
            if len(self._entries) <= MAX_CATALOGUES:
                return
            if entry.asking is None:
                del self._entries[key]
