"""What it costs to choose an account: the pool by itself, without a network.

    python bench/choosing.py

Prints JSON: microseconds of CPU for one choice of a new conversation, with its place taken and
given back and its explanation made, under the strategy that takes longest.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, NoReturn, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gateway.config import AccountSettings, RoutingSettings
from gateway.config.settings import Strategy
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey, MemoryBindings
from gateway.routing.router import AccountPool
from gateway.routing.selection import RouteRequest, Selection

MODEL = "gpt-5.5"
COUNTS = (2, 100, 1000)
TIMES, REPEATS = 300, 5


class NoUpstream:
    """Choosing an account sends nothing."""

    def exchange(self, *_: Any) -> NoReturn:
        raise AssertionError("nothing is sent")

    call = exchange

    def close(self) -> None:
        """Nothing is open."""


def pool_of(count: int, strategy: Any, resting: int = 0) -> AccountPool:
    """So many accounts, of several weights and priorities; the first ones rest."""
    accounts = []
    for number in range(count):
        settings = AccountSettings(
            name=f"account-{number}",
            base_url="http://127.0.0.1:1",
            key="bench",
            weight=1 + number % 7,
            priority=1 + number % 3,
        )
        accounts.append(Account(settings, NoUpstream(), time.time))
    for account in accounts[:resting]:
        rest = Fault(FaultKind.RATE_LIMITED, "429", time.time() + 300)
        account.health.refused(MODEL, rest)
    return AccountPool(
        accounts, MemoryBindings(100_000, 3600, time.time), RoutingSettings(strategy=strategy)
    )


def choice_us(pool: AccountPool) -> float:
    """Microseconds for a choice; of several measurements the one that was disturbed least."""
    keys = [AffinityKey("thread", "bench", str(number)) for number in range(TIMES * REPEATS)]
    choices = [RouteRequest(MODEL, [key]) for key in keys]
    best = float("inf")
    for start in range(0, len(choices), TIMES):
        began = time.process_time()
        for wanted in choices[start : start + TIMES]:
            choice = pool.choose(wanted)
            assert isinstance(choice, Selection), "somebody is always left"
            choice.lease.release()
        best = min(best, time.process_time() - began)
    return best / TIMES * 1e6


def main() -> None:
    """Measure everything and print it."""
    strategies = get_args(Strategy)
    found = {
        f"choose.{count}": max(choice_us(pool_of(count, each)) for each in strategies)
        for count in COUNTS
    }
    most = COUNTS[-1]
    found["choose.resting"] = max(choice_us(pool_of(most, each, most - 1)) for each in strategies)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
