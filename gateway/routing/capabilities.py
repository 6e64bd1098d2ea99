"""What was learned of an account: how its requests must differ from those of clients.

If a refused request is accepted with a concession, later requests are sent with it from the start:
to the account, or only for the model, the endpoint or the tenant that it was learned for.  Services
change and fail temporarily, so what was learned lasts a day, and is forgotten on a reload.

For previous responses (``continuity: auto``) a refusal counts only if this account issued the
response minutes ago: an older id may have expired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

from gateway.conversations.store import ResponseRecord
from gateway.protocol.concessions import Concession, ConcessionKind

#: The refusal of a response counts while it is younger than this, in seconds.
FRESH_RESPONSE_SECONDS = 600.0

#: How long something learned lasts, in seconds; shorter if the account stops continuing
#: responses after it did so.
_LASTS_SECONDS = 86_400.0
_DID_ONCE_SECONDS = 3_600.0

#: Refusals in a row that are tolerated from an account that has continued a response.
_DOUBTS = 2

#: Bounds on what is remembered of one account; models are named by clients.
MAX_LEARNED = 200
_MAX_NAME = 200

RESPONSES = "/responses"


class CapabilityScope(NamedTuple):
    """What something learned holds for; None stands for all models or tenants.

    :ivar path: the endpoint.
    """

    path: str = RESPONSES
    model: str | None = None
    tenant: str | None = None


class _Learned(NamedTuple):
    why: str
    until: float


class Lesson(NamedTuple):
    """Something learned, as it is kept over a restart.

    :ivar until: unix seconds.
    """

    scope: CapabilityScope
    concession: Concession
    why: str
    until: float


_NOTHING: frozenset[Concession] = frozenset()


#: What is learned if responses with a ``store`` flag are not continued.
_REPLAY = {
    store: (CapabilityScope(), Concession(ConcessionKind.CHAIN, name))
    for store, name in ((True, "with store"), (False, "without store"))
}


class LearnedCapabilities:
    """What was learned of one account.

    :param now: unix seconds.
    :ivar changed: called when something was learned or forgotten.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.changed: Callable[[], None] = lambda: None
        self._learned: dict[tuple[CapabilityScope, Concession], _Learned] = {}
        self._trust: dict[bool, int] = {}
        self._did: set[bool] = set()

    def forget(self) -> None:
        """Forget everything, so that it is tried again."""
        if self._learned:
            self._learned.clear()
            self.changed()
        self._trust.clear()
        self._did.clear()

    def lessons(self) -> list[Lesson]:
        """Everything that was learned."""
        return [Lesson(*what, *learned) for what, learned in self._learned.items()]

    def restore(self, lessons: Iterable[Lesson]) -> None:
        """Take what was learned before a restart, or by another process; forget the rest."""
        self._learned = {
            (each.scope, each.concession): _Learned(each.why, each.until)
            for each in islice(lessons, MAX_LEARNED)
        }

    # --- concessions -----------------------------------------------------------------

    def concessions(self, asked: CapabilityScope) -> frozenset[Concession]:
        """What a request gives up from the start.

        :param asked: its endpoint, model and tenant.
        """
        if not self._learned:
            return _NOTHING
        now = self._now()
        return frozenset(
            concession
            for (scope, concession), learned in self._learned.items()
            if now < learned.until and _covers(scope, asked)
        )

    def learn(self, scope: CapabilityScope, concession: Concession, why: str) -> None:
        """A refused request was accepted with this concession."""
        if len(scope.model or "") <= _MAX_NAME:
            self._note(scope, concession, why, _LASTS_SECONDS)

    # --- continuing responses --------------------------------------------------------

    def is_fresh(self, record: ResponseRecord) -> bool:
        """Whether a response is so young that it cannot have expired at its account."""
        return self._now() < record.created_at + FRESH_RESPONSE_SECONDS

    def reason_to_replay(self, store: bool) -> str | None:
        """Why responses of this ``store`` flag are not chained here, or None."""
        learned = self._learned.get(_REPLAY[store])
        return learned.why if learned is not None and self._now() < learned.until else None

    def trusts(self, store: bool) -> bool:
        """Whether the account has shown that it continues responses of this ``store`` flag."""
        return self.reason_to_replay(store) is None and self._trust.get(store, -1) >= 0

    def continued(self, store: bool) -> None:
        """The account continued a response."""
        self._trust[store] = _DOUBTS
        self._did.add(store)
        if self._learned.pop(_REPLAY[store], None) is not None:
            self.changed()
        if store and self._learned:
            self._forget_refused_items()

    def refused(self, parent: ResponseRecord, why: str) -> None:
        """The account did not continue ``parent``, and a replay of the turn was accepted.

        If it has continued one before, only several refusals in a row count.
        """
        if not self.is_fresh(parent):
            return
        trust = self._trust.get(parent.store, 0) - 1
        self._trust[parent.store] = trust
        if trust < 0:
            lasts = _DID_ONCE_SECONDS if parent.store in self._did else _LASTS_SECONDS
            self._note(*_REPLAY[parent.store], why, lasts)

    # --- for the admin side ----------------------------------------------------------

    def continuity(self) -> dict[str, str]:
        """Per ``store`` flag ``chain``, ``unknown`` or why not."""
        return {
            name: self.reason_to_replay(store) or ("chain" if store in self._did else "unknown")
            for name, store in (("store", True), ("no_store", False))
        }

    def shown(self) -> list[dict[str, Any]]:
        """All that holds now, the oldest first."""
        now = self._now()
        return [
            {
                "what": str(concession),
                "path": scope.path,
                "model": scope.model,
                "key": scope.tenant,
                "why": learned.why,
                "until": learned.until,
            }
            for (scope, concession), learned in self._learned.items()
            if now < learned.until
        ]

    def _forget_refused_items(self) -> None:
        """Forget what was learned of items for single tenants: the account does keep responses."""
        unproven = [
            (scope, concession)
            for scope, concession in self._learned
            if concession.kind is ConcessionKind.STORED_ITEMS and scope.tenant is not None
        ]
        for each in unproven:
            del self._learned[each]
        if unproven:
            self.changed()

    def _note(
        self, scope: CapabilityScope, concession: Concession, why: str, seconds: float
    ) -> None:
        self._learned.pop((scope, concession), None)
        self._learned[scope, concession] = _Learned(why, self._now() + seconds)
        if len(self._learned) > MAX_LEARNED:
            del self._learned[next(iter(self._learned))]
        self.changed()


def _covers(scope: CapabilityScope, asked: CapabilityScope) -> bool:
    """Whether a scope includes a request, also one for a sub-path of its endpoint."""
    return (
        (asked.path == scope.path or asked.path.startswith(scope.path + "/"))
        and scope.model in (None, asked.model)
        and scope.tenant in (None, asked.tenant)
    )
