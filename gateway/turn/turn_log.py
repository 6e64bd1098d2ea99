"""What became of each turn: one record, one log line, and a bounded ring to look into."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.logger import Logger

#: Turns that are kept to look into.
RING = 500


@dataclass
class AttemptRecord:
    """One try on one account: how it was sent, which rule chose it, how it ended.

    ``candidates`` counts the accounts that offer the model; ``others`` says of some of them
    why they were not chosen.
    """

    account: str
    rule: str
    route: str
    candidates: int = 0
    others: dict[str, str] = field(default_factory=dict)
    outcome: str = "running"
    chosen_ms: float | None = None
    connected_ms: float | None = None
    first_byte_ms: float | None = None


@dataclass
class TurnRecord:
    """One turn.  Times are milliseconds since it was accepted; no content, no secrets.

    ``conversation`` is the opaque id of its binding (see ``Bindings.items``).  ``waited_ms`` is
    how long it waited for an account, ``limited_ms`` for a limit of its key.
    """

    turn: str
    connection: str
    key: str
    lane: str | None
    model: str | None
    previous_response_id: str | None
    continuation: str | None
    request_bytes: int
    conversation: str | None = None
    response_id: str | None = None
    route: str | None = None
    chained_to: str | None = None
    reason: str | None = None
    account: str | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
    status: str = "running"
    error_code: str | None = None
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    queued_ms: float | None = None
    waited_ms: float | None = None
    limited_ms: float | None = None
    first_event_ms: float | None = None
    first_output_ms: float | None = None
    duration_ms: float | None = None
    ended_at: float | None = None
    upstream_bytes: int = 0
    events: int = 0
    relayed_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON.  ``dataclasses.asdict`` would copy every string, once a turn."""
        return {**vars(self), "attempts": [vars(each) for each in self.attempts]}

    def as_text(self) -> str:
        """For a line of text.  Twisted's formatter would take 70 us for as many fields."""
        return (
            f"turn {self.turn} {self.status} key={self.key} model={self.model}"
            f" account={self.account} attempts={len(self.attempts)} route={self.route}"
            f" reason={self.reason!r} response={self.response_id} chained_to={self.chained_to}"
            f" error={self.error_code} queued_ms={self.queued_ms} waited_ms={self.waited_ms}"
            f" limited_ms={self.limited_ms}"
            f" first_output_ms={self.first_output_ms} duration_ms={self.duration_ms}"
            f" request_bytes={self.request_bytes} upstream_bytes={self.upstream_bytes}"
            f" events={self.events} relayed_bytes={self.relayed_bytes}"
            f" tokens={self.input_tokens}+{self.output_tokens} cached={self.cached_tokens}"
        )


class TurnLog:
    """Takes the record of every turn that ended.

    :ivar totals: turns by status.
    :ivar watchers: called with the record of each turn that ended; must be quick.
    """

    def __init__(self, log: Logger | None = None) -> None:
        self._log = log or Logger(namespace="gateway.turn")
        self._ring: deque[TurnRecord] = deque(maxlen=RING)
        self.totals: Counter[str] = Counter()
        self.watchers: list[Callable[[TurnRecord], None]] = []

    def __len__(self) -> int:
        return len(self._ring)

    def ended(self, record: TurnRecord) -> None:
        """Keep and log ``record``."""
        self._ring.append(record)
        self.totals[record.status] += 1
        self._log.info("{log_text}", log_text=record.as_text(), **record.as_dict())
        for watch in self.watchers:
            try:
                watch(record)
            except Exception:  # a turn that cannot end would hold up its lane for ever
                self._log.failure("a watcher of turns failed")

    def latest(self) -> list[TurnRecord]:
        """The last turns, oldest first."""
        return list(self._ring)
