"""A thousand conversations over five accounts, of which one is always faulty in some new way.

Judged from all three sides: what the clients read, what arrived at the accounts, and what the
gateway itself gave as its reasons, one record a turn, in its log.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.e2e.conversations import TURNS, Conversation, Try, hold
from tests.e2e.weather import KINDS, Arrival, arrivals, weather
from tests.support.events import Json
from tests.support.gateway import Gateway, account

CONVERSATIONS = 1000
AT_A_TIME = 100
ACCOUNTS = ("north", "east", "south", "west", "center")

#: Seconds.  A rest that the cap ends may be shorter than the cap by a quarter, so that not
#: all accounts come back in one moment.
COOLDOWN_MAX = 4.0
SHORTEST_CAPPED = COOLDOWN_MAX * 0.75

#: What a record says of an account that could have served.
NO_REASON = ("another was named", None)
#: What it says of one that is passed over until the time that it named.
USED_UP = ("a quota of it is used up", "its quota is used up")
RETURNS = "returns to its account"

#: Faults that look like a kept connection that the server closed meanwhile.
DEAD = {"reset before the first byte", "reset after created"}


class Run:
    """One run, seen from all sides."""

    def __init__(self, folder: Path) -> None:
        began = time.monotonic()
        config = {
            "accounts": [],
            "routing": {
                "cooldown_max_seconds": COOLDOWN_MAX,
                "max_attempts": len(ACCOUNTS),
                "queue_seconds": 15,
            },
            "log": {"format": "json", "level": "info"},
        }
        with weather(folder / "weather.log", ACCOUNTS) as url:
            config["accounts"] = [account(name, url) for name in ACCOUNTS]
            gateway = Gateway(folder, config)
            try:
                self.conversations = hold(CONVERSATIONS, AT_A_TIME, gateway.port)
            finally:
                gateway.stop()
        self.seconds = time.monotonic() - began
        self.arrivals = arrivals(folder / "weather.log")
        self.records = _records(gateway.log())
        self.tries = {each.name: each for talk in self.conversations for each in talk.tries}
        self.arrived: dict[str, list[Arrival]] = defaultdict(list)
        for arrival in self.arrivals:
            self.arrived[arrival.turn].append(arrival)
        self.record_of = dict(self._told())

    def _told(self) -> Iterator[tuple[str, Json]]:
        """The record of each try; the gateway knows conversations by names of its own."""
        talks: dict[str, list[Json]] = defaultdict(list)
        for record in self.records:
            talks[record["conversation"]].append(record)
        first = {each[0]["response_id"]: each for each in talks.values()}
        for talk in self.conversations:
            known = first[talk.tries[0].response_id]
            assert len(known) == len(talk.tries), (
                f"conversation {talk.number}: {len(talk.tries)} turns, {len(known)} records"
            )
            for attempt, record in zip(talk.tries, known, strict=True):
                yield attempt.name, record

    def attempts(self, name: str) -> list[tuple[Arrival, Json]]:
        """The attempts of a turn: what arrived last of each, and the gateway's account of it.

        Over a kept connection that turns out to be dead one attempt may be sent twice; a reset
        takes along what it overtakes, so that ``created`` may never have been seen.
        """
        told = self.record_of[name]["attempts"]
        left = list(self.arrived[name])
        met = []
        for number, each in enumerate(told):
            assert left, f"turn {name}: attempt {number} of {told} never arrived"
            arrival = left.pop(0)
            more = len(left) > len(told) - number - 1
            if more and arrival.fault in DEAD and left[0].account == arrival.account:
                arrival = left.pop(0)
            met.append((arrival, each))
        assert not left, f"turn {name} was sent more often than {told}: {self.arrived[name]}"
        return met

    def of(self, talk: Conversation) -> list[tuple[Try, Json]]:
        """The tries of a conversation, each with the gateway's record."""
        return [(each, self.record_of[each.name]) for each in talk.tries]


def _records(log: str) -> list[Json]:
    """Turn records in the order in which the turns were accepted."""
    lines = (json.loads(line) for line in log.splitlines() if line.startswith("{"))
    found = [line for line in lines if line.get("namespace") == "gateway.turn" and "turn" in line]
    return sorted(found, key=lambda record: int(record["turn"].rpartition(".")[2]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("weather"))


# --- what the clients saw ------------------------------------------------------------


def test_every_conversation_ends_right(run: Run) -> None:
    wrong = [fault for talk in run.conversations for fault in talk.faults]
    assert wrong == [], f"{len(wrong)} conversations went wrong"
    completed = Counter(each.terminal["type"] for each in run.tries.values())
    assert completed["response.completed"] == CONVERSATIONS * TURNS
    broken = [each for each in run.arrivals if each.fault == "reset after output"]
    assert len(run.tries) == CONVERSATIONS * TURNS + len(broken), (
        "clients had to ask again only where an answer broke off before their eyes"
    )


def test_every_fault_happened_to_every_account(run: Run) -> None:
    happened = {each.fault for each in run.arrivals}
    assert happened >= set(KINDS), f"the weather never brought {set(KINDS) - happened}"
    assert {each.account for each in run.arrivals if each.fault} == set(ACCOUNTS)


# --- where turns went ----------------------------------------------------------------


def test_no_turn_leaves_its_account_without_a_reason(run: Run) -> None:
    figures, unexplained = moves(run)
    assert unexplained == [], f"{len(unexplained)} turns moved without a reason"
    assert figures["stayed"] > CONVERSATIONS, "most turns have no reason to move"


def test_conversations_return_to_where_they_began(run: Run) -> None:
    returned = 0
    for talk in run.conversations:
        home: str | None = None  # who answered first; not every answer that began came to an end
        tried: set[str] = set()
        for _, record in run.of(talk):
            first = record["attempts"][0]
            if first["rule"] == RETURNS:
                returned += 1
                home = home or first["account"]
                assert first["account"] == home, f"{record['turn']} returned to a strange account"
                assert home in tried, f"{record['turn']} returned to where it never was"
            tried |= {each["account"] for each in record["attempts"]}
    assert returned > 50, "too few to tell"


def test_who_is_said_to_be_unavailable_was_faulty_of_late(run: Run) -> None:
    faulty: dict[str, list[float]] = defaultdict(list)
    for each in run.arrivals:
        if each.fault:
            faulty[each.account].append(each.at)
    for talk in run.conversations:
        for attempt, record in run.of(talk):
            for tried in record["attempts"]:
                for name, why in tried["others"].items():
                    if why in NO_REASON:
                        continue
                    since = 0.0 if why in USED_UP else attempt.sent - 30
                    near = [at for at in faulty[name] if since < at < attempt.over]
                    assert near, f"{record['turn']}: {name} is said to lack {why!r}, and does not"


def moves(run: Run) -> tuple[Counter[str], list[str]]:
    """How often turns stayed or moved, and why; and those that moved without a reason."""
    figures: Counter[str] = Counter()
    unexplained: list[str] = []
    for talk in run.conversations:
        before: str | None = None
        for _, record in run.of(talk):
            first = record["attempts"][0]
            why = first["others"].get(before)
            if before is None:
                figures["new"] += 1
            elif first["account"] == before:
                figures["stayed"] += 1
            elif first["rule"] == RETURNS:
                figures["returned"] += 1
            elif why not in NO_REASON:
                figures["moved: " + _short(why)] += 1
            else:
                unexplained.append(f"{record['turn']}: {before} to {first}")
            for tried, following in pairwise(record["attempts"]):
                if tried["account"] != following["account"]:
                    figures["moved: " + _short(tried["outcome"])] += 1
                    if tried["outcome"] in ("completed", "running", ""):
                        unexplained.append(f"{record['turn']}: {tried} and {following}")
            before = record["account"]
    return figures, unexplained


def _short(why: str) -> str:
    return "a probe was on its way" if "a probe is" in why else why.partition(":")[0][:40]


# --- what arrived at the accounts ----------------------------------------------------


def test_no_turn_is_sent_again_after_output(run: Run) -> None:
    for name, sent in run.arrived.items():
        with_output = [each for each in sent if each.had_output]
        assert len(with_output) <= 1, f"turn {name} was answered more than once: {sent}"
        assert not with_output or sent[-1] is with_output[0], f"{name} was sent again: {sent}"


def test_every_attempt_is_recorded_once(run: Run) -> None:
    for name in run.record_of:
        for arrival, told in run.attempts(name):
            assert arrival.account == told["account"], f"turn {name}: {told}, but {arrival}"


def test_no_account_is_used_while_it_cools(run: Run) -> None:
    """An attempt breaks the rule if it was chosen surely after the refusal was read, and
    arrived before the time that the refusal named, or the cap on cooldowns."""
    used = list(uses_of_cooling_accounts(run))
    assert used == [], f"{len(used)} requests went to cooling accounts"


def uses_of_cooling_accounts(run: Run) -> Iterator[str]:
    requests: dict[str, list[tuple[float, Arrival]]] = defaultdict(list)
    for name in run.record_of:
        sent = run.tries[name].sent
        for arrival, tried in run.attempts(name):
            requests[arrival.account].append((sent + tried["chosen_ms"] / 1000, arrival))
    for each in requests.values():
        each.sort(key=lambda request: request[1].at)
    unnamed: dict[str, float] = defaultdict(float)
    for refusal in run.arrivals:
        until = rests_until(refusal)
        if until is None or refusal.at < unnamed[refusal.account]:
            continue
        if refusal.until is None:
            unnamed[refusal.account] = until  # what was under way then does not lengthen it
        learned = learned_at(run, refusal)
        for chosen, arrival in requests[refusal.account]:
            if chosen > learned and arrival.at < until:
                yield f"{arrival} {until - arrival.at:.2f} s too early, after {refusal}"


def rests_until(refusal: Arrival) -> float | None:
    """Before when the account must not be asked again, unix seconds."""
    if refusal.fault == "401":
        return refusal.at + SHORTEST_CAPPED
    if refusal.until is None:
        return None
    capped = refusal.until >= refusal.at + COOLDOWN_MAX
    return refusal.at + SHORTEST_CAPPED if capped else refusal.until


def learned_at(run: Run, refusal: Arrival) -> float:
    """A moment at which the gateway had surely read the refusal."""
    later = [each.at for each in run.arrived[refusal.turn] if each.at > refusal.at]
    return min(later, default=run.tries[refusal.turn].over)


def test_figures(run: Run, record_property: Any) -> None:
    """No judgement: what the run was like."""
    figures, _ = moves(run)
    routes = Counter(record["route"] for record in run.records)
    waits = [record["waited_ms"] for record in run.records if record["waited_ms"]]
    faults = Counter(each.fault for each in run.arrivals if each.fault)
    kept = figures["stayed"] + figures["new"] + figures["returned"]
    attempts = sum(len(record["attempts"]) for record in run.records)
    told = (
        f"{CONVERSATIONS} conversations, {len(run.records)} turns, {attempts} attempts,"
        f" {sum(faults.values())} faults of {len(faults)} kinds in {run.seconds:.0f} s;"
        f" {kept} turns where they should be, {figures['returned']} of them returned;"
        f" routes {dict(routes)};"
        f" {len(waits)} waits, median {median(waits or [0]):.0f} ms, at most"
        f" {max(waits, default=0):.0f} ms;"
        f" moves { ({k[7:]: n for k, n in figures.most_common() if k.startswith('moved')}) }"
    )
    record_property("figures", told)
    print(told)
