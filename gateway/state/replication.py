"""The small tables: each is in memory as a whole, written behind, and followed in other processes.

A :class:`ReplicatedTable` connects one structure in memory with its rows.  It gives changes to the
write-behind buffer, and takes the rows that were loaded at the start or changed by others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from functools import partial
from typing import Any, Protocol

import msgspec

from gateway.api_keys.keys import KeyRing
from gateway.api_keys.limit_ledger import KeyUse
from gateway.protocol.rate_limits import QuotaWindow
from gateway.protocol.turn_state import TurnStateSigner
from gateway.routing.account import Account
from gateway.routing.affinity import Binding, MemoryBindings
from gateway.routing.capabilities import Lesson
from gateway.routing.cooldown import AdminState
from gateway.state.backend import (
    BINDINGS,
    KEY_USE,
    LESSONS,
    OPERATOR,
    QUOTAS,
    SECRETS,
    Row,
)
from gateway.state.serialization import AccountIds, decode, encode
from gateway.state.write_behind import WriteBehind

_DAY = 86_400.0

#: How long it is kept what a key has used, in seconds.
KEY_USE_SECONDS = 400 * _DAY

#: Rows that only the operator's next action replaces, in seconds.
_FOREVER = 10 * 365 * _DAY

_TURN_STATE = b"turn_state"


class ReplicatedTable(Protocol):
    """One structure in memory and its rows.

    :ivar table: the name of its table.
    """

    table: str

    def load(self, rows: Sequence[Row]) -> None:
        """Take all rows, at the start or when the backend can be reached again."""

    def apply(self, row: Row) -> None:
        """Take a row that another process has changed."""


class Replication:
    """Brings rows to the tables that they belong to."""

    def __init__(self) -> None:
        self._tables: dict[str, ReplicatedTable] = {}

    def add(self, *tables: ReplicatedTable) -> None:
        """Replicate these, too."""
        self._tables.update({each.table: each for each in tables})

    def load(self, table: str, rows: Sequence[Row]) -> None:
        """All rows of one table."""
        if table in self._tables:
            self._tables[table].load(rows)

    def feed(self, rows: Sequence[Row]) -> None:
        """Rows that other processes have changed."""
        for row in rows:
            if row.table in self._tables:
                self._tables[row.table].apply(row)


class _EachRow:
    """A table whose rows mean the same when they are loaded as when they change.

    What the backend lacks when it is opened again, because it began anew, is written again.
    """

    table = ""

    def __init__(self, writes: WriteBehind) -> None:
        self._writes = writes

    def load(self, rows: Sequence[Row]) -> None:
        """Take all rows that are not about to be replaced."""
        for row in rows:
            if not self._writes.waits(self.table, row.key):
                self.apply(row)
        self._write_missing({row.key for row in rows})

    def _write_missing(self, known: Set[bytes]) -> None:
        """Write what is in memory and not among these keys."""

    def apply(self, row: Row) -> None:
        """Take one row."""
        raise NotImplementedError


class ReplicatedSecret:
    """The secret that signs turn states: the first process makes it known, all others take it."""

    table = SECRETS

    def __init__(
        self, signer: TurnStateSigner, writes: WriteBehind, now: Callable[[], float]
    ) -> None:
        self._signer = signer
        self._writes = writes
        self._now = now
        self._is_known = False

    def load(self, rows: Sequence[Row]) -> None:
        """Take the secret, or make it known."""
        known, self._is_known = self._is_known, True
        for row in rows:
            if row.key == _TURN_STATE and row.value:
                self._signer.secret = row.value
                return
        if self._writes.waits(SECRETS, _TURN_STATE):
            return
        if known:
            self._writes.began_anew()
        self._write()

    def apply(self, row: Row) -> None:
        """Another process made one known, too: the smaller one counts in all of them."""
        if row.key != _TURN_STATE or not row.value or row.value == self._signer.secret:
            return
        self._signer.secret = min(row.value, self._signer.secret)
        self._write()  # the backend has either of them

    def _write(self) -> None:
        until = self._now() + _FOREVER
        self._writes.put(Row(SECRETS, _TURN_STATE, self._signer.secret, until))


class _WrittenBinding(msgspec.Struct, array_like=True, frozen=True):
    account: str
    why: str
    bound_at: float
    stand_in: str | None
    stand_in_why: str | None
    used_at: float
    rule: str
    leaves: str | None


class ReplicatedBindings(_EachRow):
    """The accounts that conversations are bound to.

    Bindings of connections end with their connection and are not written.
    """

    table = BINDINGS

    def __init__(self, bindings: MemoryBindings, writes: WriteBehind, ids: AccountIds) -> None:
        super().__init__(writes)
        self._bindings = bindings
        self._ids = ids
        bindings.changed = self._changed

    def _changed(self, digest: bytes, tenant: str, binding: Binding | None) -> None:
        if binding is None:
            self._writes.put(Row(BINDINGS, digest, None, 0.0, tenant))
        elif binding.rule != "connection" and binding.answered:
            self._writes.put_later(BINDINGS, digest, partial(self._row, digest, binding))

    def _row(self, digest: bytes, binding: Binding) -> Row | None:
        ids = self._ids
        account = ids.id_of(binding.account)
        if account is None:
            return None
        written = _WrittenBinding(
            account,
            binding.why,
            binding.bound_at,
            None if binding.stand_in is None else ids.id_of(binding.stand_in),
            binding.stand_in_why,
            binding.used_at,
            binding.rule,
            None if binding.leaves is None else ids.id_of(binding.leaves),
        )
        until = binding.used_at + self._bindings.ttl_seconds
        return Row(BINDINGS, digest, encode(written), until, binding.tenant)

    def _write_missing(self, known: Set[bytes]) -> None:
        for digest, binding in self._bindings.all():
            if digest not in known:
                self._changed(digest, binding.tenant, binding)

    def apply(self, row: Row) -> None:
        """Take one binding."""
        if row.value is None:
            self._bindings.restore(row.key, row.tenant, None)
            return
        written, ids = decode(row.value, _WrittenBinding), self._ids
        account = None if written is None else ids.name_of(written.account)
        if written is None or account is None:
            return
        stand_in = ids.name_of(written.stand_in)
        self._bindings.restore(
            row.key,
            row.tenant,
            Binding(
                account,
                written.why,
                written.bound_at,
                stand_in,
                written.stand_in_why if stand_in is not None else None,
                written.used_at,
                written.rule,
                row.tenant,
                ids.name_of(written.leaves),
            ),
        )


class AccountTable(_EachRow):
    """A table with one row for each account.

    :param accounts: called for the accounts in service.
    """

    def __init__(
        self,
        accounts: Callable[[], Iterable[Account]],
        writes: WriteBehind,
        ids: AccountIds,
        now: Callable[[], float],
    ) -> None:
        super().__init__(writes)
        self._accounts = accounts
        self._ids = ids
        self._now = now
        #: The accounts that are followed, by their names.
        self._followed: dict[str, Account] = {}

    def watch(self) -> None:
        """Follow the changes of the accounts that are in service now.

        What was written of one that was made anew is replaced; its predecessor, on which turns
        may still run, is no longer followed.
        """
        for account in self._accounts():
            former = self._followed.get(account.name)
            if former is account:
                continue
            if former is not None:
                self._follow(former, lambda: None)
            self._follow(account, partial(self._changed, account))
            self._followed[account.name] = account
            if former is not None:
                self._changed(account)

    def _follow(self, account: Account, changed: Callable[[], None]) -> None:
        """Let the account call this after a change."""
        raise NotImplementedError

    def apply(self, row: Row) -> None:
        """Take what was written of an account that is in service."""
        found = self._account(row.key.decode(errors="replace"))
        if found is not None and row.value is not None:
            self._take(found, row.value)

    def _account(self, written: str) -> Account | None:
        """The account that was written so, if it is in service."""
        name = self._ids.name_of(written)
        return next((each for each in self._accounts() if each.name == name), None)

    def _take(self, account: Account, value: bytes) -> None:
        raise NotImplementedError

    def _changed(self, account: Account) -> None:
        """Write what is known of an account."""

    def _says_something(self, account: Account) -> bool:
        """Whether a backend that lacks the account's row needs one."""
        return False

    def _write_missing(self, known: Set[bytes]) -> None:
        for account in self._accounts():
            written = self._ids.id_of(account.name)
            missing = written is not None and written.encode() not in known
            if missing and self._says_something(account):
                self._changed(account)

    def _write_later(
        self, account: Account, value: Callable[[], Any], seconds: float = _FOREVER
    ) -> None:
        """Write what ``value`` returns at that time."""
        written = self._ids.id_of(account.name)
        if written is None:
            return
        key = written.encode()
        self._writes.put_later(
            self.table,
            key,
            lambda: Row(self.table, key, encode(value()), self._now() + seconds),
        )


class ReplicatedOperatorStates(AccountTable):
    """What the operator set of accounts: paused, draining."""

    table = OPERATOR

    def _follow(self, account: Account, changed: Callable[[], None]) -> None:
        account.health.admin_state_changed = changed

    def _changed(self, account: Account) -> None:
        # What the configuration disables is not disabled by the operator.
        enabled, health = account.settings.enabled, account.health
        self._write_later(
            account, lambda: (health.admin_state if enabled else AdminState.SERVE).value
        )

    def _says_something(self, account: Account) -> bool:
        return account.settings.enabled and account.health.admin_state is not AdminState.SERVE

    def _take(self, account: Account, value: bytes) -> None:
        state = decode(value, AdminState)
        if state is not None and account.settings.enabled:
            account.health.restore_admin_state(state)


class ReplicatedLessons(AccountTable):
    """What was learned of accounts."""

    table = LESSONS

    def _follow(self, account: Account, changed: Callable[[], None]) -> None:
        account.learned.changed = changed

    def _changed(self, account: Account) -> None:
        self._write_later(account, account.learned.lessons, _DAY)

    def _says_something(self, account: Account) -> bool:
        return bool(account.learned.lessons())

    def _take(self, account: Account, value: bytes) -> None:
        lessons = decode(value, list[Lesson])
        if lessons is not None:
            account.learned.restore(lessons)


class ReplicatedQuotas(AccountTable):
    """The quotas that accounts reported."""

    table = QUOTAS

    def _follow(self, account: Account, changed: Callable[[], None]) -> None:
        account.health.quotas.changed = changed

    def _changed(self, account: Account) -> None:
        self._write_later(account, account.health.quotas.windows, 8 * _DAY)

    def _says_something(self, account: Account) -> bool:
        return bool(account.health.quotas.windows())

    def _take(self, account: Account, value: bytes) -> None:
        windows = decode(value, list[QuotaWindow])
        if windows is not None:
            account.health.quotas.restore(windows)


class ReplicatedKeyUse:
    """What each client key has used, so that its limits hold across restarts."""

    table = KEY_USE

    def __init__(self, keys: KeyRing, writes: WriteBehind, now: Callable[[], float]) -> None:
        self._keys = keys
        self._writes = writes
        self._now = now
        self._is_loaded = False
        keys.used = self._used

    def _used(self, tenant: str) -> None:
        key = tenant.encode(errors="surrogatepass")
        self._writes.put_later(KEY_USE, key, partial(self._row, tenant, key))

    def _row(self, tenant: str, key: bytes) -> Row | None:
        use = self._keys.use_of(tenant)
        if use is None:
            return None
        return Row(KEY_USE, key, encode(use), self._now() + KEY_USE_SECONDS, tenant)

    def load(self, rows: Sequence[Row]) -> None:
        """Take what was used before the start, once; later loads have this process's own use."""
        first, self._is_loaded = not self._is_loaded, True
        for row in rows:
            use = None if row.value is None else decode(row.value, KeyUse)
            if use is not None and first:
                self._keys.restore(row.tenant, use)
        for key in self._keys.snapshot():
            if key["turns"]:
                self._used(key["name"])

    def apply(self, row: Row) -> None:
        """Others count their own use; shared limits are counted elsewhere."""
