"""Families of metrics as plain values, and those of several processes as one.

Counters, histograms and summaries are summed, also with those of processes that have ended: a
counter never goes back because a worker was restarted.  Gauges are summed unless a rule says
otherwise.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.samples import Sample

from gateway.admin.merged_views import STATES
from gateway.admin.merging import Rule, least, most, total

#: The types of families whose values only rise.
_RISING = frozenset({"counter", "histogram", "summary"})

#: Gauges that are no sums.  What all processes know of one account or key is not known of more of
#: them because several say it.
_GAUGES: Mapping[str, Rule] = {
    "gateway_build": most,
    "gateway_start_time_seconds": least,
    "gateway_ready": most,
    "gateway_draining": least,
    "gateway_config_generation": most,
    "gateway_config_last_reload_successful": least,
    "gateway_alarms": most,
    "gateway_memory_budget_bytes": least,
    "gateway_key_quota_used": most,
    "gateway_key_quota_limit": most,
    "gateway_request_log_rules": most,
    "gateway_state_reachable": least,
    "gateway_state_file_bytes": most,
    "gateway_account_rests_until_timestamp_seconds": most,
    "gateway_account_models_at_rest": most,
    "gateway_account_max_turns_in_flight": most,
    "gateway_account_quota_used_ratio": most,
    "gateway_account_quota_remaining": least,
    "gateway_account_quota_limit": most,
    "gateway_account_quota_resets_timestamp_seconds": most,
}

#: Gauges of each process, which say nothing as a sum: they get the label ``worker``.
_LABELLED = frozenset({"process_open_fds", "process_max_fds"})

#: What workers only hand on to the process that writes it, which tells it itself.
_OF_WRITER = frozenset({"gateway_state_written_rows", "gateway_state_flush_seconds"})

#: One account is in one state.
_STATE = "gateway_account_state"

#: The process that has no number.
SUPERVISOR = "supervisor"

#: Bound on the values that are kept of processes that have ended.
_MAX_KEPT = 100_000

#: A sample: its name, and its labels.
SampleKey = tuple[str, tuple[tuple[str, str], ...]]


class Family(msgspec.Struct, array_like=True):
    """A family of metrics as a value.

    :ivar samples: name, labels in their order, value.
    """

    name: str
    about: str
    kind: str
    samples: list[tuple[str, dict[str, str], float]]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Family]).decode


def families(metrics: Iterable[Metric]) -> list[Family]:
    """The families as values."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [(sample.name, dict(sample.labels), float(sample.value)) for sample in metric.samples],
        )
        for metric in metrics
    ]


def encoded(found: list[Family]) -> bytes:
    """Families for another process."""
    return _encode(found)


def decoded(payload: bytes) -> list[Family]:
    """Families of another process.

    :raises msgspec.DecodeError: they are none.
    """
    return _decode(payload)


def exposition(found: Iterable[Family], accept: str) -> tuple[str, bytes]:
    """The content type and the text of ``/metrics``.

    :param accept: the client's ``Accept`` header.
    """
    encode, content_type = choose_encoder(accept)
    return content_type, encode(_Registry(found))


class _Registry:
    """What the client library makes the text of."""

    def __init__(self, found: Iterable[Family]) -> None:
        self._families = found

    def collect(self) -> Iterator[Metric]:
        """The library's own objects."""
        for each in self._families:
            metric = Metric(each.name, each.about, each.kind)
            metric.samples = [Sample(*sample) for sample in each.samples]
            yield metric


@dataclass
class _Values:
    """The values of a family, by sample in their order."""

    about: str
    kind: str
    samples: dict[SampleKey, float] = field(default_factory=dict)

    def add(self, key: SampleKey, value: float, rule: Rule) -> None:
        """Add the value of another process."""
        known = self.samples.get(key)
        self.samples[key] = value if known is None else rule(known, value)


class ProcessFamilies:
    """The families of several processes, some of which end and are replaced.

    A process that does not answer counts with what it said last.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[Hashable, list[Family]]] = {}
        self._ended: dict[str, _Values] = {}
        self._shown: dict[SampleKey, float] = {}

    def __len__(self) -> int:
        return sum(len(each.samples) for each in self._ended.values())

    def told(self, name: str, life: Hashable, found: list[Family]) -> None:
        """A process told its families.

        :param name: the process's, which the one that replaces it gets, too.
        :param life: tells one from the other.
        """
        self.ended(name, life)
        self._last[name] = (life, found)

    def ended(self, name: str, life: Hashable = None) -> None:
        """Keep the counts of a process that has ended.

        :param life: of the process that has its name now.
        """
        known = self._last.get(name)
        if known is None or known[0] == life:
            return
        del self._last[name]
        kept = len(self)
        for family in known[1]:
            if family.kind not in _RISING:
                continue
            values = self._ended.setdefault(family.name, _Values(family.about, family.kind))
            for sample, labels, value in family.samples:
                key = (sample, tuple(labels.items()))
                if key in values.samples or kept < _MAX_KEPT:
                    kept += key not in values.samples
                    values.add(key, value, total)

    def merged(self, alive: Iterable[str]) -> list[Family]:
        """The families of all.

        :param alive: the processes that answered: only their gauges count.
        """
        gauges = frozenset(alive)
        found: dict[str, _Values] = {}
        own = self._last.get(SUPERVISOR, (None, []))[1]
        hidden = _OF_WRITER.intersection(family.name for family in own)
        for name, (_, told) in self._last.items():
            for family in told:
                if family.name in hidden and name != SUPERVISOR:
                    continue
                if family.kind in _RISING or name in gauges:
                    _add(found, family, name)
        for family_name, ended in self._ended.items():
            if family_name in hidden:
                continue
            values = found.setdefault(family_name, _Values(ended.about, ended.kind))
            for key, value in ended.samples.items():
                values.add(key, value, total)
        self._let_nothing_fall(found)
        if _STATE in found:
            _one_state(found[_STATE])
        return [
            Family(
                name,
                each.about,
                each.kind,
                [(sample, dict(labels), value) for (sample, labels), value in _grouped(each)],
            )
            for name, each in found.items()
        ]

    def _let_nothing_fall(self, found: Mapping[str, _Values]) -> None:
        """A sum in another order may be smaller by its last digit; readers take it for a reset."""
        before, self._shown = self._shown, {}
        for values in found.values():
            if values.kind in _RISING:
                for key, value in values.samples.items():
                    values.samples[key] = max(value, before.get(key, value))
                self._shown.update(values.samples)


def _add(found: dict[str, _Values], family: Family, process: str) -> None:
    values = found.setdefault(family.name, _Values(family.about, family.kind))
    rule = total if family.kind in _RISING else _GAUGES.get(family.name, total)
    if family.name == _STATE:
        rule = most
    for sample, labels, value in family.samples:
        shown = {**labels, "worker": process} if family.name in _LABELLED else labels
        values.add((sample, tuple(shown.items())), value, rule)


def _one_state(values: _Values) -> None:
    """Of the states that processes see an account in, the one that the page shows."""
    worst: dict[Any, int] = {}
    for (_, labels), value in values.samples.items():
        named = dict(labels)
        if value:
            rank = STATES.index(named["state"])
            worst[named["account"]] = max(rank, worst.get(named["account"], 0))
    for sample, labels in values.samples:
        named = dict(labels)
        is_worst = STATES.index(named["state"]) == worst.get(named["account"])
        values.samples[sample, labels] = float(is_worst)


def _grouped(values: _Values) -> Iterator[tuple[SampleKey, float]]:
    """The samples; those of one histogram follow each other."""
    if values.kind not in ("histogram", "summary"):
        yield from values.samples.items()
        return
    groups: dict[Any, list[tuple[SampleKey, float]]] = {}
    for key, value in values.samples.items():
        labels = tuple(each for each in key[1] if each[0] not in ("le", "quantile"))
        groups.setdefault(labels, []).append((key, value))
    for group in groups.values():
        yield from group
