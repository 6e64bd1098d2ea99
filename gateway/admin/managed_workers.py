"""The gateway of several workers, as its supervisor's admin side sees it.

Views are asked of all workers, and what they answer is merged
(:mod:`~gateway.admin.merged_views`); a worker that does not answer in time is shown as such.
Actions go to all workers, and are done when one of them did them: a conversation may be known to
one only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from gateway.admin import merged_views, worker_list
from gateway.admin.actions import ANSWER_SECONDS, LEVELS, reload_configuration
from gateway.admin.managed_gateway import TurnWatcher
from gateway.admin.merging import Json, merged, total
from gateway.admin.metric_families import SUPERVISOR, Family, ProcessFamilies, decoded, exposition
from gateway.admin.requests import bad_request
from gateway.admin.running_gateway import Configuration
from gateway.admin.views.overview import store
from gateway.admin.worker_answers import (
    ACT,
    FOLLOW,
    METRICS,
    TURN,
    VIEW,
    Question,
    decode_turn,
    encode,
)
from gateway.admin.worker_calls import (
    NO_WORKER,
    Answers,
    ManagedWorker,
    answers,
    ask,
    name_of,
    note_failure,
    reply,
)
from gateway.log import LogThreshold
from gateway.metrics.alarms import of_rejected, of_state
from gateway.metrics.collector import STEP_SECONDS, Points
from gateway.metrics.process import read_process
from gateway.server.connections import OpenFiles
from gateway.state.keeper import StateFigures, nothing_kept

#: How long a worker may take to answer, in seconds; probes of accounts take longer.
_VIEW_SECONDS = 2.0
_ACT_SECONDS = 4.0
_PROBE_SECONDS = ANSWER_SECONDS + 2.0

#: Steps between two collections of the metrics: what a killed worker counted since is lost.
_COLLECT_STEPS = 2


class _TurnOfWorker:
    """A turn that a worker told of."""

    def __init__(self, worker: str, values: Json) -> None:
        self._worker = worker
        self._values = values

    def as_dict(self) -> Json:
        """For JSON."""
        return {**self._values, "worker": self._worker}


class ManagedWorkers(Service):
    """All workers as one gateway; it satisfies ``ManagedGateway``.

    :param reactor: clock.
    :param workers: called for the workers.
    :param threshold: of the supervisor's own log.
    :param files: the supervisor's open files.
    :param own_families: the supervisor's own metrics.
    :param kept: called for how the supervisor keeps the state.
    :ivar configuration: that in force.
    :ivar draining: whether the operator, or a stop, empties all workers of clients.
    """

    def __init__(
        self,
        reactor: Any,
        workers: Callable[[], Sequence[ManagedWorker]],
        threshold: LogThreshold,
        files: OpenFiles,
        own_families: Callable[[], list[Family]] = list,
        kept: Callable[[], StateFigures | None] = nothing_kept,
    ) -> None:
        self.configuration = Configuration()
        self.draining = False
        self.clock = reactor
        self.files = files
        self._started_at: float = reactor.seconds()
        self._workers = workers
        self._threshold = threshold
        self._own_families = own_families
        self._kept = kept
        self._points = Points()
        self._families = ProcessFamilies()
        self._parts: dict[str, tuple[int, Json]] = {}
        self._ended: Json | None = None
        self._latencies: dict[str, float] = {}
        self._asking: list[Deferred[Json]] | None = None
        self._watchers: list[TurnWatcher] = []
        self._steps = 0
        self._step: IDelayedCall | None = None
        self._views: Mapping[str, Callable[..., Any]] = {
            "readiness": self._readiness,
            "overview": self._overview,
            "current": self._current,
            "accounts": self._accounts,
            "conversations": self._conversations,
            "why": self._why,
            "turns": self._turns,
            "keys": partial(self._merge_all, merged_views.keys, "keys"),
            "memory": partial(self._merge_all, merged_views.memory, "memory"),
            "configuration": self._configuration,
            "recorded": partial(self._merge_all, merged_views.recorded, "recorded"),
            "recordings": partial(self._merge_all, merged_views.recordings, "recordings"),
            "recording": partial(self._merge_all, merged_views.recording, "recording"),
            "dry_run": self._dry_run,
        }
        self._acts: Mapping[str, Callable[..., Any]] = {
            "account": self._act_on_account,
            "conversation": partial(self._act_in_all, "conversation"),
            "log_level": self._set_log_level,
            "drain": self._drain,
            "resume": self._resume,
            "record": partial(self._act_in_all, "record"),
            "stop_recording": partial(self._act_in_all, "stop_recording"),
            "reload": lambda: reload_configuration(self.configuration),
        }

    # --- the service -------------------------------------------------------------------

    def startService(self) -> None:
        """Begin to measure."""
        super().startService()
        self._step = self.clock.callLater(STEP_SECONDS, self._take_step)

    def stopService(self) -> None:
        """Stop measuring."""
        super().stopService()
        step, self._step = self._step, None
        if step is not None:
            step.cancel()

    def attach(self, worker: ManagedWorker) -> None:
        """A worker was started: take what it tells."""
        worker.link.handle(TURN, partial(self._turn_ended, name_of(worker)))

    def became_ready(self, worker: ManagedWorker) -> None:
        """A worker accepts connections: it drains while the others do."""
        if self.draining:
            question = encode(Question("drain", {}))
            ask([worker], ACT, question, _ACT_SECONDS).addErrback(note_failure)

    def _take_step(self) -> None:
        self._step = self.clock.callLater(STEP_SECONDS, self._take_step)
        self._steps += 1
        self._ask_parts().addCallback(self._add_point).addErrback(note_failure)
        if self._steps % _COLLECT_STEPS == 0:
            self._collect().addErrback(note_failure)

    def _add_point(self, parts: Json) -> None:
        values = merged_views.whole(parts)["newest"]["values"]
        if values:
            self._points.add(self.now(), values)

    # --- what the admin side asks --------------------------------------------------------

    def now(self) -> float:
        """Unix seconds."""
        seconds: float = self.clock.seconds()
        return seconds

    def view(self, name: str, /, **arguments: Any) -> Any:
        """One of the views, merged of those of all workers."""
        return self._views[name](**arguments)

    def act(self, name: str, /, **arguments: Any) -> Any:
        """Do one of the actions, in all workers unless one is enough."""
        return self._acts[name](**arguments)

    def metrics(self, accept: str) -> Deferred[tuple[str, bytes]]:
        """The type and the text of ``/metrics``, one exposition of all workers."""
        return self._collect().addCallback(exposition, accept)

    def watch_turns(self, watcher: TurnWatcher) -> None:
        """Call ``watcher`` with turns that end in workers while somebody follows them."""
        self._watchers.append(watcher)

    def follow_turns(self, seconds: float) -> None:
        """Let all workers tell of turns that end, for so long."""
        for worker in self._workers():
            worker.link.tell(FOLLOW, encode(seconds))

    def _turn_ended(self, worker: str, payload: bytes) -> None:
        turn = _TurnOfWorker(worker, decode_turn(payload))
        for watch in self._watchers:
            watch(turn)

    def _ask_all(self, view: str, /, **arguments: Any) -> Deferred[Answers]:
        """A view of all workers."""
        question = encode(Question(view, arguments))
        return ask(self._workers(), VIEW, question, _VIEW_SECONDS)

    def _merge_all(
        self, merge: Callable[[Mapping[str, Any]], Any], view: str, /, **arguments: Any
    ) -> Deferred[Any]:
        """A view of all workers that answer; it names those that do not."""

        def merge_found(told: Answers) -> Any:
            found = merge(told.found)
            if told.silent and found is not None:
                return {**found, "silent": told.silent}
            return found

        return self._ask_all(view, **arguments).addCallback(merge_found)

    # --- the overview --------------------------------------------------------------------

    def _ask_parts(self) -> Deferred[Json]:
        """The parts of all workers that answer; those who ask meanwhile get the same."""
        mine: Deferred[Json] = Deferred()
        if self._asking is not None:
            self._asking.append(mine)
            return mine
        asking = self._asking = [mine]
        began = self.clock.seconds()

        def read(worker: ManagedWorker, payload: bytes) -> Json:
            self._latencies[name_of(worker)] = self.clock.seconds() - began
            part: Json = reply(worker, payload)
            return part

        workers = self._workers()
        lives = {name_of(worker): worker.restarts for worker in workers}
        question = encode(Question("part", {}))
        asked = ask(workers, VIEW, question, _VIEW_SECONDS, read)

        def told(answered: Answers) -> None:
            self._asking = None
            for name, part in answered.found.items():
                self._keep(name, lives[name], part)
            for each in asking:
                each.callback(dict(answered.found))

        def failed(failure: Failure) -> None:
            self._asking = None
            for each in asking:
                if not each.called:
                    each.errback(failure)

        asked.addCallback(told).addErrback(failed)
        return mine

    def _keep(self, name: str, life: int, part: Json) -> None:
        """Remember a part; of a process that has ended its counts stay."""
        known = self._parts.get(name)
        if known is not None and known[0] != life:
            left = merged_views.remains(known[1])
            ended = [left] if self._ended is None else [self._ended, left]
            self._ended = merged(merged_views.REMAINS, ended)
        self._parts[name] = (life, part)

    def _current(self) -> Deferred[Json]:
        return self._ask_parts().addCallback(self._whole)

    def _overview(self) -> Deferred[Json]:
        return self._current().addCallback(lambda found: {**found, "history": self._points.shown()})

    def _whole(self, parts: Json) -> Json:
        """The overview of the gateway.

        :param parts: of the workers that answered.
        """
        shown = merged_views.whole(parts)
        for name, (_, part) in self._parts.items():
            if name not in parts:
                shown = merged_views.with_remains(shown, merged_views.remains(part))
        shown = merged_views.with_remains(shown, self._ended)
        workers, in_force = self._workers(), self.configuration
        rejected = in_force.last_rejected()
        kept = self._kept()
        found = [
            *worker_list.alarms(workers, parts),
            *of_rejected(rejected),
            *of_state(kept),
            *shown["alarms"],
        ]
        memory = shown["memory"]
        return {
            **shown,
            "uptime_seconds": round(self.now() - self._started_at, 1),
            "state": self._state(shown["state"], bool(found)),
            "ready": shown["ready"] and not self.draining,
            "generation": in_force.generation(),
            "last_rejected_reload": None if rejected is None else rejected._asdict(),
            "memory": {**memory, "rss_bytes": total(memory["rss_bytes"], read_process().rss_bytes)},
            "alarms": sorted(found, key=lambda each: each["level"] != "red"),
            "newest": self._points.newest(),
            "store": shown["store"] if kept is None else store(kept),
            "workers": worker_list.listed(workers, parts, self._latencies),
        }

    def _state(self, state: str, alarmed: bool) -> str:
        if self.draining:
            return "draining"
        return "degraded" if alarmed and state == "ready" else state

    # --- other views ---------------------------------------------------------------------

    def _readiness(self) -> Any:
        """Ready as soon as one worker says that it is."""
        if self.draining:
            return {"why_not": "draining"}
        found: Deferred[Json] = Deferred()
        reasons: list[str] = []

        def read(worker: ManagedWorker, payload: bytes) -> None:
            why_not = reply(worker, payload)["why_not"]
            if why_not is not None:
                reasons.append(why_not)
            elif not found.called:
                found.callback({"why_not": None})

        def all_answered(_: Answers | None) -> None:
            if not found.called:
                found.callback({"why_not": reasons[0] if reasons else NO_WORKER})

        question = encode(Question("readiness", {}))
        asked = ask(self._workers(), VIEW, question, _VIEW_SECONDS, read)
        asked.addErrback(note_failure).addCallback(all_answered)
        return found

    def _accounts(self) -> Deferred[Json]:
        return self._current().addCallback(lambda found: {"accounts": found["accounts"]})

    def _conversations(self, q: str, limit: int) -> Deferred[Json]:
        merge = partial(merged_views.conversations, limit=limit)
        return self._merge_all(merge, "conversations", q=q, limit=limit)

    def _why(self, identity: str) -> Deferred[Json | None]:
        return self._merge_all(merged_views.why, "why", identity=identity)

    def _turns(self, limit: int = 500, **wanted: Any) -> Deferred[Json]:
        merge = partial(merged_views.turns, limit=limit)
        return self._merge_all(merge, "turns", limit=limit, **wanted)

    def _configuration(self) -> Json:
        in_force = self.configuration
        rejected = in_force.last_rejected()
        return {
            "generation": in_force.generation(),
            "source": in_force.source,
            "last_rejected_reload": None if rejected is None else rejected._asdict(),
            "can_reload": in_force.reload is not None,
            "log_level": self._threshold.level,
            "settings": [setting._asdict() for setting in in_force.settings()],
        }

    def _dry_run(self, body: Json) -> Deferred[Json]:
        asked = self._ask_all("dry_run", body=dict(body))
        return asked.addCallback(lambda found: merged_views.dry_run(found.any()))

    # --- metrics -------------------------------------------------------------------------

    def _collect(self) -> Deferred[list[Family]]:
        """The families of all workers, and the supervisor's own."""
        workers = self._workers()

        def read(worker: ManagedWorker, payload: bytes) -> None:
            self._families.told(name_of(worker), worker.restarts, decoded(payload))

        def all_told(told: Answers) -> list[Family]:
            answered = list(told.found)
            self._families.told(SUPERVISOR, 0, self._own_families())
            found = self._families.merged([*answered, SUPERVISOR])
            parts = {name: part for name, (_, part) in self._parts.items() if name in answered}
            shown = worker_list.listed(workers, parts, self._latencies)
            return [*found, *worker_list.families(shown, answered)]

        return ask(workers, METRICS, b"", _VIEW_SECONDS, read).addCallback(all_told)

    # --- actions -------------------------------------------------------------------------

    def _act_in_all(self, name: str, /, **about: Any) -> Deferred[Json]:
        """An action in all workers; it is done when one of them did it."""
        asked = ask(self._workers(), ACT, encode(Question(name, about)), _ACT_SECONDS)
        return asked.addCallback(lambda found: merged_views.done(found.any(), found.silent))

    def _act_on_account(self, name: str, action: str) -> Deferred[Json]:
        if action != "probe":
            return self._act_in_all("account", name=name, action=action)
        # One request to the account is enough.
        reached = [worker for worker in self._workers() if answers(worker)][:1]
        question = encode(Question("account", {"name": name, "action": action}))
        asked = ask(reached, ACT, question, _PROBE_SECONDS)
        return asked.addCallback(lambda found: next(iter(found.any().values())))

    def _set_log_level(self, level: object) -> Deferred[Json]:
        if level not in LEVELS:
            raise bad_request(f"level: expected one of {', '.join(LEVELS)}")
        self._threshold.level = str(level)
        return self._act_in_all("log_level", level=level)

    def _drain(self) -> Deferred[Json]:
        self.draining = True
        return self._act_in_all("drain")

    def _resume(self) -> Deferred[Json]:
        self.draining = False
        return self._act_in_all("resume")
