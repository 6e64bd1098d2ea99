"""What a turn asks of its tenant's limits."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from gateway.protocol.errors import ApiError
from gateway.protocol.usage import Usage


class Busy(NamedTuple):
    """A limit is reached for now.

    :ivar limit: its name in the configuration.
    :ivar error: what the client is told if waiting does not help.
    :ivar free_at: when the limit ends, unix seconds; None for any moment.
    """

    limit: str
    error: ApiError
    free_at: float | None


class Visit(Protocol):
    """A turn within its tenant's limits."""

    def used(self, usage: Usage) -> None:
        """Count the tokens of its answer."""

    def leave(self) -> None:
        """The turn is over; later calls are ignored."""


class TenantLimits(Protocol):
    """The limits of all tenants."""

    @property
    def one_tenant(self) -> bool:
        """Whether there is but one, so that no other's responses can be named."""

    def sees_quotas(self, tenant: str) -> bool:
        """Whether it is told what accounts say of their limits."""

    def enter(self, tenant: str, model: str | None) -> Visit | Busy:
        """Let a turn in, or say what is in its way.

        :raises ApiError: when the tenant may never do this.
        """

    def refused(self, tenant: str, limit: str) -> None:
        """Count a turn that was refused for ``limit``, after all waiting."""


class NoLimits:
    """No limits at all; it is its own :class:`Visit`."""

    def __init__(self, one_tenant: bool = True) -> None:
        self.one_tenant = one_tenant

    def sees_quotas(self, tenant: str) -> bool:
        """See :class:`TenantLimits`."""
        return True

    def enter(self, tenant: str, model: str | None) -> Visit | Busy:
        """See :class:`TenantLimits`."""
        return self

    def used(self, usage: Usage) -> None:
        """Nobody counts."""

    def leave(self) -> None:
        """Nobody waits."""

    def refused(self, tenant: str, limit: str) -> None:
        """Nobody is refused."""
