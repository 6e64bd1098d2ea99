"""How one turn's context reaches an account: chained or replayed, and what that taught.

Settled rules of ``continuity: auto``: chain first; replay the same turn, unseen, when the
upstream does not take the id up; remember it for the account (design law 6).  What else an
account refuses, and a request can do without, is given up for it (protocol.md §8.1).
"""

from __future__ import annotations

import itertools
from functools import partial

from gateway.conversations.context import (
    ContextPlan,
    ContextRoute,
    Reader,
    chain_plan,
    chain_point,
    pin_of,
    whole_plan,
)
from gateway.conversations.store import ConversationStore
from gateway.protocol.concessions import Concession, ConcessionKind, Sent
from gateway.protocol.errors import ApiError
from gateway.protocol.items import unanswered_calls
from gateway.protocol.refusals import (
    does_not_know,
    may_move,
    misses_calls,
    refuses_continuation,
    refuses_seals,
)
from gateway.protocol.request import TurnRequest
from gateway.routing.account import Account
from gateway.routing.capabilities import RESPONSES, CapabilityScope
from gateway.routing.selection import KEPT, SEALED
from gateway.turn.conceding import Conceding
from gateway.turn.context import TurnContext


class TurnContinuity:
    """The context of one turn.

    :param path: the endpoint that it is for.
    """

    def __init__(
        self,
        context: TurnContext,
        request: TurnRequest,
        ledger: ConversationStore,
        path: str = RESPONSES,
    ) -> None:
        self._parent = context.parent
        self._request = request
        self._given_here = context.given_here
        self._find = partial(ledger.find_item, context.tenant)
        self._conceding = Conceding(CapabilityScope(path, request.model, context.tenant), ledger)
        self._anchor, self._after_anchor = chain_point(context.parent)
        self._not_continued: dict[str, str] = {}
        self._unsealed = False
        #: The account that the turn came to first; ids that nobody here knows go to no other.
        self._first: str | None = None

    @property
    def can_replay(self) -> bool:
        """Whether all of the conversation is known here."""
        return self._parent is None or not any(each.foreign for each in self._parent.ancestry())

    @property
    def seeks_its_owner(self) -> bool:
        """Whether it continues a response that any of the accounts may keep."""
        anchor = self._anchor
        return anchor is not None and anchor.record.foreign and anchor.record.account is None

    def unknown_parent(self) -> ApiError:
        """What the client is told when no upstream knows a response that we do not know."""
        if self._given_here:
            return ApiError.forgotten()
        return ApiError.previous_response_not_found(self._request.previous_response_id or "")

    @property
    def holder(self) -> str | None:
        """The account that made the response to continue."""
        return self._anchor.record.account if self._anchor is not None else None

    @property
    def pinned_to(self) -> str | None:
        """The only account that can read the context, or None for any."""
        return pin_of(self._parent, self._request.items, self._find)

    @property
    def pin_rule(self) -> str:
        """Why only that can."""
        return SEALED if self.can_replay else KEPT

    def plan(self, account: Account) -> ContextPlan:
        """What to send to ``account`` now."""
        reason = self._why_not_chain(account)
        if self._anchor is not None and (reason is None or not self.can_replay):
            new = self._request.items
            return chain_plan(self._anchor, self._after_anchor, new, self._reader(account))
        return self.replay(account, reason)

    def replay(self, account: Account, reason: str | None) -> ContextPlan:
        """What to send to ``account`` when it is to be asked for no previous response."""
        return whole_plan(self._parent, self._request.items, self._reader(account), reason)

    def concessions(self, account: Account) -> frozenset[Concession]:
        """What the request gives up at ``account``."""
        return self._conceding.to(account)

    def may_keep(self, account: Account) -> bool:
        """Whether ``account`` keeps responses at all, as far as is known."""
        return account.settings.store != "never" and not self._gives(
            account, ConcessionKind.STORAGE
        )

    def is_kept_by(self, account: Account) -> bool:
        """Whether ``account`` is asked to keep the response."""
        return self._request.store and self.may_keep(account)

    def not_taken_up(self, account: Account) -> None:
        """``account`` answers as if it had not been sent a previous response."""
        self._not_continued[account.name] = "the upstream ignored previous_response_id"

    def mended(self, account: Account, plan: ContextPlan, sent: Sent, error: ApiError) -> bool:
        """Whether another request may pass where this one was refused, by the same account.

        :param sent: what of it could be given up.
        :param error: the refusal; nothing of the answer was seen by the client.
        """
        if self._conceding.makes(account, error, sent):
            return True
        if not self.can_replay:
            return False
        if plan.route is ContextRoute.CHAINED and self._blames_the_chain(error):
            self._not_continued[account.name] = (
                f"the upstream refused previous_response_id ({error.label})"
            )
            return True
        if refuses_seals(error) and not self._unsealed and self._sent_seals(plan, sent, error):
            self._unsealed = True
            return True
        return False

    def translated(self, error: ApiError) -> ApiError:
        """``error`` as it concerns the conversation.

        Where it goes on from a response that only an upstream may know, an account that does not
        says so in one way, which is nobody's fault.
        """
        anchor = self._anchor
        if anchor is None or self.can_replay or not does_not_know(error, anchor.record.id):
            return error
        return self.unknown_parent()

    def may_move(self, error: ApiError) -> bool:
        """Whether another account might answer what this one refused so.

        :param error: as :meth:`translated` gave it.
        """
        unknown = error.code == "previous_response_not_found"
        return may_move(error) or (unknown and self.seeks_its_owner)

    def accepted(self, account: Account) -> None:
        """``account`` took the request as it was sent: keep what it gave up for that."""
        self._conceding.accepted(account)

    def learn(self, account: Account, plan: ContextPlan) -> None:
        """``account`` answered ``plan``: keep what that shows about previous responses."""
        anchor = self._anchor
        if anchor is None or anchor.record.account != account.name:
            return
        if plan.route is ContextRoute.CHAINED:
            account.learned.continued(anchor.record.store)
        elif account.name in self._not_continued:
            account.learned.refused(anchor.record, self._not_continued[account.name])

    def _reader(self, account: Account) -> Reader:
        self._first = self._first or account.name
        return Reader(
            account.name,
            self.may_keep(account) and not self._gives(account, ConcessionKind.STORED_ITEMS),
            self._request.store,
            self._unsealed,
            self._find,
            account.name == self._first,
        )

    def _gives(self, account: Account, what: ConcessionKind) -> bool:
        return Concession(what) in self._conceding.to(account)

    @staticmethod
    def _sent_seals(plan: ContextPlan, sent: Sent, error: ApiError) -> bool:
        """Whether there was a seal to refuse: in the request, or in the chain it continues."""
        chained = plan.route is ContextRoute.CHAINED and error.code == "invalid_encrypted_content"
        return sent.issuers or chained

    def _why_not_chain(self, account: Account) -> str | None:
        anchor = None if self._anchor is None else self._anchor.record
        if anchor is None or anchor.foreign:
            return None
        if anchor.account != account.name:
            return f"the previous response belongs to {anchor.account}"
        if account.name in self._not_continued:
            return self._not_continued[account.name]
        if self._unsealed:
            return "the upstream refused sealed reasoning"
        if account.settings.continuity == "replay":
            return "continuity: replay"
        if account.settings.continuity == "auto":
            return account.learned.reason_to_replay(anchor.store)
        return None

    def _blames_the_chain(self, error: ApiError) -> bool:
        return refuses_continuation(error) or (misses_calls(error) and self._is_whole())

    def _is_whole(self) -> bool:
        """Whether every tool output has its call, as far as we know the conversation."""
        path = [] if self._parent is None else [each.items() for each in self._parent.ancestry()]
        return not unanswered_calls(itertools.chain(*path, self._request.items))
