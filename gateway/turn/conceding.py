"""What one request gives up for each account it comes to, and what that taught.

A refusal that names something whose loss changes nothing is answered by the same request
without it, to the same account, unseen.  Once that was accepted the account has taught it, and
the next request goes without it at once (protocol.md §8.1).
"""

from __future__ import annotations

from twisted.logger import Logger

from gateway.conversations.store import ConversationStore
from gateway.protocol.concessions import (
    Concession,
    ConcessionKind,
    Sent,
    concessions_to,
    depends_on_the_request,
    is_of_the_model,
    is_of_the_value,
    lost_items,
)
from gateway.protocol.errors import ApiError
from gateway.routing.account import Account
from gateway.routing.capabilities import CapabilityScope

_log = Logger(namespace="gateway.routing")

#: How often one account gets a request anew because of what it refused.
_MOST_ROUNDS = 16

_MAX_WHY = 200


class Conceding:
    """One request's concessions.

    :param asked: its endpoint, its model as the client calls it, and whose it is.
    """

    def __init__(self, asked: CapabilityScope, ledger: ConversationStore) -> None:
        self._asked = asked
        self._ledger = ledger
        #: Per account what was given up in this turn, with the scope that it would be learned
        #: for (None: it teaches nothing) and why.
        self._made: dict[str, dict[Concession, tuple[CapabilityScope | None, str]]] = {}
        self._rounds: dict[str, int] = {}

    def to(self, account: Account) -> frozenset[Concession]:
        """What ``account`` is not sent."""
        learned = account.learned.concessions(self._asked_of(account))
        made = self._made.get(account.name)
        return learned if made is None else learned.union(made)

    def makes(self, account: Account, error: ApiError, sent: Sent) -> bool:
        """Whether the request may pass in another way than ``account`` refused it.

        :param error: the refusal; nothing of the answer was seen by the client.
        """
        given = self.to(account)
        more = [each for each in concessions_to(error, sent) if each not in given]
        rounds = self._rounds.get(account.name, 0)
        if not more or rounds >= _MOST_ROUNDS:
            return False
        self._rounds[account.name] = rounds + 1
        made = self._made.setdefault(account.name, {})
        for each in more:
            made[each] = self._scope_of(account, each, error, sent), _why(error)
        return True

    def accepted(self, account: Account) -> None:
        """``account`` took the request as it was sent: what was given up for it is learned."""
        for concession, (scope, why) in self._made.get(account.name, {}).items():
            if scope is not None:
                account.learned.learn(scope, concession, why)
                _log.info(
                    "account {account} is sent {what} from now on{of_model}{of_key}: {why}",
                    account=account.name,
                    what=str(concession),
                    of_model="" if scope.model is None else f" for {scope.model}",
                    of_key="" if scope.tenant is None else f" by the key {scope.tenant}",
                    why=why,
                )

    def _asked_of(self, account: Account) -> CapabilityScope:
        model = self._asked.model
        return self._asked._replace(model=account.settings.aliases.get(model or "", model))

    def _scope_of(
        self, account: Account, concession: Concession, error: ApiError, sent: Sent
    ) -> CapabilityScope | None:
        """Whom it may be learned for: nobody suffers for what a tenant makes up."""
        asked = self._asked_of(account)
        if concession.gives is ConcessionKind.STORED_ITEMS:
            return self._scope_of_items(account, lost_items(error, sent.by_id))
        if depends_on_the_request(concession, error):
            return None
        return CapabilityScope(
            asked.path,
            asked.model if is_of_the_model(concession, error) else None,
            asked.tenant if is_of_the_value(concession, error) else None,
        )

    def _scope_of_items(self, account: Account, lost: set[str]) -> CapabilityScope | None:
        """An account that lost what it was to keep a moment ago keeps nothing, for anybody.

        That it does not know items of elsewhere says nothing of one that has kept responses.
        Of any other it is learned for the tenant that brings such items: they may be at home
        at an account where others rely on theirs.
        """
        asked, learned = self._asked, account.learned
        for item_id in lost:
            found = self._ledger.find_item(asked.tenant or "", item_id)
            kept = found is not None and found.is_kept_by(account.name)
            if kept and found is not None and learned.is_fresh(found.record):
                return CapabilityScope(asked.path)
        return None if learned.trusts(True) else CapabilityScope(asked.path, None, asked.tenant)


def _why(error: ApiError) -> str:
    why = " ".join(str(error).split())
    return why if len(why) <= _MAX_WHY else why[: _MAX_WHY - 1] + "…"
