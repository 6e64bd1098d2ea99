"""Metrics of several processes as one: sums, gauges by rule, and no counter that goes back."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from gateway.admin import metric_families
from gateway.admin.metric_families import (
    Family,
    ProcessFamilies,
    decoded,
    encoded,
    exposition,
    families,
)
from gateway.admin.prometheus import Metrics
from tests.admin.stage import Admin
from tests.metrics.test_turns import attempt, turn
from tests.support.scrape import Scrape, read

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def turns(**counts: float) -> list[Family]:
    counter = CounterMetricFamily("gateway_turns", "Turns.", labels=("status",))
    for status, count in counts.items():
        counter.add_metric((status,), count)
    return families([counter])


def gauge(name: str, value: float, **labels: str) -> Family:
    found = GaugeMetricFamily(name, "A gauge.", labels=tuple(labels))
    found.add_metric(tuple(labels.values()), value)
    return families([found])[0]


def shown(found: Sequence[Family]) -> Scrape:
    return read(exposition(found, "")[1].decode())


def test_families_of_one_process_stay_as_they_are() -> None:
    admin = Admin()
    admin.world.services.turn_log.ended(turn(attempt("a"), account="a"))
    metrics = Metrics(admin.running)
    told = families(metrics.collect())
    processes = ProcessFamilies()
    processes.told("1", 0, decoded(encoded(told)))
    merged = shown(processes.merged(["1"]))
    alone = read(metrics.render()[1].decode())
    own = {"process_open_fds", "process_max_fds", "process_cpu_seconds_total"}
    assert merged.names == alone.names
    for (name, labels), value in alone.samples.items():
        if name not in own and not name.startswith("process_resident"):
            assert merged.samples[name, labels] == value, f"{name} {labels}"
    assert merged.sum("process_open_fds", worker="1") > 0


def test_both_formats_can_be_read() -> None:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    admin = Admin()
    admin.world.services.turn_log.ended(turn(attempt("a"), account="a"))
    told = families(Metrics(admin.running).collect())
    processes = ProcessFamilies()
    for name in "12":
        processes.told(name, 0, told)
    content_type, text = exposition(processes.merged("12"), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    names = [family.name for family in text_string_to_metric_families(text.decode())]
    assert len(names) == len(set(names))
    assert "gateway_turns" in names


def test_counters_are_sums_and_gauges_go_by_their_rules() -> None:
    processes = ProcessFamilies()
    for name, connections, generation, left in (("1", 3, 1, 50.0), ("2", 4, 2, 20.0)):
        processes.told(
            name,
            0,
            [
                *turns(completed=5),
                gauge("gateway_connections", connections),
                gauge("gateway_config_generation", generation),
                gauge("gateway_account_quota_remaining", left, account="a", window="requests"),
            ],
        )
    found = shown(processes.merged("12"))
    assert found.sum("gateway_turns_total") == 10
    assert found.sum("gateway_connections") == 7
    assert found.sum("gateway_config_generation") == 2
    assert found.sum("gateway_account_quota_remaining") == 20


def test_an_account_is_in_the_worst_state_that_a_process_sees() -> None:
    processes = ProcessFamilies()
    for name, seen in (("1", "ready"), ("2", "cooling")):
        states = GaugeMetricFamily("gateway_account_state", "State.", labels=("account", "state"))
        for state in ("ready", "cooling", "disabled"):
            states.add_metric(("a", state), float(state == seen))
        processes.told(name, 0, families([states]))
    found = shown(processes.merged("12")).by("gateway_account_state", "state")
    assert found == {("cooling",): 1.0}


def test_a_process_that_does_not_answer_keeps_its_counts_and_loses_its_gauges() -> None:
    processes = ProcessFamilies()
    for name in "12":
        processes.told(name, 0, [*turns(completed=5), gauge("gateway_connections", 3)])
    found = shown(processes.merged("1"))
    assert found.sum("gateway_turns_total") == 10
    assert found.sum("gateway_connections") == 3


def test_the_counts_of_an_ended_process_stay() -> None:
    processes = ProcessFamilies()
    for life in range(5):
        processes.told("1", life, turns(completed=2, failed=1))
    found = shown(processes.merged("1"))
    assert found.sum("gateway_turns_total", status="completed") == 10
    assert len(processes) == 2


def test_what_is_kept_of_ended_processes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_families, "_MAX_KEPT", 3)
    processes = ProcessFamilies()
    processes.told("1", 0, turns(a=1, b=1))
    processes.told("1", 1, turns(a=1, c=1, d=1, e=1))
    processes.told("1", 2, turns(a=1))
    assert len(processes) == 3
    assert shown(processes.merged("1")).sum("gateway_turns_total", status="a") == 3


def test_the_buckets_of_a_histogram_follow_each_other() -> None:
    def histogram(*names: str) -> list[Family]:
        found = HistogramMetricFamily("seconds", "Times.", labels=("model",))
        for name in names:
            found.add_metric((name,), [("1.0", 1), ("+Inf", 2)], 3.0)
        return families([found])

    processes = ProcessFamilies()
    processes.told("1", 0, histogram("a", "b"))
    processes.told("2", 0, histogram("b", "c", "a"))
    merged = processes.merged("12")
    models = [labels["model"] for _, labels, _ in merged[0].samples]
    assert models == sorted(models)
    assert shown(merged).sum("seconds_count", model="b") == 4


numbers = st.floats(0, 1e6, allow_nan=False)
steps = st.lists(
    st.tuples(st.sampled_from("123"), st.sampled_from(["count", "restart", "silent"]), numbers),
    max_size=30,
)


@given(steps)
def test_no_counter_ever_goes_back(happened: list[tuple[str, str, float]]) -> None:
    processes = ProcessFamilies()
    lives = dict.fromkeys("123", 0)
    counted = dict.fromkeys("123", 0.0)
    before = 0.0
    for name, what, number in happened:
        answering = set("123")
        if what == "count":
            counted[name] += number
        elif what == "restart":
            lives[name] += 1
            counted[name] = 0.0
        else:
            answering.discard(name)
        order = sorted(answering, key=lambda _: random.random())
        for each in order:
            processes.told(each, lives[each], turns(completed=counted[each]))
        now = sum(value for _, _, value in processes.merged(answering)[0].samples)
        assert now >= before
        before = now
