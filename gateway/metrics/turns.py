"""Counts ended turns by key, model, account, status, route and error, with their times.

The counts are plain integers: a turn costs a few microseconds and a streamed event nothing.  Turns
are counted in batches, which keeps the code in the processor's cache.  Labels are bounded, because
clients choose the names of models and upstreams those of errors.

A turn's time to its first output has four parts, of which three are the gateway's side::

    accepted ─ queue ─▶ started ─ wait, and what the gateway adds ─▶ sent ─ upstream ─▶ output

*Queue*: behind other turns of its lane.  *Wait*: no account was free.  *Added*: all other time
until the answered request goes out on a connection: choosing, encoding, connecting, and attempts
on accounts that refused it.  *Upstream*: from there to the first output that is relayed.  The
gateway's time to pass on one event is in the last part; the event loop's lag measures it.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from twisted.logger import Logger

from gateway.conversations.context import ContextRoute
from gateway.metrics.histogram import TOKENS, Histogram, Recent, unmeasured
from gateway.turn.turn_log import TurnRecord

#: Bounds on labels.
MAX_MODELS = 50
MAX_ERRORS = 100
MAX_NAMES = 10_000
_MAX_LABEL = 100

#: The label of all names beyond the bound, and of a request without a model.
OTHER = "other"
NO_MODEL = "none"

#: Routes of turns with streamed answers; their time to the first output is measured.
_STREAMED = frozenset(
    {ContextRoute.ROOT.value, ContextRoute.CHAINED.value, ContextRoute.REPLAYED.value}
)

#: How turns reach accounts.
TRANSPORTS = ("http", "websocket")

_BY_TRANSPORT = ("turns", "chained", "upstream_bytes", "input_tokens", "cached_input_tokens")

#: Ends of attempts that are no error of the account.
_NO_ERRORS = frozenset(
    {"running", "completed", "incomplete", "cancelled", "interrupted", "abandoned"}
)

#: Ends of turns that are errors.
ERRORS = frozenset({"error", "failed"})

#: Marks of an account's recent figures.
_MARKS = 3

#: Turns in a batch.
_AT_ONCE = 100

_log = Logger(namespace="gateway.metrics")


class Labels:
    """Names that get a label of their own, up to a bound; all others share one.

    :param most: bound.
    """

    __slots__ = ("_known", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._known)

    def label(self, name: str) -> str:
        """The label that ``name`` is counted by."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= self._most or len(name) > _MAX_LABEL:
                return OTHER
            known = self._known[name] = name
        return known

    def known(self, name: str) -> str:
        """The same without giving a new name a label of its own."""
        return self._known.get(name, OTHER)


@dataclass(slots=True)
class TokenCounts:
    """Tokens of answers; ``cached`` are among ``input``."""

    input: int = 0
    cached: int = 0
    output: int = 0

    def add(self, record: TurnRecord) -> None:
        """Count those of one turn."""
        self.input += record.input_tokens
        self.cached += record.cached_tokens
        self.output += record.output_tokens

    @property
    def total(self) -> int:
        """Of both ways."""
        return self.input + self.output


@dataclass(slots=True)
class Use:
    """The turns of one key with one model."""

    statuses: Counter[str] = field(default_factory=Counter)
    tokens: TokenCounts = field(default_factory=TokenCounts)


@dataclass(slots=True)
class TransportUse:
    """The turns that reached their account by one transport and one route.

    :ivar upstream_bytes: of the requests of all their attempts.
    """

    turns: int = 0
    upstream_bytes: int = 0
    tokens: TokenCounts = field(default_factory=TokenCounts)


@dataclass(slots=True)
class ModelMetrics:
    """The tokens and times of one model's answers to all keys."""

    input: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    output: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    first_token: Histogram = field(default_factory=Histogram)
    duration: Histogram = field(default_factory=Histogram)


class AccountMetrics:
    """The turns and attempts of one account.

    :ivar statuses: of turns that ended on it.
    :ivar errors: of attempts, also of turns that went on elsewhere.
    :ivar first_token: the upstream's own time, in milliseconds.
    """

    __slots__ = ("_marks", "_recent", "errors", "first_token", "statuses", "tokens")

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.tokens = TokenCounts()
        self.first_token = Histogram()
        self._recent = Recent(self.first_token, _MARKS)
        self._marks: deque[tuple[int, int]] = deque([(0, 0)], maxlen=_MARKS)

    def mark(self) -> None:
        """A step of time is over."""
        self._recent.mark()
        self._marks.append((self.tokens.input, self.tokens.cached))

    def shown(self) -> dict[str, object]:
        """The figures of the last steps, and all errors, for JSON."""
        before, cached_before = self._marks[0]
        return {
            "errors": dict(self.errors),
            "first_token_ms": self._recent.percentiles(),
            "cached_share": share(self.tokens.cached - cached_before, self.tokens.input - before),
        }

    def counted(self) -> dict[str, list[int]]:
        """What :meth:`shown` is made of, to be added to that of other processes.

        ``{first_token_ms: counts by bucket, input: [tokens, cached tokens]}``.
        """
        before, cached_before = self._marks[0]
        tokens = self.tokens
        return {
            "first_token_ms": self._recent.counts(),
            "input": [tokens.input - before, tokens.cached - cached_before],
        }


class TurnMetrics:
    """All counts since the start; a watcher of the :class:`~gateway.turn.turn_log.TurnLog`.

    Readers call :meth:`catch_up` first.

    :ivar turns: that ended.
    :ivar failed: those of them that ended in an error.
    :ivar uses: by key and model.
    :ivar routes: turns by route and status.
    :ivar transports: turns by the transport of their last attempt and by route.
    :ivar errors: turns by the error that ended them.
    :ivar added: what the gateway added to the time to the first output, in milliseconds.
    """

    def __init__(self) -> None:
        self.turns = 0
        self.failed = 0
        self.tokens = TokenCounts()
        self.uses: dict[tuple[str, str], Use] = defaultdict(Use)
        self.models: dict[str, ModelMetrics] = defaultdict(ModelMetrics)
        self.accounts: dict[str, AccountMetrics] = defaultdict(AccountMetrics)
        self.routes: Counter[tuple[str, str]] = Counter()
        self.transports: dict[tuple[str, str], TransportUse] = defaultdict(TransportUse)
        self.errors: Counter[str] = Counter()
        self.duration = Histogram()
        self.queued = Histogram()
        self.waited = Histogram()
        self.first_output = Histogram()
        self.added = Histogram()
        self.upstream = Histogram()
        self._ended: list[TurnRecord] = []
        self._keys = Labels(MAX_NAMES)
        self._models = Labels(MAX_MODELS)
        self._accounts = Labels(MAX_NAMES)
        self._errors = Labels(MAX_ERRORS)

    def count(self, record: TurnRecord) -> None:
        """Count a turn that ended, with the next batch."""
        self._ended.append(record)
        if len(self._ended) >= _AT_ONCE:
            self.catch_up()

    def catch_up(self) -> None:
        """Count all turns that ended so far."""
        ended, self._ended = self._ended, []
        for record in ended:
            try:
                self._count(record)
            except Exception:  # whatever it is, no turn may end badly because of it
                _log.failure("turn {turn} could not be counted", turn=record.turn)

    def _count(self, record: TurnRecord) -> None:
        status = record.status
        self.turns += 1
        self.routes[record.route or "none", status] += 1
        self.duration.add(record.duration_ms or 0.0)
        if record.queued_ms is not None:
            self.queued.add(record.queued_ms)
        if record.waited_ms is not None:
            self.waited.add(record.waited_ms)
        if status in ERRORS:
            self.failed += 1
            self.errors[self._errors.label(record.error_code or "unknown")] += 1
        model = self._model_of(record)
        use = self.uses[self._keys.label(record.key), model]
        use.statuses[status] += 1
        if record.input_tokens or record.output_tokens:
            self.tokens.add(record)
            use.tokens.add(record)
        if record.transport is not None:
            by_transport = self.transports[record.transport, record.route or "none"]
            by_transport.turns += 1
            by_transport.upstream_bytes += record.upstream_bytes
            by_transport.tokens.add(record)
        if record.account is not None:
            self._count_account(record, record.account, model)

    def account(self, name: str) -> dict[str, object]:
        """An account's figures of the last steps, for JSON; also of one without turns so far."""
        self.catch_up()
        found = self.accounts.get(name)
        if found is None:
            return {"errors": {}, "first_token_ms": unmeasured(), "cached_share": None}
        return found.shown()

    def by_transport(self) -> dict[str, dict[str, int]]:
        """The counts of turns by transport, for JSON; forwarded requests are left out.

        ``{transport: {turns, chained, upstream_bytes, input_tokens, cached_input_tokens}}``.
        """
        self.catch_up()
        found = {name: dict.fromkeys(_BY_TRANSPORT, 0) for name in TRANSPORTS}
        for (name, route), use in self.transports.items():
            if route in _STREAMED:
                counts = found[name]
                counts["turns"] += use.turns
                counts["chained"] += use.turns if route == ContextRoute.CHAINED.value else 0
                counts["upstream_bytes"] += use.upstream_bytes
                counts["input_tokens"] += use.tokens.input
                counts["cached_input_tokens"] += use.tokens.cached
        return found

    def mark(self) -> None:
        """A step of the accounts' figures is over."""
        self.catch_up()
        for account in self.accounts.values():
            account.mark()

    def _model_of(self, record: TurnRecord) -> str:
        """The label of the model; only names that an upstream served get their own."""
        if record.model is None:
            return NO_MODEL
        if record.status == "completed" and record.account is not None:
            return self._models.label(record.model)
        return self._models.known(record.model)

    def _count_account(self, record: TurnRecord, name: str, model: str) -> None:
        account = self.accounts[self._accounts.label(name)]
        account.statuses[record.status] += 1
        if record.input_tokens or record.output_tokens:
            account.tokens.add(record)
            self.models[model].input.add(record.input_tokens)
            self.models[model].output.add(record.output_tokens)
        for attempt in record.attempts:
            if attempt.outcome not in _NO_ERRORS:
                refused = self.accounts[self._accounts.label(attempt.account)]
                refused.errors[self._errors.label(attempt.outcome)] += 1
        if record.first_output_ms is not None and record.route in _STREAMED:
            self._count_times(record, record.first_output_ms, account, self.models[model])

    def _count_times(
        self, record: TurnRecord, first: float, account: AccountMetrics, model: ModelMetrics
    ) -> None:
        attempt = record.attempts[-1]
        queued = record.queued_ms or 0.0
        sent = attempt.connected_ms
        if sent is None:
            sent = attempt.chosen_ms or queued
        # A clock that was set back must not cause negative times.
        self.first_output.add(max(0.0, first - queued))
        waited = (record.waited_ms or 0.0) + (record.limited_ms or 0.0)
        self.added.add(max(0.0, sent - queued - waited))
        upstream = max(0.0, first - sent)
        self.upstream.add(upstream)
        account.first_token.add(upstream)
        model.first_token.add(upstream)
        model.duration.add(max(0.0, (record.duration_ms or 0.0) - sent))


def with_shares(transports: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float | None]]:
    """The counts of transports, and what they are of a turn or of all.

    :param transports: from :meth:`TurnMetrics.by_transport`.
    """
    turns = sum(counts["turns"] for counts in transports.values())
    return {name: _with_shares(counts, turns) for name, counts in transports.items()}


def _with_shares(counts: Mapping[str, int], all_turns: int) -> dict[str, float | None]:
    turns, sent = counts["turns"], counts["upstream_bytes"]
    return {
        **counts,
        "chained_share": share(counts["chained"], turns),
        "chained_share_of_all": share(counts["chained"], all_turns),
        "bytes_per_turn": round(sent / turns) if turns else None,
        "cached_share": share(counts["cached_input_tokens"], counts["input_tokens"]),
    }


def share(part: int, whole: int) -> float | None:
    """From 0 to 1, or None of nothing."""
    return round(part / whole, 4) if whole else None
