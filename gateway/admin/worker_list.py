"""The list of workers: their processes, their load, and the metrics that tell them apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.admin.merging import Json
from gateway.admin.metric_families import Family
from gateway.admin.worker_calls import ManagedWorker, answers, name_of
from gateway.metrics.alarms import Alarm, alarm

#: What is shown of a worker, of its part of the overview.
_OF_PART: Mapping[str, Callable[[Json], Any]] = {
    "ready": lambda part: part["ready"],
    "cpu_seconds": lambda part: part["cpu_seconds"],
    "rss_bytes": lambda part: part["memory"]["rss_bytes"],
    "open_files": lambda part: part["open_files"]["used"],
    "connections": lambda part: part["now"]["connections"],
    "turns_running": lambda part: part["now"]["turns_in_flight"],
    "turns_per_minute": lambda part: part["now"]["turns_per_minute"],
    "loop_lag_ms": lambda part: part["loop_lag_ms"]["p99"],
}

#: What the page and ``/status`` call a worker that runs and does not answer.
SILENT = "silent"

#: What is said of a worker without an answer, by its state, and the advice.
_SILENT = {
    "resting": ("has ended", "it is started again; the log says why"),
    "starting": ("is starting", None),
    "gone": ("has ended", None),
}
_STUCK = ("does not answer", "it has too much to do, or is stuck; then it is killed")

#: Metrics of each worker: name, kind, words, member of the list, and its unit in the exported one.
_METRICS = (
    ("up", "gauge", "1 while a worker answers.", "up", 1.0),
    ("restarts", "counter", "How often a worker was started again.", "restarts", 1.0),
    (
        "resident_memory_bytes",
        "gauge",
        "Memory of a worker that is resident.",
        "rss_bytes",
        1.0,
    ),
    ("connections", "gauge", "Clients that are connected to a worker.", "connections", 1.0),
    ("turns_in_flight", "gauge", "Turns that run in a worker.", "turns_running", 1.0),
    (
        "event_loop_lag_seconds",
        "gauge",
        "How late the event loop of a worker is: the 99th percentile of the last minute.",
        "loop_lag_ms",
        1000.0,
    ),
    (
        "answer_seconds",
        "gauge",
        "How long a worker took to tell its supervisor how it is.",
        "answer_ms",
        1000.0,
    ),
)


def listed(
    workers: Sequence[ManagedWorker], parts: Mapping[str, Json], latencies: Mapping[str, float]
) -> list[Json]:
    """All workers, also those that do not answer.

    :param parts: of those that do.
    :param latencies: how long they took to answer, in seconds.
    """
    return [
        _one(worker, parts.get(name_of(worker)), latencies.get(name_of(worker)))
        for worker in workers
    ]


def _one(worker: ManagedWorker, part: Json | None, latency: float | None) -> Json:
    state = worker.state.value
    silent = part is None and answers(worker)
    known = part is not None and latency is not None
    of_part = {} if part is None else {name: read(part) for name, read in _OF_PART.items()}
    return {
        "name": name_of(worker),
        "pid": worker.pid,
        "state": SILENT if silent else state,
        "since": worker.started_at,
        "restarts": max(0, worker.restarts),
        "answer_ms": round(latency * 1000, 2) if known and latency is not None else None,
        **dict.fromkeys(_OF_PART),
        **of_part,
    }


def alarms(workers: Sequence[ManagedWorker], parts: Mapping[str, Json]) -> list[Alarm]:
    """Workers that do not answer; red when none does."""
    level = "amber" if parts else "red"
    found = []
    for worker in workers:
        if name_of(worker) in parts:
            continue
        what, advice = _SILENT.get(worker.state.value, _STUCK)
        found.append(alarm(level, f"worker {worker.number} {what}", None, None, advice))
    return found


def families(shown: Sequence[Json], answered: Sequence[str]) -> list[Family]:
    """The metrics of each worker.

    :param shown: the list of workers, as it was seen last.
    :param answered: the workers that answered just now.
    """
    found = []
    for name, kind, about, member, unit in _METRICS:
        sample = f"gateway_worker_{name}" + ("_total" if kind == "counter" else "")
        samples = []
        for worker in shown:
            value = worker["name"] in answered if member == "up" else worker[member]
            if value is not None and math.isfinite(value):
                samples.append((sample, {"worker": worker["name"]}, float(value) / unit))
        found.append(Family(f"gateway_worker_{name}", about, kind, samples))
    return found
