"""Requests to the router, and its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.protocol.error_classification import FaultKind
from gateway.routing.account import Account, Lease
from gateway.routing.affinity import AffinityKey
from gateway.routing.health import Unavailable

#: The rules by which only one account can serve a turn.
ENCRYPTED = "sealed items"
FOLLOWS = "follows a steered response"
KEPT = "keeps the previous response"


class RouteRequest(NamedTuple):
    """The requirements of an attempt.

    :ivar model: must be offered by the account; None when the request names none.
    :ivar keys: the conversation's affinity keys; the last one is bound.
    :ivar holder: the account that holds the parent response, or None.
    :ivar pinned_to: the only account that can read the context, or None for any.
    :ivar pin_rule: the rule of the pin.
    :ivar turn_state: the account that the client's turn state names, or None.
    :ivar background: whether the account must take background responses.
    :ivar chat: whether it must take chat completions.
    :ivar undoubted: whether accounts in doubt are left out, because one of them has refused the
        turn already.
    :ivar maker: the account that made the latest item of the history that the request brings, or
        None.
    """

    model: str | None
    keys: Sequence[AffinityKey]
    holder: str | None = None
    pinned_to: str | None = None
    turn_state: str | None = None
    background: bool = False
    chat: bool = False
    undoubted: bool = False
    pin_rule: str = ENCRYPTED
    maker: str | None = None


class Selection(NamedTuple):
    """The lease on the chosen account, and the rule that chose it.

    :ivar candidates: how many accounts offer the model.
    :ivar others: why other accounts were not chosen, by name; those of the conversation's
        affinity come first.
    """

    lease: Lease
    rule: str
    candidates: int
    others: Mapping[str, str]

    @property
    def account(self) -> Account:
        """The chosen account."""
        return self.lease.account


class NoAccount(NamedTuple):
    """No account can serve the attempt now.

    :ivar wanted: what was asked for.
    :ivar candidates: the accounts that could, were they available; empty when none offers
        the model.
    :ivar waits_for: name of the only account that can serve, or None for any candidate.
    :ivar reasons: why each candidate cannot, without those that refused this turn and do not
        cool down, and without those in doubt that are left out.
    :ivar rule: the rule by which no other account was asked.
    """

    wanted: RouteRequest
    candidates: Sequence[Account]
    waits_for: str | None
    reasons: tuple[Unavailable, ...]
    rule: str

    @property
    def any_would_do(self) -> bool:
        """Whether any account that offers the model could have served."""
        return bool(self.candidates) and self.waits_for is None

    @property
    def free_at(self) -> float | None:
        """When the first candidate may be available again, unix seconds; None when unknown."""
        known = [reason.until for reason in self.reasons if reason.until is not None]
        return min(known, default=None)

    @property
    def refuse_the_model(self) -> bool:
        """Whether every account has said that it does not offer the model after all."""
        kinds = [reason.kind for reason in self.reasons]
        return len(kinds) == len(self.candidates) and set(kinds) == {FaultKind.MODEL_REFUSED}


class DryRun(NamedTuple):
    """The choice that the router would make.

    :ivar account: the account; None for no account, or for one of several.
    :ivar rule: the rule that decides.
    :ivar among: the accounts of which the routing strategy would pick one.
    :ivar candidates: the accounts that offer the model.
    :ivar rejected: accounts that would not be taken, and why.
    :ivar waits_for: the one account the turn would wait for, or None.
    """

    account: str | None
    rule: str
    among: tuple[str, ...]
    candidates: tuple[str, ...]
    rejected: Mapping[str, str]
    waits_for: str | None
