"""One admin side for two real workers: page, numbers, actions; and what a killed worker leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.browser import Visit
from tests.support.gateway import Gateway, account
from tests.support.httpclient import HttpClient
from tests.support.ports import free_port
from tests.support.scrape import Scrape, read
from tests.support.upstream import Upstream

pytestmark = pytest.mark.e2e

TOKEN = "operators-token"

#: Generous: a loaded machine takes its time to start interpreters.
SECONDS = 90.0

#: Enough for both workers to have some, as the kernel spreads connections.
TURNS = 40


def waited(what: str, found: Callable[[], Any]) -> Any:
    """The first true result."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.1)
    raise AssertionError(f"waited {SECONDS:g} s for {what}")


class Operated:
    """A gateway of two workers with its operator."""

    def __init__(self, folder: Path, upstream: Upstream) -> None:
        self.admin_port = free_port()
        self.gateway = Gateway(
            folder,
            {
                "accounts": [account("a", upstream), account("b", upstream)],
                "workers": 2,
                "admin": {"listen": f"tcp:{self.admin_port}:interface=127.0.0.1", "token": TOKEN},
            },
        )
        waited("both workers", lambda: self.states() == ["ready", "ready"])

    def ask(self, path: str, method: str = "GET", accept: str = "application/json") -> bytes:
        headers = {"authorization": f"Bearer {TOKEN}", "accept": accept}
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        request = urllib.request.Request(url, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            body: bytes = answer.read()
            return body

    def json(self, path: str, method: str = "GET") -> Any:
        return json.loads(self.ask(path, method))

    def ready(self) -> int:
        try:
            self.ask("/readyz")
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def workers(self) -> list[Any]:
        try:
            listed: list[Any] = self.json("/status")["workers"]
        except OSError:  # it does not listen yet
            return []
        return listed

    def states(self) -> list[str]:
        return [worker["state"] for worker in self.workers()]

    def scrape(self) -> Scrape:
        return read(self.ask("/metrics", accept="text/plain").decode())

    def turns(self, count: int) -> None:
        """Each on a connection of its own."""
        for _ in range(count):
            client = HttpClient(self.gateway.port)
            answer = client.create()
            client.drop()
            assert answer.status == 200, answer.body


@pytest.fixture
def operated(tmp_path: Path) -> Iterator[Operated]:
    upstream = Upstream()
    started = Operated(tmp_path, upstream)
    try:
        yield started
    finally:
        started.gateway.stop()
        upstream.stop()


def test_the_numbers_of_all_survive_the_death_of_a_worker(operated: Operated) -> None:
    operated.turns(TURNS)
    before = operated.scrape()
    assert before.sum("gateway_turns_total", status="completed") == TURNS
    assert before.sum("gateway_turn_duration_seconds_count") == TURNS
    shown = operated.json("/status")
    assert shown["turns"] == {"completed": TURNS}
    assert len(shown["workers"]) == 2
    turns = operated.json("/status/turns")["turns"]
    assert {turn["worker"] for turn in turns} == {"1", "2"}, "one worker had all turns"

    victim = shown["workers"][1]
    os.kill(victim["pid"], signal.SIGKILL)
    while operated.states() != ["ready", "ready"] or operated.workers()[1]["restarts"] < 1:
        assert operated.ready() == 200, "one worker is enough to be ready"
        now = operated.scrape()
        for name, labels, value in before.rising():
            if name.startswith("process_"):
                continue
            assert now.sum(name, **labels) >= value, f"{name} {labels} went back"
        time.sleep(0.2)
    operated.turns(5)
    after = operated.scrape()
    assert after.sum("gateway_turns_total", status="completed") == TURNS + 5
    assert after.sum("gateway_worker_restarts_total") == 1
    assert operated.json("/status")["turns"] == {"completed": TURNS + 5}


def test_actions_reach_both_workers(operated: Operated) -> None:
    paused = operated.json("/admin/accounts/a/pause", "POST")
    assert paused["state"] == "disabled"
    operated.turns(20)
    accounts = {each["name"]: each for each in operated.json("/status")["accounts"]}
    assert accounts["a"]["turns"] == 0, "a worker used a paused account"
    assert "workers" not in accounts["a"], "workers see the account in different states"
    assert accounts["b"]["turns"] == 20
    assert "result" in operated.json("/admin/reload", "POST")
    operated.json("/admin/drain", "POST")
    assert operated.ready() == 503
    assert operated.json("/status")["state"] == "draining"
    operated.json("/admin/resume", "POST")
    assert operated.ready() == 200
    operated.turns(2)


def test_promtool_likes_the_metrics_of_all(operated: Operated) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    operated.turns(4)
    text = operated.ask("/metrics", accept="text/plain")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def shown_of_first(visit: Visit, column: str) -> str:
    """What the table of workers says of worker 1."""
    table = visit.page.locator("table.workers")
    place = [each.strip() for each in table.locator("thead th").all_inner_texts()].index(column)
    return table.locator('tr[data-key="1"] > *').nth(place).inner_text().strip()


def test_the_page_shows_both_workers_and_goes_on_when_one_dies(
    operated: Operated, browser: Any
) -> None:
    visit = Visit(browser, f"http://127.0.0.1:{operated.admin_port}")
    visit.sign_in(TOKEN)
    rows = visit.page.locator("table.workers tbody tr")
    assert rows.count() == 2
    operated.turns(3)
    visit.wait_until(
        lambda: visit.page.locator("table.turns tbody tr").count() == 3,
        "the turns of both workers are there",
    )
    restarts = int(shown_of_first(visit, "Restarts"))
    killed = operated.workers()[0]["pid"]
    os.kill(killed, signal.SIGKILL)
    # Its successor may be ready before the page has told that it was gone.
    visit.wait_until(
        lambda: shown_of_first(visit, "Process") != str(killed),
        "the page tells that a worker has ended",
    )
    waited("both workers", lambda: operated.states() == ["ready", "ready"])
    visit.wait_until(
        lambda: visit.page.locator('table.workers tr[data-state="ready"]').count() == 2,
        "the page tells that both workers are ready again",
    )
    assert int(shown_of_first(visit, "Restarts")) > restarts, "the page tells of no restart"
    visit.finish()
