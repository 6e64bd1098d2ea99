"""What a passage needs of its request and of its door."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Protocol

from gateway.conversations.context import ContextPlan
from gateway.protocol.errors import ApiError
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.upstream.interface import ForwardedRequest


class RequestSpec(Protocol):
    """What is passed: one request, and what is known of its kind."""

    #: Its name in journals.
    what: str
    #: The model that the account must offer, or None for any.
    model: str | None
    #: Bytes of the client's body.
    size: int
    #: Whether answering it takes what a turn takes: then success shows that the account is well.
    generates: bool
    #: How the conversation it is about was sent along, once it was sent; None without any.
    plan: ContextPlan | None
    #: Bound on an answer that is held until it is whole, so that the request may move for
    #: longer; 0 for one that is relayed as it comes.
    held_bytes: int

    def fingerprint(self) -> Hashable:
        """The same for a request that is sent again."""

    def call_for(self, account: Account) -> ForwardedRequest:
        """The request as ``account`` should get it."""

    def mended(self, account: Account, error: ApiError) -> bool:
        """Whether the same account should get it again, in another way than it refused."""

    def accepted(self, account: Account) -> None:
        """``account`` took it as it was sent."""

    def translated(self, error: ApiError) -> ApiError:
        """A refusal as it concerns what is asked for."""

    def may_move(self, error: ApiError) -> bool:
        """Whether another account should get it after this refusal or failure.

        :param error: as :meth:`translated` gave it.
        """


class ProxiedResponseSink(Protocol):
    """Where the answer goes."""

    def passage_answers(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer begins.

        :param headers: all of the upstream's, names in lower case.
        """

    def passage_relays(self, data: bytes) -> None:
        """A piece of its body."""

    def passage_usage(self) -> Usage | None:
        """What the answer took, as far as it has said; asked once, before it is over."""

    def passage_ended(self, error: ApiError | None) -> None:
        """It is whole (None), or it broke off, or there is none but this error."""
