"""Chain or replay for each account, the concessions of a request, and what is learned from both.

``continuity: auto`` chains first.  If the upstream ignores the id, the same turn is replayed before
the client sees anything, and that is remembered for the account (design law 6).  If an account
refuses a part of a request that does not change its meaning, the request is sent again without that
part, to the same account, before the client sees anything.  Once that is accepted it is learned:
later requests leave the part out from the start (protocol.md §8.1).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from twisted.logger import Logger

from gateway.conversations.context import (
    ContextPlan,
    ContextRoute,
    TargetAccount,
    chain_plan,
    chain_point,
    maker_of,
    pin_of,
    replay_plan,
)
from gateway.conversations.deduplication import without_resent_history
from gateway.conversations.store import ConversationStore, ResponseRecord, Transcript
from gateway.protocol.concessions import (
    Concession,
    ConcessionKind,
    SentRequest,
    concessions_to,
    depends_on_the_request,
    is_of_the_model,
    is_of_the_value,
    lost_items,
    sent_references,
)
from gateway.protocol.error_classification import (
    does_not_know,
    may_move,
    misses_calls,
    refuses_continuation,
    refuses_encrypted_content,
)
from gateway.protocol.errors import SOCKET_LOST, SOCKET_UNSUITED, ApiError
from gateway.protocol.items import Item, missing_calls, read_item
from gateway.protocol.response_stream import ResponseStream
from gateway.protocol.upstream_request import Dialect, added_include, instructions_digest
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey, derived_cache_key
from gateway.routing.capabilities import RESPONSES, CapabilityScope
from gateway.routing.selection import ENCRYPTED, KEPT
from gateway.turn.context import Resolution

_log = Logger(namespace="gateway.routing")

#: How often a request is changed and sent again to one account that refuses it.
_MOST_ROUNDS = 16

#: How many sockets of one account may fail one request before it goes there by HTTP.
_MOST_SOCKET_FAILURES = 2

_OF_A_SOCKET = frozenset({SOCKET_LOST, SOCKET_UNSUITED})

_MAX_WHY = 200

_STORAGE = Concession(ConcessionKind.STORAGE)
_STORED_ITEMS = Concession(ConcessionKind.STORED_ITEMS)


class RequestConcessions:
    """What one request gives up for each account, and what is learned from that.

    :param asked: its endpoint, its model as the client calls it, and the tenant.
    """

    def __init__(self, asked: CapabilityScope, conversations: ConversationStore) -> None:
        self._asked = asked
        self._conversations = conversations
        #: Per account its concessions, each with the scope that it would be learned for (None:
        #: it is not learned) and the reason.
        self._given: dict[str, dict[Concession, tuple[CapabilityScope | None, str]]] = {}
        self._rounds: dict[str, int] = {}

    def to(self, account: Account) -> frozenset[Concession]:
        """The concessions for ``account``: those learned and those of this request."""
        asked = self._asked_of(account) if account.settings.aliases else self._asked
        learned = account.learned.concessions(asked)
        return learned.union(self._given.get(account.name, ())) if self._given else learned

    def dialect(
        self,
        account: Account,
        concessions: frozenset[Concession],
        affinity: Sequence[AffinityKey],
        in_one_piece: bool = False,
    ) -> Dialect:
        """The dialect for ``account``, by its settings and by what it refused.

        :param concessions: from :meth:`to`.
        :param affinity: the request's keys.
        :param in_one_piece: whether to ask for one object instead of a stream, if the account
            supports it.
        """
        settings = account.settings
        inherits_instructions = settings.instructions == "inherited"
        if not concessions and not in_one_piece:  # the usual case
            return Dialect(
                settings.aliases.get(self._asked.model or ""),
                frozenset(settings.strip),
                settings.store != "never",
                settings.tools == "hoisted",
                derived_cache_key(affinity) if settings.derive_cache_key else None,
                inherits_instructions=inherits_instructions,
            )
        gives = {each.kind for each in concessions}
        return Dialect(
            settings.aliases.get(self._asked.model or ""),
            frozenset(settings.strip),
            settings.store != "never" and ConcessionKind.STORAGE not in gives,
            settings.tools == "hoisted" or ConcessionKind.TOOL_ITEMS in gives,
            derived_cache_key(affinity) if settings.derive_cache_key else None,
            ConcessionKind.TEXT_INPUT in gives,
            ConcessionKind.ENCRYPTED_REASONING not in gives,
            ConcessionKind.ONE_OBJECT in gives
            or not (in_one_piece or ConcessionKind.STREAM in gives),
            frozenset(each.member for each in concessions if each.kind is ConcessionKind.MEMBER),
            ConcessionKind.STORED_ITEMS not in gives,
            inherits_instructions,
        )

    def concede(self, account: Account, error: ApiError, sent: SentRequest) -> bool:
        """Give up what ``account`` refused, if possible; whether to send the request again.

        :param error: the refusal; nothing of the answer was seen by the client.
        """
        given = self.to(account)
        more = [each for each in concessions_to(error, sent) if each not in given]
        rounds = self._rounds.get(account.name, 0)
        if not more or rounds >= _MOST_ROUNDS:
            return False
        self._rounds[account.name] = rounds + 1
        for each in more:
            self._given.setdefault(account.name, {})[each] = (
                self._scope_of(account, each, error, sent),
                _why(error),
            )
        return True

    def accepted(self, account: Account) -> None:
        """``account`` accepted the request: learn the concessions that were made for it."""
        for concession, (scope, why) in self._given.get(account.name, {}).items():
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
        self, account: Account, concession: Concession, error: ApiError, sent: SentRequest
    ) -> CapabilityScope | None:
        """The scope it may be learned for: values that a tenant sends concern no other tenant."""
        asked = self._asked_of(account)
        if concession.kind is ConcessionKind.STORED_ITEMS:
            return self._scope_of_items(account, lost_items(error, sent.references))
        if depends_on_the_request(concession, error):
            return None
        return CapabilityScope(
            asked.path,
            asked.model if is_of_the_model(concession, error) else None,
            asked.tenant if is_of_the_value(concession, error) else None,
        )

    def _scope_of_items(self, account: Account, lost: set[str]) -> CapabilityScope | None:
        """The scope for which it is learned that the account does not keep items.

        If it lost a fresh item that it should keep, it is learned for all tenants.  If the account
        has kept responses before, the items may be those of other accounts, and nothing is learned.
        Otherwise it is learned for the tenant that sent such items, because other tenants may rely
        on items that the account does keep.
        """
        asked, learned = self._asked, account.learned
        for item_id in lost:
            found = self._conversations.find_item(asked.tenant or "", item_id)
            kept = found is not None and found.is_kept_by(account.name)
            if kept and found is not None and learned.is_fresh(found.record):
                return CapabilityScope(asked.path)
        return None if learned.trusts(True) else CapabilityScope(asked.path, None, asked.tenant)


class ResponseAtAccount(NamedTuple):
    """What an account knows of a response that it made.

    :ivar id: its id there, if clients got another one.
    :ivar holder: the token of the connection that alone can continue it, or None.
    :ivar instructions: the digest of those that the account keeps for it, or None.
    """

    id: str | None = None
    holder: str | None = None
    instructions: bytes | None = None


class TurnContinuity:
    """The conversation of one request.

    :param tenant: the client key.
    :param resolution: the request, and the response it continues.
    :param path: the endpoint that it is for.
    :ivar holder: the account that made the response to continue, or None.
    :ivar maker: the account that made the latest part of the history that the request continues or
        brings, or None.
    """

    def __init__(
        self,
        tenant: str,
        resolution: Resolution,
        conversations: ConversationStore,
        path: str = RESPONSES,
    ) -> None:
        request, self._parent = resolution.request, resolution.parent
        self._tenant = tenant
        self._request = request
        self._steered = tuple(resolution.steered)
        self._issued_here = resolution.issued_here
        self._conversations = conversations
        self._find = partial(conversations.find_item, tenant)
        self._point, self._after_point = chain_point(self._parent)
        self._chained_to = None if self._point is None else self._point.record
        self._not_continued: dict[str, str] = {}
        self._drops_encrypted = False
        self._socket_failures: dict[str, int] = {}
        #: The first account that was tried; only it gets ids that are not remembered.
        self._first: str | None = None
        self.holder = None if self._chained_to is None else self._chained_to.account
        self.maker = (
            maker_of(request.items, self._find) if self._parent is None else self._parent.account
        )
        self.concessions = RequestConcessions(
            CapabilityScope(path, request.model, tenant), conversations
        )

    @property
    def can_replay(self) -> bool:
        """Whether the gateway has all of the conversation."""
        return self._parent is None or not any(each.foreign for each in self._parent.ancestry())

    @property
    def owner_is_unknown(self) -> bool:
        """Whether it continues a response whose account is unknown."""
        return (
            self._chained_to is not None
            and self._chained_to.foreign
            and self._chained_to.account is None
        )

    def unknown_parent(self) -> ApiError:
        """The client's error when neither the gateway nor an upstream has the response."""
        if self._issued_here:
            return ApiError.forgotten()
        return ApiError.previous_response_not_found(self._request.previous_response_id or "")

    def pinned_to(self) -> str | None:
        """The only account that can read the context, or None for any."""
        return pin_of(self._parent, self._request.items, self._find)

    @property
    def pin_rule(self) -> str:
        """The rule by which the request is pinned."""
        return ENCRYPTED if self.can_replay else KEPT

    # --- what is sent ----------------------------------------------------------------

    def plan(self, account: Account, concessions: frozenset[Concession]) -> ContextPlan:
        """Decide between chain and replay for ``account``.

        :param concessions: what the request gives up there.
        """
        reason = self._why_not_chain(account)
        point = self._point
        if point is not None and (reason is None or not self.can_replay):
            new = self._request.items
            reader = self._reader(account, concessions)
            return chain_plan(point, self._after_point, new, reader)
        return self.replay(account, concessions, reason)

    def followed(self) -> ContextPlan:
        """The plan of a response that its account has begun by itself after the one before."""
        parent = None if self._parent is None else self._parent.record.id
        return ContextPlan(ContextRoute.CHAINED, parent, None, None)

    def replay(
        self, account: Account, concessions: frozenset[Concession], reason: str | None
    ) -> ContextPlan:
        """The plan for ``account`` without a previous response."""
        reader = self._reader(account, concessions)
        new = (*self._steered, *self._request.items)
        return replay_plan(self._parent, new, reader, reason)

    def sent(self, plan: ContextPlan, dialect: Dialect) -> SentRequest:
        """The parts of the sent request that could be given up."""
        request = self._request
        items = request.items if plan.items is None else tuple(map(read_item, plan.items))
        return SentRequest(
            request.members,
            added_include(request, dialect) is not None,
            request.store and dialect.stores,
            dialect.streams,
            sent_references(items),
            plan.items is None and request.has_text_input and not dialect.takes_only_lists,
            not dialect.hoists_tools and any(item.type == "additional_tools" for item in items),
            any(item.encrypted for item in items),
        )

    def may_keep(self, account: Account) -> bool:
        """Whether ``account`` may keep responses, as far as is known."""
        return account.settings.store != "never" and _STORAGE not in self.concessions.to(account)

    def is_kept_by(self, account: Account) -> bool:
        """Whether ``account`` is asked to keep the response."""
        return self._request.store and self.may_keep(account)

    # --- what comes back -------------------------------------------------------------

    def not_taken_up(self, account: Account) -> None:
        """``account`` ignored the previous response: replay for it from now on."""
        self._not_continued[account.name] = "the upstream ignored previous_response_id"

    def adapt_to(
        self, account: Account, plan: ContextPlan, sent: SentRequest, error: ApiError
    ) -> bool:
        """Change the request to what ``account`` may accept; whether to send it there again.

        :param sent: the parts of the request that could be given up.
        :param error: the refusal; nothing of the answer was seen by the client.
        """
        if error.code in _OF_A_SOCKET:
            return self._socket_failed(account, error)
        if self.concessions.concede(account, error, sent):
            return True
        if not self.can_replay:
            return False
        chained = plan.route is ContextRoute.CHAINED
        if chained and self._blames_the_chain(error):
            self._not_continued[account.name] = (
                f"the upstream refused previous_response_id ({error.label})"
            )
            return True
        # The encrypted content is in the request, or in the chain that it continues.
        has_encrypted = sent.encrypted_items or (
            chained and error.code == "invalid_encrypted_content"
        )
        if refuses_encrypted_content(error) and not self._drops_encrypted and has_encrypted:
            self._drops_encrypted = True
            return True
        return False

    def at_account(
        self, account: Account, response: ResponseStream, holder: str | None
    ) -> ResponseAtAccount | None:
        """What ``account`` knows of the response that it made.

        :param holder: the token of the connection that alone can continue it, or None.
        :return: None if it cannot be continued there.
        """
        if holder is None and (response.id_is_ours or not self.may_keep(account)):
            return None
        if not response.upstream_id:
            return None
        inherited = account.settings.instructions == "inherited"
        return ResponseAtAccount(
            response.upstream_id if response.id_is_ours else None,
            holder,
            instructions_digest(self._request) if inherited else None,
        )

    def holder_of(self, plan: ContextPlan) -> str | None:
        """The token of the connection that ``plan`` needs; None where any will do."""
        if plan.route is not ContextRoute.CHAINED or self._chained_to is None:
            return None
        return self._chained_to.holder

    def avoids_websocket(self, account: Account) -> bool:
        """Whether the request goes to ``account`` by HTTP, after sockets have failed it."""
        return self._socket_failures.get(account.name, 0) >= _MOST_SOCKET_FAILURES

    def _socket_failed(self, account: Account, error: ApiError) -> bool:
        """A socket was lost, or cannot carry the request; whether to send it there again.

        The context is sent in full then.  The second failure sends it by HTTP, and so does the
        first if WebSocket cannot carry it.
        """
        if self._request.prewarm:
            return False  # the gateway answers it
        name, response = account.name, self._chained_to
        lived_there = response is not None and response.holder is not None
        failures = self._socket_failures.get(name, 0) + 1
        if failures > _MOST_SOCKET_FAILURES or (lived_there and not self.can_replay):
            return False
        if error.code == SOCKET_UNSUITED:
            failures = _MOST_SOCKET_FAILURES
        self._socket_failures[name] = failures
        if lived_there:
            self._not_continued[name] = error.message
        return True

    def translated(self, error: ApiError) -> ApiError:
        """``error`` from the conversation's point of view.

        If the request continues a response that only an upstream may have, all ways to say that an
        account does not have it, or that its socket is gone, become one error, and no account is
        charged for it.
        """
        response = self._chained_to
        if response is None or self.can_replay:
            return error
        is_gone = response.holder is not None and error.code in _OF_A_SOCKET
        return self.unknown_parent() if is_gone or does_not_know(error, response.id) else error

    def may_move(self, error: ApiError) -> bool:
        """Whether another account might answer what this one refused so.

        :param error: as :meth:`translated` gave it.
        """
        unknown = error.code == "previous_response_not_found"
        # No account is at fault for a lost socket, but another's may work.
        lost = error.code in _OF_A_SOCKET
        return may_move(error) or lost or (unknown and self.owner_is_unknown)

    def learn(self, account: Account, plan: ContextPlan) -> None:
        """``account`` answered ``plan``: learn whether it continues responses."""
        response, name = self._chained_to, account.name
        if response is None or response.account != name:
            return
        chained = plan.route is ContextRoute.CHAINED
        if response.holder is not None:  # what a socket continues says nothing about the account
            if chained or (name in self._not_continued and name not in self._socket_failures):
                account.upstream.continued(chained)
        elif chained:
            account.learned.continued(response.store)
        elif name in self._not_continued:
            account.learned.refused(response, self._not_continued[name])

    def record(
        self,
        response_id: str,
        output: Sequence[Item],
        account: str | None,
        at_account: ResponseAtAccount | None,
        now: float,
    ) -> Transcript:
        """Remember a response that can be continued.

        :param output: the finished items as the client saw them, in ``output_index`` order.
        :param account: the account that made it, or None for the gateway itself.
        :param at_account: what that account knows of it; None if it does not have it.
        :param now: unix seconds.
        """
        request, parent = self._request, self._parent
        pinned_to = pin_of(parent, (*request.items, *output), self._find)
        if parent is not None and parent.record.foreign:
            pinned_to = pinned_to or account  # only this account has what came before
        record = ResponseRecord(
            tenant=self._tenant,
            id=response_id,
            parent=None if parent is None else parent.record.key,
            input=(*self._steered, *without_resent_history(parent, request.items)),
            output=tuple(output),
            account=account,
            store=request.store,
            held_upstream=at_account is not None,
            model=request.model,
            created_at=now,
            pinned_to=pinned_to,
            holder=None if at_account is None else at_account.holder,
            upstream_id=None if at_account is None else at_account.id,
            instructions=None if at_account is None else at_account.instructions,
        )
        transcript = Transcript(record, parent)
        self._conversations.add(transcript)
        return transcript

    def _reader(self, account: Account, concessions: frozenset[Concession]) -> TargetAccount:
        name = account.name
        self._first = self._first or name
        keeps = account.settings.store != "never"
        if concessions:
            keeps = keeps and concessions.isdisjoint((_STORAGE, _STORED_ITEMS))
        return TargetAccount(
            name, keeps, self._request.store, self._drops_encrypted, self._find, name == self._first
        )

    def _why_not_chain(self, account: Account) -> str | None:
        response = self._chained_to
        if response is None or response.foreign:
            return None
        name = account.name
        if not account.upstream.holds(response.holder or response.account or ""):
            if response.holder is not None and response.account == name:
                return "the WebSocket of the previous response is gone"
            return f"the previous response belongs to {response.account}"
        if name in self._not_continued:
            return self._not_continued[name]
        if self._drops_encrypted:
            return "the upstream refused encrypted reasoning"
        inherited = account.settings.instructions == "inherited"
        if inherited and response.instructions != instructions_digest(self._request):
            return "the instructions have changed, and the service keeps those before"
        if response.holder is not None:
            return None  # the setting and what was learned are about ids that the account has
        if account.settings.continuity == "replay":
            return "continuity: replay"
        if account.settings.continuity == "auto":
            if not response.store and account.settings.transport != "http":
                return "only a WebSocket continues responses with store: false, and it came by HTTP"
            return account.learned.reason_to_replay(response.store)
        return None

    def _blames_the_chain(self, error: ApiError) -> bool:
        return refuses_continuation(error) or (misses_calls(error) and self._is_whole())

    def _is_whole(self) -> bool:
        """Whether every tool output has its call in the conversation that is known."""
        path = [] if self._parent is None else [each.items() for each in self._parent.ancestry()]
        return not missing_calls(itertools.chain(*path, self._request.items))


def _why(error: ApiError) -> str:
    why = " ".join(str(error).split())
    return why if len(why) <= _MAX_WHY else why[: _MAX_WHY - 1] + "…"
