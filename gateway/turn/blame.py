"""Whose fault the refusals of one request are, and what it tells of them once it is served."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from gateway.protocol.error_classification import Fault, FaultKind, attribute
from gateway.protocol.errors import ApiError
from gateway.routing.account import Account
from gateway.turn.context import TurnContext, TurnServices


class FaultAttribution:
    """One request's (design law 13).

    :param model: as the client calls it, or None.
    :param fingerprint: makes what is the same for a request that is sent again; called when it
        is refused.
    """

    def __init__(
        self,
        services: TurnServices,
        context: TurnContext,
        model: str | None,
        fingerprint: Callable[[], Hashable],
    ) -> None:
        self._clock = services.clock
        self._tenant = context.tenant
        self._model = model
        self._fingerprint = fingerprint
        #: Refusals that say not of whom they speak; an account that serves the request tells.
        self._unclear: list[tuple[Account, Fault]] = []

    def fault_of(self, account: Account, error: ApiError) -> Fault:
        """What ``error`` belongs to, as ``account`` gave it."""
        model = self._model
        fault = attribute(
            error,
            self._clock.seconds(),
            (self._tenant, self._fingerprint()),
            () if model is None else (model, account.settings.aliases.get(model, model)),
        )
        if fault.kind is FaultKind.UNCLEAR:
            self._unclear.append((account, fault))
        return fault

    def served_by(self, server: Account) -> None:
        """The request was fine: others that refused it without a clear word answer for that."""
        unclear, self._unclear = self._unclear, []
        for account, fault in unclear:
            if account is not server:
                account.health.outdone(self._model, fault)
