"""The turn log: a record and a log line for each turn, and a bounded ring of the last ones.

Forwarded requests have records too.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from gateway.conversations.context import ContextPlan
from gateway.protocol.usage import Usage, estimated_usage
from gateway.routing.affinity import AffinityKey, opaque_id
from gateway.routing.selection import Selection
from gateway.routing.wait_queue import WaitReason

#: Turns that are kept for the admin side.
RING = 500

#: Bound on texts from clients, in characters.
SHOWN = 200

#: The status of a turn, and the outcome of an attempt, that still runs.
RUNNING = "running"


@dataclass
class AttemptRecord:
    """One attempt on one account: its route, the rule that chose the account, how it ended.

    ``candidates`` counts the accounts that offer the model; ``others`` says why some of them were
    not chosen.
    """

    account: str
    rule: str
    route: str
    candidates: int = 0
    others: dict[str, str] = field(default_factory=dict)
    outcome: str = RUNNING
    chosen_ms: float | None = None
    connected_ms: float | None = None
    first_byte_ms: float | None = None


@dataclass
class TurnRecord:
    """One turn.  Times are milliseconds since it was accepted; no content, no secrets.

    ``conversation`` is the opaque id of its binding (see ``Bindings.items``).  ``waited_ms`` is
    how long it waited for an account, ``limited_ms`` for a limit of its key.  ``recording`` is the
    file that has all that was said.  ``transport`` is how its last attempt reached the account:
    ``http`` or ``websocket``.
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
    transport: str | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
    status: str = RUNNING
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
    recording: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON.  ``dataclasses.asdict`` would copy every string, once a turn."""
        return {**vars(self), "attempts": [vars(each) for each in self.attempts]}

    def __str__(self) -> str:
        """For a line of text.  Twisted's formatter would take 70 us for as many fields."""
        return (
            f"turn {self.turn} {self.status} key={self.key} model={self.model}"
            f" account={self.account} transport={self.transport} attempts={len(self.attempts)}"
            f" route={self.route}"
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
        # Text and fields are made only where the log shows them.
        self._log.info("{log_text}", log_text=record, log_fields=record.as_dict)
        for watch in self.watchers:
            try:
                watch(record)
            except Exception:  # a turn that cannot end would block its lane for ever
                self._log.failure("a watcher of turns failed")

    def latest(self) -> list[TurnRecord]:
        """The last turns, oldest first."""
        return list(self._ring)


class TurnRecorder:
    """Records the steps of one request and their times.

    :param accepted_at: when the request was read, unix seconds.
    :param affinity: its affinity keys.
    :param record: its record, as it is at the start.
    """

    def __init__(
        self,
        turn_log: TurnLog,
        clock: IReactorTime,
        accepted_at: float,
        affinity: Sequence[AffinityKey],
        record: TurnRecord,
    ) -> None:
        self._clock = clock
        self._turn_log = turn_log
        self._affinity = affinity
        self._accepted_at = accepted_at
        #: The reason why it waits, and since when, in milliseconds from its acceptance.
        self._waits: tuple[WaitReason, float] | None = None
        self.record = record

    # --- on the way --------------------------------------------------------------------

    def queued(self) -> None:
        """Its lane is free, and it starts."""
        self.record.queued_ms = self._elapsed_ms()

    def continues(self, response_id: str, continuation: str) -> None:
        """It continues this response."""
        self.record.previous_response_id = response_id[:SHOWN]
        self.record.continuation = continuation

    def waits(self, reason: WaitReason) -> None:
        """It waits, until another wait, the next attempt or its end."""
        if self._waits is not None:
            self._waited()
        self._waits = reason, self._elapsed_ms()

    def tries(
        self,
        account: str,
        rule: str,
        route: str,
        transport: str,
        request_bytes: int,
        plan: ContextPlan | None,
        choice: Selection | None,
    ) -> None:
        """An attempt begins.

        :param route: the context route, or the kind of request.
        :param transport: by which it begins; an exchange may change to another.
        :param request_bytes: size of the request to the account.
        :param plan: the context plan; None for a request without a conversation.
        :param choice: the router's selection; None if the pool was not asked.
        """
        if self._waits is not None:
            self._waited()
        record = self.record
        record.account, record.route, record.transport = account, route, transport
        record.upstream_bytes += request_bytes
        if plan is not None:
            record.chained_to, record.reason = plan.previous_response_id, plan.reason
        attempt = AttemptRecord(account, rule, route, outcome=RUNNING)
        attempt.chosen_ms = self._elapsed_ms()
        if choice is not None:
            attempt.candidates, attempt.others = choice.candidates, dict(choice.others)
        record.attempts.append(attempt)

    def connected(self, transport: str) -> None:
        """The request goes out by ``transport``."""
        self.record.transport = transport
        self.record.attempts[-1].connected_ms = self._elapsed_ms()

    def answered(self) -> None:
        """The upstream's answer begins."""
        self.record.attempts[-1].first_byte_ms = self._elapsed_ms()

    def first_event(self) -> None:
        """The first event is relayed to the client."""
        self.record.first_event_ms = self._elapsed_ms()

    def first_output(self) -> None:
        """The first output of the model is relayed to the client."""
        self.record.first_output_ms = self._elapsed_ms()

    def outcome(self, words: str) -> None:
        """Set the outcome of the attempt."""
        self.record.attempts[-1].outcome = words

    # --- usage -------------------------------------------------------------------------

    def counts(self, usage: Usage) -> None:
        """Set the usage that the upstream reported."""
        record = self.record
        record.input_tokens, record.cached_tokens, record.output_tokens = usage

    def estimated(self) -> Usage:
        """An estimate of the last attempt's usage, by its bytes."""
        record = self.record
        return estimated_usage(record.upstream_bytes // len(record.attempts), record.relayed_bytes)

    # --- the end -----------------------------------------------------------------------

    def closed(self, status: str, error_code: str | None) -> None:
        """It is over: hand the record to the turn log."""
        if self._waits is not None:
            self._waited()
        record = self.record
        if record.attempts and record.attempts[-1].outcome == RUNNING:
            record.attempts[-1].outcome = error_code or status
        if self._affinity:
            record.conversation = opaque_id(self._affinity[-1])
        record.status, record.error_code = status, error_code
        record.duration_ms = self._elapsed_ms()
        record.ended_at = round(self._clock.seconds(), 3)
        self._turn_log.ended(record)

    def _waited(self) -> None:
        assert self._waits is not None
        (reason, since), self._waits = self._waits, None
        record, waited = self.record, self._elapsed_ms() - since
        if reason is WaitReason.ACCOUNT:
            record.waited_ms = round((record.waited_ms or 0.0) + waited, 1)
        else:
            record.limited_ms = round((record.limited_ms or 0.0) + waited, 1)

    def _elapsed_ms(self) -> float:
        elapsed = self._clock.seconds() - self._accepted_at
        return int(elapsed * 10_000 + 0.5) / 10  # round() takes six times as long
