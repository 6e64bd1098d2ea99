"""What an account has taught: what it takes only otherwise than clients send it.

Each lesson is a :class:`~gateway.protocol.concessions.Concession` that was made once, unseen,
and that the account accepted.  From then on requests are sent that way at once: to the account,
or only for the model, the endpoint or the tenant that it was learned of.  Services change, and
have bad hours: a lesson is doubted after a day, and all are forgotten on a reload.

Of previous responses (``continuity: auto``) only the refusal of a response that this very
account issued minutes ago teaches anything: an old id may simply have expired.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gateway.conversations.store import ResponseRecord
from gateway.protocol.concessions import Concession, ConcessionKind

#: A refused response must be younger than this, in seconds, to teach.
TEACHES_FOR_SECONDS = 600.0

#: How long a lesson lasts, in seconds, and that an account continues no responses once it has
#: shown that it can.
_LASTS_SECONDS = 86_400.0
_DID_ONCE_SECONDS = 3_600.0

#: Refusals in a row that an account which once continued a response is forgiven.
_DOUBTS = 2

#: Bounds on what is remembered of one account; models are named by clients.
MAX_LESSONS = 200
_MAX_NAME = 200

RESPONSES = "/responses"


class CapabilityScope(NamedTuple):
    """Whom a lesson is for; None stands for all of them.

    :ivar path: the endpoint.
    """

    path: str = RESPONSES
    model: str | None = None
    tenant: str | None = None


class _Lesson(NamedTuple):
    why: str
    until: float


_NOTHING: frozenset[Concession] = frozenset()


#: What is learned where responses of a ``store`` flag are not continued.
_REPLAY = {
    store: (CapabilityScope(), Concession(ConcessionKind.CHAIN, name))
    for store, name in ((True, "with store"), (False, "without store"))
}


class LearnedCapabilities:
    """One account's lessons.

    :param now: unix seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lessons: dict[tuple[CapabilityScope, Concession], _Lesson] = {}
        self._trust: dict[bool, int] = {}
        self._did: set[bool] = set()

    def forget(self) -> None:
        """Everything is tried again."""
        self._lessons.clear()
        self._trust.clear()
        self._did.clear()

    # --- what requests give up -------------------------------------------------------

    def concessions(self, asked: CapabilityScope) -> frozenset[Concession]:
        """What a request gives up from the start.

        :param asked: its endpoint, model and tenant.
        """
        if not self._lessons:
            return _NOTHING
        now = self._now()
        return frozenset(
            concession
            for (scope, concession), lesson in self._lessons.items()
            if now < lesson.until and _covers(scope, asked)
        )

    def learn(self, scope: CapabilityScope, concession: Concession, why: str) -> None:
        """A request that was refused passed with this concession."""
        if len(scope.model or "") <= _MAX_NAME:
            self._note(scope, concession, why, _LASTS_SECONDS)

    # --- what it continues -----------------------------------------------------------

    def is_fresh(self, record: ResponseRecord) -> bool:
        """Whether a response is so young that it cannot have expired at its account."""
        return self._now() < record.created_at + TEACHES_FOR_SECONDS

    def reason_to_replay(self, store: bool) -> str | None:
        """Why responses of this ``store`` flag are not chained here, or None."""
        lesson = self._lessons.get(_REPLAY[store])
        return lesson.why if lesson is not None and self._now() < lesson.until else None

    def trusts(self, store: bool) -> bool:
        """Whether the account has shown that it continues responses of this ``store`` flag."""
        return self.reason_to_replay(store) is None and self._trust.get(store, -1) >= 0

    def continued(self, store: bool) -> None:
        """The account took up a response it was asked to continue."""
        self._trust[store] = _DOUBTS
        self._did.add(store)
        self._lessons.pop(_REPLAY[store], None)
        if store and self._lessons:
            self._keeps_items()

    def refused(self, parent: ResponseRecord, why: str) -> None:
        """The account did not continue ``parent``, and a replay of the turn was accepted.

        One that has shown that it can is doubted only after several refusals in a row.
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
        """All lessons that hold, the oldest first."""
        now = self._now()
        return [
            {
                "what": str(concession),
                "path": scope.path,
                "model": scope.model,
                "key": scope.tenant,
                "why": lesson.why,
                "until": lesson.until,
            }
            for (scope, concession), lesson in self._lessons.items()
            if now < lesson.until
        ]

    def _keeps_items(self) -> None:
        """It keeps responses: what single tenants were refused was not for it to keep."""
        unproven = [
            (scope, concession)
            for scope, concession in self._lessons
            if concession.kind is ConcessionKind.STORED_ITEMS and scope.tenant is not None
        ]
        for each in unproven:
            del self._lessons[each]

    def _note(
        self, scope: CapabilityScope, concession: Concession, why: str, seconds: float
    ) -> None:
        self._lessons.pop((scope, concession), None)
        self._lessons[scope, concession] = _Lesson(why, self._now() + seconds)
        if len(self._lessons) > MAX_LESSONS:
            del self._lessons[next(iter(self._lessons))]


def _covers(scope: CapabilityScope, asked: CapabilityScope) -> bool:
    """Whether a lesson concerns a request; what turns taught holds for what stands beside them."""
    return (
        (asked.path == scope.path or asked.path.startswith(scope.path + "/"))
        and scope.model in (None, asked.model)
        and scope.tenant in (None, asked.tenant)
    )
