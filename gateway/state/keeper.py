"""The keeper of the state: connects what is in memory with the backend that the settings name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred

from gateway.api_keys.keys import KeyRing
from gateway.api_keys.limit_permits import SharedLimits
from gateway.config import StateSettings
from gateway.conversations.owners import MemoryIssuers, MemoryOwners
from gateway.conversations.store import MemoryStore
from gateway.protocol.turn_state import TurnStateSigner
from gateway.routing.account import Account
from gateway.routing.affinity import MemoryBindings
from gateway.state.backend import StateBackend
from gateway.state.durable_conversations import (
    ConversationRecall,
    DurableConversations,
    DurableIssuers,
    DurableOwners,
    NoRecall,
)
from gateway.state.encryption import Cipher, EncryptedBackend, passphrase
from gateway.state.redis import RedisBackend
from gateway.state.replication import (
    AccountTable,
    ReplicatedBindings,
    ReplicatedKeyUse,
    ReplicatedLessons,
    ReplicatedOperatorStates,
    ReplicatedQuotas,
    ReplicatedSecret,
    ReplicatedTable,
    Replication,
)
from gateway.state.serialization import AccountIds
from gateway.state.shared_accounts import ReplicatedCooldowns, SharedLoads
from gateway.state.shared_limits import FreePlaces, OnceOpen, authority_of
from gateway.state.sqlite import SqliteBackend, state_directory
from gateway.state.worker_state import LinkBackend, StateServer
from gateway.state.write_behind import WriteBehind, WriteFigures
from gateway.worker_link import Link

_DAY = 86_400.0

_ORIGIN_BYTES = 8


def backend_for(
    settings: StateSettings,
    environ: Mapping[str, str],
    reactor: Any,
    lock: int | None = None,
    link: Link | None = None,
) -> StateBackend | None:
    """The backend that the settings name; None for ``store: memory``.

    :param environ: names the default directory.
    :param lock: the descriptor of the state directory's locked file, if it was inherited.
    :param link: of a worker: its supervisor keeps what no server does.
    """
    if link is not None and "://" not in settings.store:
        return LinkBackend(link)
    if settings.store == "memory":
        return None
    kept: StateBackend
    if "://" in settings.store:
        kept = RedisBackend(reactor, settings)
    else:
        kept = SqliteBackend(reactor, state_directory(settings, environ), settings, lock)
    return EncryptedBackend(kept, Cipher(passphrase(settings)))


class StateFigures(NamedTuple):
    """Whether the state is kept, for the admin side.

    :ivar where: where it is kept, without passwords.
    :ivar file_bytes: what it takes on disk, if it is on this one's.
    :ivar unreadable: values that were encrypted with another key.
    """

    where: str
    writes: WriteFigures
    file_bytes: int | None
    unreadable: int


def figures_of(writes: WriteBehind) -> StateFigures:
    """What waits to be written, and whether it can be."""
    backend = writes.backend
    return StateFigures(
        backend.name,
        writes.figures(),
        getattr(backend, "file_bytes", None),  # of those that write a file
        getattr(backend, "unreadable", 0),
    )


def nothing_kept() -> StateFigures | None:
    """The figures of a gateway that keeps no state."""
    return None


def lock_of(backend: StateBackend | None) -> list[int]:
    """The descriptor of the state directory's locked file, for a successor; none without one."""
    if isinstance(backend, EncryptedBackend):
        backend = backend.inner
    lock = backend.lock if isinstance(backend, SqliteBackend) else None
    return [] if lock is None else [lock]


def server_for(
    settings: StateSettings, environ: Mapping[str, str], reactor: Any, lock: int | None = None
) -> StateServer | None:
    """What keeps the state of several workers; None if each talks to a Redis server itself.

    With ``store: memory`` it is in the supervisor's memory.

    :param environ: names the default directory.
    :param lock: the descriptor of the state directory's locked file, if it was inherited.
    """
    backend = backend_for(settings, environ, reactor, lock)
    if backend is not None and backend.shared:
        return None
    if backend is None:
        backend = SqliteBackend(reactor, None, settings)
    return StateServer(reactor, backend, _collect_seconds(settings))


def _collect_seconds(settings: StateSettings) -> float:
    """How long changes are collected: a quarter of what a crash may lose.

    The rest is for the write itself, on a machine that has other work.
    """
    return settings.flush_milliseconds / 4000


class StateKeeper(Service):
    """What outlives the process, and what processes share.

    :param backend: keeps it.
    :param accounts: called for the accounts in service.
    :ivar writes: the buffer of what is not written yet.
    """

    def __init__(
        self,
        reactor: Any,
        settings: StateSettings,
        backend: StateBackend,
        accounts: Callable[[], Sequence[Account]],
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._accounts = accounts
        self._ids = AccountIds()
        #: Names this process among those that share the state.
        self._origin = os.urandom(_ORIGIN_BYTES).hex()
        self._loads: SharedLoads | None = None
        self._limits: SharedLimits | None = None
        self._replication = Replication()
        # Others wait for what this process writes.
        flush_seconds = 0.0 if backend.shared else _collect_seconds(settings)
        self.writes = WriteBehind(
            backend,
            reactor,
            flush_seconds,
            self._replication.load,
            self._replication.feed,
        )

    def startService(self) -> None:
        """Load the state, and keep it from now on."""
        super().startService()
        self.writes.start()

    def stopService(self) -> Deferred[Any]:
        """Write what is not written yet."""
        super().stopService()
        if self._loads is not None:
            self._loads.stop()
        if self._limits is not None:
            self._limits.stop()
        return maybeDeferred(self.writes.stop)

    def accounts_changed(self) -> None:
        """Other accounts are in service, or some were made anew."""
        accounts = self._accounts()
        self._ids.reconfigure((each.name, each.settings.base_url) for each in accounts)
        for table in self._of_accounts:
            table.watch()

    # --- what is kept ------------------------------------------------------------------

    def conversations(self, memory: MemoryStore) -> DurableConversations:
        """Keep conversations, too."""
        return DurableConversations(
            memory,
            self.writes,
            self._ids,
            self._settings.persist,
            self._settings.max_age_days * _DAY,
            self._reactor.seconds,
        )

    def owners(self, memory: MemoryOwners) -> DurableOwners:
        """Keep the accounts of stored responses, too."""
        return DurableOwners(memory, self.writes, self._ids, self._reactor.seconds)

    def issuers(self, memory: MemoryIssuers) -> DurableIssuers:
        """Keep the issuers of encrypted content, too."""
        return DurableIssuers(memory, self.writes, self._ids, self._reactor.seconds)

    def recall(
        self,
        conversations: MemoryStore,
        owners: MemoryOwners,
        issuers: MemoryIssuers,
        keys: KeyRing,
    ) -> ConversationRecall:
        """Reads what is kept back into memory."""
        return ConversationRecall(
            self._reactor,
            self.writes,
            conversations,
            owners,
            issuers,
            self._ids,
            self._settings.when_unreachable == "refuse",
            lambda: keys.one_tenant,
        )

    def replicate(self, signer: TurnStateSigner, bindings: MemoryBindings, keys: KeyRing) -> None:
        """Keep these, and what is known of the accounts."""
        writes, now = self.writes, self._reactor.seconds
        of_accounts = (self._accounts, writes, self._ids, now)
        self._of_accounts: tuple[AccountTable, ...] = (
            ReplicatedOperatorStates(*of_accounts),
            ReplicatedLessons(*of_accounts),
            ReplicatedQuotas(*of_accounts),
        )
        if writes.backend.shared:
            self._loads = SharedLoads(
                self._accounts, writes, self._ids, self._reactor, self._origin, keys.wake
            )
            cooldowns = ReplicatedCooldowns(*of_accounts, self._origin)
            self._of_accounts += (cooldowns, self._loads)
        self._replication.add(
            ReplicatedSecret(signer, writes, now),
            ReplicatedBindings(bindings, writes, self._ids),
            self._key_use(keys),
            *self._of_accounts,
        )
        self.accounts_changed()

    def _key_use(self, keys: KeyRing) -> ReplicatedTable:
        """What keys use: kept here, or counted for all processes that share the state."""
        now = self._reactor.seconds
        authority = authority_of(self.writes.backend)
        if authority is None:
            return ReplicatedKeyUse(keys, self.writes, now)
        free = FreePlaces(self.writes, now)
        self._limits = free.limits = SharedLimits(
            self._reactor,
            OnceOpen(authority, self.writes),
            self._origin,
            free.tell,
            keys.wake,
        )
        keys.share(self._limits)
        return free

    # --- for the admin side ------------------------------------------------------------

    def figures(self) -> StateFigures:
        """What waits to be written, and whether it can be."""
        return figures_of(self.writes)


class NoKeeper(Service):
    """Without a backend nothing outlives the process: what is in memory stays as it is."""

    def accounts_changed(self) -> None:
        """Nothing is kept of accounts."""

    def conversations(self, memory: MemoryStore) -> MemoryStore:
        """The same."""
        return memory

    def owners(self, memory: MemoryOwners) -> MemoryOwners:
        """The same."""
        return memory

    def issuers(self, memory: MemoryIssuers) -> MemoryIssuers:
        """The same."""
        return memory

    def recall(
        self,
        conversations: MemoryStore,
        owners: MemoryOwners,
        issuers: MemoryIssuers,
        keys: KeyRing,
    ) -> NoRecall:
        """There is nothing to read back."""
        return NoRecall()

    def replicate(self, signer: TurnStateSigner, bindings: MemoryBindings, keys: KeyRing) -> None:
        """No other process has any of it."""

    def figures(self) -> None:
        """There are none."""
