"""The accounts: state, quotas, load, what became of their turns and attempts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client.core import Metric, SummaryMetricFamily

from gateway.admin.exposed.families import Row, counter, gauge
from gateway.admin.views.accounts import state
from gateway.metrics.turns import TurnMetrics
from gateway.routing.account import Account
from gateway.routing.health import AccountState

#: Members of a quota window, and the metric of each.
_QUOTAS = (
    ("remaining", "remaining", "Requests or tokens that are left of a quota."),
    ("limit", "limit", "Requests or tokens of a quota."),
    ("resets_at", "resets_timestamp_seconds", "When a quota begins anew."),
)


def account_families(accounts: Sequence[Account], tally: TurnMetrics) -> Iterator[Metric]:
    """What is known of each."""
    yield gauge(
        "gateway_account_state",
        "1 for the state that the account is in.",
        ("account", "state"),
        (
            ((account.name, each.value), float(each is now))
            for account in accounts
            for now in (state(account),)
            for each in AccountState
        ),
    )
    yield gauge(
        "gateway_account_rests_until_timestamp_seconds",
        "When the cooldown of an account ends; absent while nothing of it is known.",
        ("account",),
        (
            ((account.name,), account.health.blocked_until)
            for account in accounts
            if 0 < account.health.blocked_until < math.inf
        ),
    )
    yield gauge(
        "gateway_account_models_at_rest",
        "Models that the account limits or refuses for a while, whatever its state.",
        ("account",),
        (((account.name,), len(account.health.snapshot()["models"])) for account in accounts),
    )
    yield gauge(
        "gateway_account_turns_in_flight",
        "Turns that run on the account.",
        ("account",),
        (((account.name,), account.in_flight) for account in accounts),
    )
    yield gauge(
        "gateway_account_max_turns_in_flight",
        "Turns that may run on the account, where that is limited.",
        ("account",),
        (
            ((account.name,), account.settings.max_in_flight)
            for account in accounts
            if account.settings.max_in_flight is not None
        ),
    )
    yield from _quotas(accounts)
    yield from _counted(tally)


def _quotas(accounts: Sequence[Account]) -> Iterator[Metric]:
    windows: list[tuple[str, dict[str, Any]]] = [
        (account.name, window)
        for account in accounts
        for window in account.health.snapshot()["windows"]
    ]
    labels = ("account", "window")
    used = (((account, window["name"]), _used(window)) for account, window in windows)
    yield gauge(
        "gateway_account_quota_used_ratio",
        "Used share of a quota, as the upstream told last.",
        labels,
        ((names, ratio) for names, ratio in used if ratio is not None),
    )
    for member, name, about in _QUOTAS:
        rows: list[Row] = [
            ((account, window["name"]), window[member])
            for account, window in windows
            if window[member] is not None
        ]
        yield gauge(f"gateway_account_quota_{name}", about, labels, rows)


def _used(window: dict[str, Any]) -> float | None:
    """Some upstreams tell the share that is used, others what is left of how much."""
    percent, left, limit = window["used_percent"], window["remaining"], window["limit"]
    if percent is not None:
        return float(percent) / 100
    return None if left is None or not limit else float(limit - left) / float(limit)


def _counted(tally: TurnMetrics) -> Iterator[Metric]:
    counted = tally.accounts.items()
    yield counter(
        "gateway_account_turns",
        "Turns that ended on the account, by status.",
        ("account", "status"),
        (((name, status), n) for name, each in counted for status, n in each.statuses.items()),
    )
    yield counter(
        "gateway_account_errors",
        "Attempts that the account refused or broke, by error; also of turns that moved on.",
        ("account", "error"),
        (((name, error), n) for name, each in counted for error, n in each.errors.items()),
    )
    for way, what in (
        ("input", "input_tokens"),
        ("cached", "cached_input_tokens"),
        ("output", "output_tokens"),
    ):
        yield counter(
            f"gateway_account_{what}",
            f"The {what.replace('_', ' ')} of the account's answers.",
            ("account",),
            (((name,), getattr(each.tokens, way)) for name, each in counted),
        )
    first = SummaryMetricFamily(
        "gateway_account_time_to_first_output_seconds",
        "From the request on the account's connection to its first output.",
        labels=("account",),
    )
    for name, each in counted:
        first.add_metric((name,), sum(each.first_token.counts), each.first_token.sum / 1000)
    yield first
