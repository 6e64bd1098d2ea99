"""The admin side of a supervisor: one page, one `/metrics`, actions in all workers."""

from __future__ import annotations

import json
from typing import Any

from twisted.logger import capturedLogs

from gateway.admin.managed_gateway import ACTIONS, VIEWS
from gateway.admin.metric_families import families
from gateway.admin.prometheus import state_metrics
from gateway.admin.worker_answers import VIEW
from gateway.config import ConfigError
from gateway.state.keeper import StateFigures
from gateway.state.write_behind import WriteFigures
from tests.admin.stage import BEARER, OWN
from tests.admin.test_openapi import check
from tests.admin.workers_stage import Worker, Workers
from tests.metrics.test_turns import attempt, turn
from tests.support.events import text_item, turn_events, user
from tests.support.scrape import Scrape, read


def ended(worker: Worker, count: int = 1, **about: Any) -> None:
    name = worker.admin.world.services.pool.accounts[0].name
    for _ in range(count):
        record = turn(attempt(name), account=name, **about)
        worker.admin.world.services.turn_log.ended(record)


def scrape(workers: Workers, wait: float = 0.0) -> Scrape:
    answer = workers.ask("/metrics", wait=wait)
    assert answer.status == 200, answer.body
    return read(answer.body.decode(), answer.headers["content-type"])


def test_one_worker_is_shown_as_a_gateway_of_one_process() -> None:
    workers = Workers(1)
    ended(workers.workers[0], 3)
    alone = workers.workers[0].admin.json("/status")
    shown = workers.json("/status")
    assert {each["name"] for each in shown.pop("workers")} == {"1"}
    assert shown["memory"].pop("rss_bytes") > alone["memory"].pop("rss_bytes")
    for member in ("uptime_seconds", "history", "newest"):
        assert member in shown, f"{member} is missing"
        del shown[member], alone[member]
    assert shown == alone


def test_the_views_and_actions_are_those_of_one_process() -> None:
    managed = Workers(1).managed
    assert managed._views.keys() == VIEWS.keys() - {"part"}
    assert managed._acts.keys() == ACTIONS.keys()


def test_counts_are_of_all_workers_and_each_worker_is_listed() -> None:
    workers = Workers()
    first, second = workers.workers
    ended(first, 2)
    ended(second, 3)
    shown = workers.json("/status")
    assert shown["turns"] == {"completed": 5}
    assert shown["now"]["turns_per_minute"] == 60.0
    assert shown["now"]["added_first_token_ms"]["p50"] is not None
    listed = shown["workers"]
    assert [each["name"] for each in listed] == ["1", "2"]
    assert [each["pid"] for each in listed] == [1000, 2000]
    assert [each["turns_per_minute"] for each in listed] == [24.0, 36.0]
    assert {each["state"] for each in listed} == {"ready"}
    assert shown["state"] == "ready"


def test_a_worker_that_does_not_answer_is_shown_and_the_page_still_comes() -> None:
    workers = Workers()
    first, second = workers.workers
    ended(first, 2)
    ended(second, 3)
    workers.json("/status")
    second.hang()
    answer = workers.ask("/status", "accept: text/html", wait=2.1)
    assert answer.status == 200
    assert b"worker 2 does not answer" in answer.body
    shown = workers.json("/status", wait=2.1)
    assert [each["state"] for each in shown["workers"]] == ["ready", "silent"]
    assert shown["turns"] == {"completed": 5}, "counts went back"
    assert shown["state"] == "degraded"
    assert workers.ask("/readyz", wait=2.1).status == 200


def test_without_any_worker_the_page_still_comes() -> None:
    workers = Workers()
    for worker in workers.workers:
        worker.die()
    answer = workers.ask("/status", "accept: text/html")
    assert answer.status == 200
    assert b"worker 1 has ended" in answer.body
    shown = workers.json("/status")
    assert (shown["state"], shown["ready"]) == ("unusable", False)
    assert {alarm["level"] for alarm in shown["alarms"]} == {"red"}
    ready = workers.ask("/readyz")
    assert (ready.status, ready.json) == (503, {"status": "no worker answers"})
    assert workers.ask("/livez").status == 200
    assert workers.json("/status/turns") == {"turns": [], "silent": ["1", "2"]}


def test_it_is_ready_while_one_worker_is() -> None:
    workers = Workers()
    first, second = workers.workers
    second.hang()
    assert workers.ask("/readyz").status == 200, "it waited for the slowest"
    first.admin.running.drain.begin()
    answer = workers.ask("/readyz", wait=2.1)
    assert (answer.status, answer.json) == (503, {"status": "draining"})


def test_a_probe_has_an_answer_also_when_a_worker_says_nonsense() -> None:
    workers = Workers(1)
    workers.workers[0].inner.handle(VIEW, lambda _: b"nonsense")
    with capturedLogs() as events:
        ready = workers.ask("/readyz", wait=2.1)
    assert (ready.status, ready.json) == (503, {"status": "no worker answers"})
    assert [event["log_format"] for event in events] == ["workers could not be asked"]


def test_a_drain_is_of_all_workers_also_of_those_that_start_meanwhile() -> None:
    workers = Workers()
    first, second = workers.workers
    first.hang()
    drained = workers.json("/admin/drain", method="POST", wait=4.1)
    assert drained["result"].endswith("no answer of worker 1")
    assert workers.ask("/readyz").json == {"status": "draining"}
    assert second.admin.limiter.draining
    second.die()
    workers.restart(second)
    assert second.admin.limiter.draining
    first.die()
    workers.restart(first)
    assert workers.json("/status")["state"] == "draining"
    assert workers.json("/admin/resume", method="POST")["result"] == "clients are let in"
    assert not second.admin.limiter.draining
    assert workers.ask("/readyz").status == 200


def test_what_is_done_with_an_account_is_done_in_all_workers() -> None:
    workers = Workers()
    done = workers.json("/admin/accounts/a/pause", method="POST")
    assert done == {
        "result": "a is paused until it is resumed; running turns go on",
        "state": "disabled",
    }
    for worker in workers.workers:
        assert worker.admin.world.accounts["a"].health.state.value == "disabled"
    assert workers.ask("/admin/accounts/nobody/pause", method="POST").status == 404
    assert workers.ask("/admin/accounts/a/explode", method="POST").status == 404
    entries = workers.json("/status/audit")["actions"]
    assert [entry["done"] for entry in entries] == [False, False, True]


class Upstream:
    """Counts the requests to it."""

    def __init__(self) -> None:
        self.asked = 0

    def forward(self, request: object, receiver: object) -> Upstream:
        self.asked += 1
        return self

    def sockets(self) -> None:
        """It has none."""

    def start(self) -> None:
        """Nothing is answered."""

    def cancel(self) -> None:
        """Nothing to cancel."""


def test_an_account_is_probed_once() -> None:
    workers = Workers()
    upstreams = [Upstream() for _ in workers.workers]
    for worker, upstream in zip(workers.workers, upstreams, strict=True):
        account: Any = worker.admin.world.accounts["a"]
        account.upstream = upstream
    client = workers.client()
    client.sends(
        b"POST /admin/accounts/a/probe HTTP/1.1\r\nhost: localhost\r\n"
        b"content-length: 0\r\n" + BEARER.encode() + b"\r\n\r\n"
    )
    assert [upstream.asked for upstream in upstreams] == [1, 0]
    workers.workers[0].admin.clock.advance(10)
    workers.pump()
    assert "does not answer" in client.answer.json["result"]
    client.leaves()


def test_a_form_is_answered_with_the_section_of_its_button() -> None:
    workers = Workers()
    client = workers.client()
    body = b"token=t0ken"
    client.sends(
        b"POST /login HTTP/1.1\r\nhost: localhost:8081\r\n" + OWN.encode() + b"\r\n"
        b"content-type: application/x-www-form-urlencoded\r\ncontent-length: 11\r\n\r\n" + body
    )
    cookie = client.answer.cookie
    client.leaves()
    form = ("content-type: application/x-www-form-urlencoded", OWN, cookie)
    for path in ("/admin/accounts/a/pause", "/admin/accounts/nobody/pause"):
        client = workers.client()
        lines = [f"POST {path} HTTP/1.1", "host: localhost:8081", "content-length: 0", *form]
        client.sends("\r\n".join([*lines, "", ""]).encode())
        assert client.answer.status == 303
        assert client.answer.headers["location"] == "/status#accounts"
        client.leaves()


def test_states_that_differ_are_shown_by_worker() -> None:
    workers = Workers()
    workers.workers[1].admin.world.accounts["a"].health.disable()
    shown = workers.json("/status/accounts")["accounts"]
    assert shown[0]["state"] == "disabled"
    assert shown[0]["workers"] == {"1": "ready", "2": "disabled"}
    assert "workers" not in shown[1]
    page = workers.ask("/status?part=accounts", "accept: text/html")
    assert b"worker 1: ready" in page.body


def test_conversations_and_turns_come_with_their_worker() -> None:
    workers = Workers()
    first, second = workers.workers
    second.admin.world.completed([user("x")], turn_events([text_item()], "resp_2"))
    first.admin.clock.advance(1)
    first.admin.world.completed([user("y")], turn_events([text_item()], "resp_1"))
    found = workers.json("/status/turns")["turns"]
    assert [(each["response_id"], each["worker"]) for each in found] == [
        ("resp_2", "2"),
        ("resp_1", "1"),
    ]
    assert len(workers.json("/status/turns?limit=1")["turns"]) == 1
    bound = workers.json("/status/conversations")["conversations"]
    assert {each["worker"] for each in bound} <= {"1", "2"}
    explained = workers.json("/status/conversations/resp_2/why")
    assert [each["worker"] for each in explained["turns"]] == ["2"]
    assert [node["id"] for node in explained["chain"]["nodes"]] == ["resp_2"]
    assert workers.ask("/status/conversations/resp_9/why").status == 404
    page = workers.ask("/status?why=resp_2", "accept: text/html")
    assert page.status == 200
    assert b"resp_2" in page.body
    assert workers.ask("/admin/conversations/resp_1/drop", method="POST").status == 200
    assert workers.ask("/admin/conversations/resp_1/drop", method="POST").status == 404


def test_the_other_views_come() -> None:
    workers = Workers()
    assert [key["name"] for key in workers.json("/status/keys")["keys"]] == ["laptop"]
    registers = {each["name"]: each for each in workers.json("/status/memory")["registers"]}
    assert registers["journal"]["bound"] == 1000, "each worker has its own"
    assert "admin audit" in registers
    assert workers.json("/status/config")["can_reload"] is False
    chosen = workers.json("/admin/route-dry-run", method="POST")
    assert chosen["candidates"] == ["a", "b"]


def test_the_log_level_is_that_of_all() -> None:
    workers = Workers()
    assert workers.post("/admin/log-level", {"level": "debug"}).status == 200
    levels = [worker.admin.threshold.level for worker in workers.workers]
    assert (workers.threshold.level, levels) == ("debug", ["debug", "debug"])


def test_the_supervisor_reads_the_configuration() -> None:
    workers = Workers()
    assert workers.ask("/admin/reload", method="POST").status == 409
    workers.managed.configuration.reload = lambda: "configuration 2 is in force"
    reloaded = workers.json("/admin/reload", method="POST")
    assert reloaded == {"result": "configuration 2 is in force"}

    def reject() -> str:
        raise ConfigError(["keys: expected a list"])

    workers.managed.configuration.reload = reject
    assert workers.ask("/admin/reload", method="POST").status == 422


# --- the description of the API ----------------------------------------------------------------


def test_what_is_read_is_as_described() -> None:
    workers = Workers()
    first, second = workers.workers
    second.admin.world.completed([user("x")], turn_events([text_item()], "resp_2"))
    second.admin.world.accounts["a"].health.disable()
    first.hang()
    check("Overview", workers.json("/status", wait=2.1), exactly=False)
    check("Why", workers.json("/status/conversations/resp_2/why", wait=2.1))
    chosen = workers.ask("/admin/route-dry-run", method="POST", wait=2.1)
    check("Explanation", chosen.json)
    first.die()
    workers.restart(first)
    shown = workers.json("/status")
    current = {name: value for name, value in shown.items() if name != "history"}
    check("Current", {**current, "turns_omitted": 0})
    for account in shown["accounts"]:
        check("Account", account)
    for worker in shown["workers"]:
        check("Worker", worker)
    for turn_shown in workers.json("/status/turns")["turns"]:
        check("Turn", turn_shown)


# --- metrics ---------------------------------------------------------------------------------


def test_metrics_are_one_exposition() -> None:
    workers = Workers()
    first, second = workers.workers
    ended(first, 2)
    ended(second, 3)
    workers.json("/status")
    scraped = scrape(workers)
    assert scraped.sum("gateway_turns_total", status="completed") == 5
    assert scraped.sum("gateway_turn_duration_seconds_count") == 5
    assert scraped.sum("gateway_ready") == 1
    assert scraped.sum("gateway_account_state", account="a") == 1
    assert scraped.sum("gateway_worker_up") == 2
    assert scraped.sum("gateway_worker_up", worker="2") == 1
    assert scraped.sum("gateway_worker_resident_memory_bytes", worker="1") > 0
    assert scraped.sum("process_open_fds", worker="1") > 0


def test_no_counter_goes_back_when_a_worker_is_restarted() -> None:
    workers = Workers()
    first, second = workers.workers
    ended(first, 2)
    ended(second, 3)
    before = scrape(workers)
    workers.json("/status")
    second.die()
    between = scrape(workers)
    workers.restart(second)
    ended(second, 1)
    after = scrape(workers)
    for name, labels, value in before.rising():
        for later in (between, after):
            assert later.sum(name, **labels) >= value, f"{name} {labels} went back"
    assert after.sum("gateway_turns_total", status="completed") == 6
    assert after.sum("gateway_worker_restarts_total", worker="2") == 1
    assert between.sum("gateway_worker_up", worker="2") == 0
    assert workers.json("/status")["turns"] == {"completed": 6}


def test_the_state_that_the_supervisor_keeps_is_its_own() -> None:
    workers = Workers()
    writes = WriteFigures(0, 0, 9, 3, 0, 1, 0.5, None, None, None)
    kept = StateFigures("/var/lib/gateway", writes, 10_000, 0)
    workers.managed._kept = lambda: kept
    workers.managed._own_families = lambda: families(state_metrics(kept))
    assert workers.json("/status")["store"]["where"] == "/var/lib/gateway"
    assert scrape(workers).by("gateway_state_file_bytes") == {(): 10_000}
    kept = kept._replace(unreadable=2)
    alarms = workers.json("/status")["alarms"]
    assert ["another key" in alarm["what"] for alarm in alarms] == [True]


# --- live events -------------------------------------------------------------------------------


def events(received: bytes) -> list[tuple[str, Any]]:
    found, name = [], ""
    for line in received.decode().replace("\r\n", "\n").split("\n"):
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            found.append((name, json.loads(line[6:])))
    return found


def test_live_events_are_of_all_workers() -> None:
    workers = Workers()
    client = workers.listen()
    for worker in workers.workers:
        ended(worker)
    workers.pump()
    found = events(client.received)
    assert [name for name, _ in found] == ["status", "turn", "turn"]
    assert [value["worker"] for name, value in found if name == "turn"] == ["1", "2"]
    workers.advance(1)
    assert events(client.received)[-1][1]["turns"] == {"completed": 2}
    assert len(events(client.received)[-1][1]["workers"]) == 2
    client.leaves()
    workers.advance(5)
    assert workers.reactor.getDelayedCalls() == [], "a timer runs for nobody"


def test_live_events_wait_for_a_slow_worker_and_ask_only_once() -> None:
    workers = Workers()
    workers.workers[1].hang()
    client = workers.listen()
    assert events(client.received) == []
    workers.advance(1)
    assert workers.workers[1].link.calls_waiting == 1
    workers.advance(1.1)
    assert {name for name, _ in events(client.received)} == {"status"}
    client.leaves()


def test_turns_are_told_only_while_somebody_follows_them() -> None:
    workers = Workers()
    told: list[Any] = []
    workers.managed.watch_turns(told.append)
    ended(workers.workers[0])
    assert told == []
    workers.managed.follow_turns(3.0)
    workers.pump()
    ended(workers.workers[0], 30)
    workers.pump()
    assert len(told) == 20, "a busy worker fills the link"
    workers.workers[0].admin.clock.advance(4)
    ended(workers.workers[0])
    workers.pump()
    assert len(told) == 20


def test_the_history_is_of_all_workers() -> None:
    workers = Workers()
    workers.managed.startService()
    for worker in workers.workers:
        ended(worker)
        worker.admin.collector.step()
    workers.advance(5)
    shown = workers.json("/status")
    assert shown["history"]["series"]["turns_per_minute"] == [24.0]
    assert shown["newest"]["values"]["turns_per_minute"] == 24.0
    workers.managed.stopService()
    assert workers.reactor.getDelayedCalls() == []
