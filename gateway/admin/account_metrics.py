"""What ``/metrics`` says of accounts: states, load, quotas, and the turns that ended on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client.core import Metric, SummaryMetricFamily

from gateway.admin.metric_kinds import Row, counter_family, gauge_family
from gateway.admin.views.accounts import state, used_share
from gateway.metrics.turns import AccountMetrics
from gateway.routing.account import Account
from gateway.routing.health import AccountState

#: Members of a quota window, and the metric of each.
_QUOTAS = (
    ("remaining", "remaining", "Requests or tokens that are left of a quota."),
    ("limit", "limit", "Requests or tokens of a quota."),
    ("resets_at", "resets_timestamp_seconds", "When a quota begins anew."),
)


def account_families(
    accounts: Sequence[Account], turns: dict[str, AccountMetrics]
) -> Iterator[Metric]:
    """All families about accounts.

    :param accounts: those in service.
    :param turns: what is counted of turns, by account; also of accounts that are gone.
    """
    yield from _accounts(accounts)
    yield from _quotas(accounts)
    yield from _websockets(accounts)
    yield from _account_turns(turns)


def _accounts(accounts: Sequence[Account]) -> Iterator[Metric]:
    yield gauge_family(
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
    for name, about, value in _ACCOUNT_GAUGES:
        known = (((account.name,), value(account)) for account in accounts)
        rows: list[Row] = [(names, number) for names, number in known if number is not None]
        yield gauge_family(f"gateway_account_{name}", about, ("account",), rows)


def _blocked_until(account: Account) -> float | None:
    until = account.health.blocked_until
    return until if 0 < until < math.inf else None


_ACCOUNT_GAUGES: tuple[tuple[str, str, Callable[[Account], float | None]], ...] = (
    (
        "rests_until_timestamp_seconds",
        "When the cooldown of an account ends; absent while nothing of it is known.",
        _blocked_until,
    ),
    (
        "models_at_rest",
        "Models that the account limits or refuses for a while, whatever its state.",
        lambda account: len(account.health.snapshot()["models"]),
    ),
    ("turns_in_flight", "Turns that run on the account.", lambda account: account.in_flight),
    (
        "max_turns_in_flight",
        "Turns that may run on the account, where that is limited.",
        lambda account: account.settings.max_in_flight,
    ),
)


def _quotas(accounts: Sequence[Account]) -> Iterator[Metric]:
    windows: list[tuple[str, dict[str, Any]]] = [
        (account.name, window)
        for account in accounts
        for window in account.health.snapshot()["windows"]
    ]
    labels = ("account", "window")
    used = (((account, window["name"]), used_share(window)) for account, window in windows)
    yield gauge_family(
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
        yield gauge_family(f"gateway_account_quota_{name}", about, labels, rows)


def _websockets(accounts: Sequence[Account]) -> Iterator[Metric]:
    found = [(account.name, account.upstream.sockets()) for account in accounts]
    known = [(name, figures) for name, figures in found if figures is not None]
    yield gauge_family(
        "gateway_upstream_websockets",
        "WebSockets to an account: in use, idle, and being opened.",
        ("account", "state"),
        (
            ((name, state), number)
            for name, each in known
            for state, number in (
                ("in_use", each.in_use),
                ("idle", each.idle),
                ("opening", each.opening),
            )
        ),
    )
    yield counter_family(
        "gateway_upstream_websockets_opened",
        "WebSockets to an account that were opened.",
        ("account",),
        (((name,), each.opened) for name, each in known),
    )
    yield counter_family(
        "gateway_upstream_websockets_lost",
        "WebSockets to an account that are gone, by reason.",
        ("account", "reason"),
        (((name, why), n) for name, each in known for why, n in each.lost.items()),
    )


def _account_turns(accounts: dict[str, AccountMetrics]) -> Iterator[Metric]:
    counted = accounts.items()
    yield counter_family(
        "gateway_account_turns",
        "Turns that ended on the account, by status.",
        ("account", "status"),
        (((name, status), n) for name, each in counted for status, n in each.statuses.items()),
    )
    yield counter_family(
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
        yield counter_family(
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
