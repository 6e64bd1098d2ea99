"""How one turn's context reaches an account: chained or replayed, and what that taught.

Settled rules of ``continuity: auto``: chain first; replay the same turn, unseen, when the
upstream does not take the id up; remember it for the account (design law 6).
"""

from __future__ import annotations

import itertools

from ..accounts.account import Account
from ..ledger.continuation import Plan, Route, anchor_of, chain_plan, pin_of, whole_plan
from ..ledger.records import Record
from ..protocol.errors import ApiError
from ..protocol.items import unanswered_calls
from ..protocol.refusals import misses_calls, refuses_continuation, refuses_seals
from ..protocol.request import TurnRequest


class TurnContinuity:
    """The context of one turn.

    :param parent: the response it continues, or None.
    """

    def __init__(self, parent: Record | None, request: TurnRequest) -> None:
        self._parent = parent
        self._request = request
        self._anchor, self._after_anchor = anchor_of(parent)
        self._not_continued: dict[str, str] = {}
        self._unsealed = False
        self._asked: str | None = None

    @property
    def can_replay(self) -> bool:
        """Whether all of the conversation is known here."""
        return self._anchor is None or not self._anchor.foreign

    def unknown_parent(self) -> ApiError:
        """What the client is told when no upstream knows a response that we do not know."""
        return ApiError.previous_response_not_found(self._request.previous_response_id or "")

    @property
    def holder(self) -> str | None:
        """The account that made the response to continue."""
        return self._anchor.account if self._anchor is not None else None

    @property
    def pinned_to(self) -> str | None:
        """The only account that can read the context, or None for any."""
        if not self.can_replay and self._asked is not None:
            return self._asked  # another would be blamed for not knowing the response
        return pin_of(self._parent, self._request.items)

    def plan(self, account: Account) -> Plan:
        """What to send to ``account`` now."""
        request = self._request
        self._asked = account.name
        reason = self._why_not_chain(account)
        if self._anchor is not None and reason is None:
            return chain_plan(self._anchor, self._after_anchor, request.items)
        return whole_plan(
            self._parent, request.items, account.name, request.store, reason, self._unsealed
        )

    def not_taken_up(self, account: Account) -> None:
        """``account`` answers as if it had not been sent a previous response."""
        self._not_continued[account.name] = "the upstream ignored previous_response_id"

    def mended(self, account: Account, plan: Plan, error: ApiError) -> bool:
        """Whether another plan may pass where ``plan`` was refused, by the same account.

        :param error: the refusal; nothing of the answer was seen by the client.
        """
        if not self.can_replay:
            return False
        if plan.route is Route.CHAINED and self._blames_the_chain(error):
            self._not_continued[account.name] = (
                f"the upstream refused previous_response_id ({error.label})"
            )
            return True
        if refuses_seals(error) and not self._unsealed:
            self._unsealed = True
            return True
        return False

    def translated(self, error: ApiError) -> ApiError:
        """``error`` as it concerns the conversation: a response that nobody knows is unknown."""
        unknown = not self.can_replay and refuses_continuation(error)
        return self.unknown_parent() if unknown else error

    def learn(self, account: Account, plan: Plan) -> None:
        """``account`` answered ``plan``: keep what that shows about previous responses."""
        anchor = self._anchor
        if anchor is None or anchor.account != account.name:
            return
        if plan.route is Route.CHAINED:
            account.learned.continued(anchor.store)
        elif account.name in self._not_continued:
            account.learned.refused(anchor, self._not_continued[account.name])

    def _why_not_chain(self, account: Account) -> str | None:
        anchor = self._anchor
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
