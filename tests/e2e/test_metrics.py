"""`/metrics` of a running gateway: promtool likes it, and it counts what its clients count."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.support.checks import note
from tests.support.events import Json, error_body, user
from tests.support.gateway import Gateway, account
from tests.support.httpclient import HttpClient
from tests.support.scrape import Scrape, scrape
from tests.support.upstream import Exchange, Upstream
from tests.support.wsclient import WsClient

TURNS = 1000
SOCKETS, HTTP_CLIENTS = 21, 3
KEYS = {"laptop": "key-laptop", "desk": "key-desk", "scarce": "key-scarce"}

#: Turns that the key `scarce` may make in the minute that the run lasts less than.
SCARCE = 40

#: What a client orders, and how often of ten turns.
ORDERS = ["answer"] * 6 + ["refuse", "fail", "leave", "interrupt"]

_numbers = itertools.count(1)


def obey(exchange: Exchange) -> None:
    """The upstream: does what the input says, and bills every answer differently."""
    order = json.dumps(exchange.request.body["input"])
    if "refuse" in order:
        exchange.json(400, error_body("too_strange", "This is too strange."))
        return
    number = next(_numbers)
    usage = {
        "input_tokens": 1000 + number,
        "input_tokens_details": {"cached_tokens": number},
        "output_tokens": 10 + number % 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 1010 + number + number % 7,
    }
    events = exchange.turn(usage=usage)
    if "fail" in order:
        failed = {**events[-1]["response"], "status": "failed", "usage": None, "output": []}
        failed["error"] = {"code": "server_error", "message": "It fell over."}
        exchange.sse(*events[:2], {"type": "response.failed", "response": failed})
        exchange.end()
    elif "leave" in order or "interrupt" in order:
        exchange.sse(*events[:-3])
        exchange.hold()
    else:
        exchange.sse(*events)
        exchange.end()


class Counted:
    """What all clients together saw."""

    def __init__(self) -> None:
        self.turns: Counter[tuple[str, str]] = Counter()
        self.errors: Counter[tuple[str]] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.outputs = 0
        #: How the attempts on accounts ended, by the log.
        self.outcomes: Counter[tuple[str]] = Counter()
        self.left = TURNS
        self.trouble: list[BaseException] = []
        self._lock = threading.Lock()

    def take(self) -> str | None:
        """The next order, or None when all turns were made."""
        with self._lock:
            self.left -= 1
            return ORDERS[self.left % len(ORDERS)] if self.left >= 0 else None

    def ended(self, key: str, status: str, event: Json, output: bool) -> None:
        response, error = event.get("response") or {}, event.get("error") or {}
        error = response.get("error") or error
        with self._lock:
            self.turns[key, status] += 1
            self.outputs += output
            if status in ("error", "failed"):
                self.errors[(error.get("code") or error["type"],)] += 1
            usage = response.get("usage")
            if usage and status == "completed":
                self.tokens["input", key] += usage["input_tokens"]
                self.tokens["cached", key] += usage["input_tokens_details"]["cached_tokens"]
                self.tokens["output", key] += usage["output_tokens"]


def over_websockets(port: int, key: str, counted: Counted) -> None:
    """One client: connections in turn, each until it is left in the middle of an answer."""
    client = WsClient(port, key=KEYS[key], timeout=60)
    try:
        while (order := counted.take()) is not None:
            client.create(model="gpt-5.5", input=[user(f"please {order}")], store=False)
            if order not in ("leave", "interrupt"):
                events = client.until_terminal()
                said = any(each["type"] == "response.output_item.done" for each in events)
                counted.ended(key, status_of(events[-1]), events[-1], said)
                continue
            events = client.until("response.output_text.delta", "error")
            if events[-1]["type"] == "error":
                counted.ended(key, "error", events[-1], False)
            elif order == "interrupt":
                client.send(
                    {"type": "response.interrupt", "response_id": events[0]["response"]["id"]}
                )
                counted.ended(key, status_of(client.until_terminal()[-1]), {}, True)
            else:
                client.drop()
                counted.ended(key, "cancelled", {}, True)
                client = WsClient(port, key=KEYS[key], timeout=60)
    finally:
        client.drop()


def over_http(port: int, key: str, counted: Counted) -> None:
    """One client that waits for whole answers."""
    client = HttpClient(port, key=KEYS[key], timeout=60)
    while (order := counted.take()) is not None:
        order = "refuse" if order == "refuse" else "answer"
        answer = client.create(input=[user(f"please {order}")], store=False, stream=False)
        body = answer.json
        if answer.status == 200:
            counted.ended(key, "completed", {"response": body}, True)
        else:
            counted.ended(key, "error", body, False)
    client.sock.close()


def status_of(event: Json) -> str:
    return event["type"].rpartition(".")[2]


@pytest.fixture(scope="module")
def counted() -> Counted:
    return Counted()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory, counted: Counted) -> Iterator[Scrape]:
    """The metrics after a thousand turns."""
    north, south = Upstream(obey), Upstream(obey)
    keys: list[Json] = [{"name": name, "key": key} for name, key in KEYS.items()]
    keys[-1]["requests_per_day"] = SCARCE
    config: Json = {
        "keys": keys,
        "accounts": [account("north", north), account("south", south)],
        "routing": {"queue_seconds": 0, "on_account_loss": "wait"},
        "log": {"format": "json"},
    }
    gateway = Gateway(tmp_path_factory.mktemp("metrics"), config)
    try:
        started = time.monotonic()
        names = itertools.cycle(KEYS)
        clients = [(over_websockets, next(names)) for _ in range(SOCKETS)]
        clients += [(over_http, next(names)) for _ in range(HTTP_CLIENTS)]
        threads = [
            threading.Thread(target=run, args=(client, gateway.port, key, counted))
            for client, key in clients
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not counted.trouble, f"a client failed: {counted.trouble[0]!r}"
        note(f"{TURNS} turns over {len(threads)} clients: {time.monotonic() - started:.1f} s")
        found = settled(gateway.admin_port)
        for line in gateway.log().splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            counted.outcomes.update((each["outcome"],) for each in entry.get("attempts", ()))
        yield found
    finally:
        gateway.stop()
        north.stop()
        south.stop()


def run(client: Callable[[int, str, Counted], None], port: int, key: str, counted: Counted) -> None:
    try:
        client(port, key, counted)
    except BaseException as error:
        counted.trouble.append(error)


def settled(port: int) -> Scrape:
    """Once the gateway has noticed the last client that left."""
    deadline = time.monotonic() + 20
    while True:
        found = scrape(port)
        if found.sum("gateway_turns_total") >= TURNS or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def test_turns_are_counted_by_key_and_status(scraped: Scrape, counted: Counted) -> None:
    assert sum(counted.turns.values()) == TURNS
    statuses = {status for _, status in counted.turns}
    assert statuses == {"completed", "error", "failed", "incomplete", "cancelled"}
    assert scraped.by("gateway_turns_total", "key", "status") == counted.turns
    routes: Counter[str] = Counter()
    for (_, status), number in counted.turns.items():
        routes[status] += number
    by_status = scraped.by("gateway_turn_routes_total", "status")
    assert by_status == {(status,): number for status, number in routes.items()}
    assert scraped.sum("gateway_turn_duration_seconds_count") == TURNS


def test_tokens_are_those_that_clients_were_billed(scraped: Scrape, counted: Counted) -> None:
    for way, metric in (
        ("input", "gateway_input_tokens_total"),
        ("cached", "gateway_cached_input_tokens_total"),
        ("output", "gateway_output_tokens_total"),
    ):
        billed = {(key,): n for (each, key), n in counted.tokens.items() if each == way}
        assert scraped.by(metric, "key") == billed, f"{way} tokens by key"
        of_accounts = scraped.sum(metric.replace("gateway_", "gateway_account_"))
        assert of_accounts == sum(billed.values()), f"{way} tokens by account"
        if way != "cached":
            usage = "gen_ai_client_token_usage_sum"
            assert scraped.sum(usage, gen_ai_token_type=way) == sum(billed.values())


def test_errors_are_those_that_clients_were_told(scraped: Scrape, counted: Counted) -> None:
    assert scraped.by("gateway_turn_errors_total", "error") == counted.errors
    refused = counted.errors[("usage_limit_reached",)]
    assert refused > 0, "the scarce key expected to be refused"
    assert scraped.sum("gateway_key_refusals_total", key="scarce") == refused
    of_accounts = scraped.by("gateway_account_errors_total", "error")
    of_the_gateway = {("usage_limit_reached",), ("rate_limit_exceeded",)}  # accounts may rest
    told = {code: n for code, n in counted.errors.items() if code not in of_the_gateway}
    assert of_accounts.keys() == told.keys(), "accounts' errors are those the gateway did not make"
    attempts = {code: counted.outcomes[code] for code in told}
    assert of_accounts == attempts, "each attempt counts, also of turns that went on elsewhere"
    assert all(of_accounts[code] >= n for code, n in told.items())


def test_times_are_taken_of_every_turn_that_said_something(
    scraped: Scrape, counted: Counted
) -> None:
    for name in (
        "gateway_time_to_first_output_seconds",
        "gateway_added_time_to_first_output_seconds",
        "gateway_upstream_time_to_first_output_seconds",
        "gateway_account_time_to_first_output_seconds",
    ):
        assert scraped.sum(f"{name}_count") == counted.outputs, name
    parts = ("added", "upstream")
    sums = [scraped.sum(f"gateway_{part}_time_to_first_output_seconds_sum") for part in parts]
    assert sum(sums) == pytest.approx(scraped.sum("gateway_time_to_first_output_seconds_sum"))


def test_labels_hold_nothing_of_a_conversation(scraped: Scrape) -> None:
    values = {value for _, labels in scraped.samples for _, value in labels}
    assert not [value for value in values if "resp_" in value or "secret" in value]
    assert len(scraped.samples) < 1000


def test_promtool_finds_nothing_wrong(scraped: Scrape, require_e2e: bool) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        reason = "promtool is not installed (Debian: apt-get install prometheus)"
        if require_e2e:
            pytest.fail(f"{reason} (GATEWAY_REQUIRE_E2E=1)")
        pytest.skip(reason)
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=scraped.text.encode(),
        capture_output=True,
        timeout=60,
    )
    said = (checked.stdout + checked.stderr).decode()
    assert (checked.returncode, said) == (0, ""), f"promtool: {said}"
