"""`/metrics`: what it holds, who may read it, and that dashboard, rules and words know it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics

from gateway.admin import worker_list
from gateway.admin.api import Api
from gateway.admin.managed_gateway import ManagedProcess
from gateway.admin.metric_families import exposition
from gateway.admin.prometheus import Metrics
from gateway.admin.site import AdminSite
from gateway.config import ContentLogSettings, KeySettings, RoutingSettings
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.protocol.rate_limits import QuotaWindow
from gateway.upstream.proxy import UnavailableProxy
from tests.admin.stage import BEARER, KEPT, SOCKETS, TOKEN, WRITES, Admin, Way
from tests.metrics.test_turns import attempt, turn
from tests.support.scrape import Scrape, read

CONFIG = Path(__file__).resolve().parents[2] / "config"
OPENMETRICS = "accept: application/openmetrics-text; version=1.0.0"


class Measured(Admin):
    """An admin side with ``/metrics``, after a few turns."""

    def __init__(self, token: str | None = None) -> None:
        super().__init__(token)
        managed = ManagedProcess(self.running, Metrics(self.running).render)
        self.api = Api(managed, self.access)
        self.site = AdminSite(self.api, self.reactor)
        self.site.startFactory()
        self.accounts = self.world.services.pool.accounts
        name = self.accounts[0].name
        for record in (
            turn(attempt(name), account=name),
            turn(attempt(name, "rate_limit_exceeded"), account=name, status="error"),
        ):
            self.world.services.turn_log.ended(record)
        self.collector.memory_budget = 1 << 34

    def scrape(self, *headers: str) -> Scrape:
        answer = self.ask("/metrics", *headers)
        assert answer.status == 200, answer.body
        return read(answer.body.decode(), answer.headers["content-type"])


@pytest.fixture
def admin() -> Measured:
    return Measured()


def test_counts_and_gauges_are_there(admin: Measured) -> None:
    scraped = admin.scrape()
    assert scraped.content_type.startswith("text/plain; version=0.0.4")
    assert scraped.sum("gateway_turns_total", key="laptop", status="completed") == 1
    assert scraped.sum("gateway_input_tokens_total", model="gpt-5.5") == 2000
    name = admin.accounts[0].name
    assert scraped.sum("gateway_account_errors_total", account=name) == 1
    assert scraped.sum("gateway_turn_duration_seconds_sum") == 6.0
    assert scraped.sum("gateway_turn_duration_seconds_bucket", le="2.5") == 0
    assert scraped.sum("gateway_turn_duration_seconds_bucket", le="5.0") == 2
    assert scraped.sum("gateway_ready") == 1
    assert scraped.sum("gateway_register_size", register="journal") == 2


def test_websockets_to_accounts_are_counted(admin: Measured) -> None:
    assert "gateway_upstream_websockets" not in admin.scrape().names
    admin.world.upstreams["b"].figures = SOCKETS
    scraped = admin.scrape()
    states = scraped.by("gateway_upstream_websockets", "account", "state")
    assert states == {("b", "in_use"): 2.0, ("b", "idle"): 3.0, ("b", "opening"): 1.0}
    assert scraped.by("gateway_upstream_websockets_opened_total", "account") == {("b",): 20.0}
    lost = scraped.by("gateway_upstream_websockets_lost_total", "reason")
    assert lost == {("age",): 10.0, ("closed 1006",): 4.0}
    said = promtool("check", "metrics", text=scraped.text)
    assert said == "", f"promtool: {said}"


def test_turns_are_counted_by_their_transport(admin: Measured) -> None:
    for fields in ({"upstream_bytes": 300}, {"upstream_bytes": 900, "cached_tokens": 0}):
        admin.world.services.turn_log.ended(turn(transport="websocket", **fields))
    scraped = admin.scrape()
    found = {
        name: scraped.sum(f"gateway_transport_{name}", transport="websocket", route="chained")
        for name in (
            *("turns_total", "upstream_bytes_total"),
            *("input_tokens_total", "cached_input_tokens_total"),
        )
    }
    assert list(found.values()) == [2, 1200, 2000, 800]
    assert scraped.sum("gateway_transport_turns_total", transport="http") == 0


def test_request_logs_are_counted(admin: Measured, tmp_path: Path) -> None:
    assert admin.scrape().sum("gateway_request_log_rules") == 0
    log = admin.world.services.request_log
    log.configure(ContentLogSettings(directory=str(tmp_path / "requests")))
    log.recording(log.asking("laptop", None, None), "c.1", "laptop", 0.0).request({}, b"{}")
    scraped = admin.scrape()
    assert scraped.sum("gateway_request_log_rules") == 1
    assert scraped.sum("gateway_request_log_turns_total") == 1
    assert scraped.sum("gateway_request_log_bytes_total") == log.bytes > 0
    assert scraped.sum("gateway_request_log_failures_total") == 0


def test_what_is_kept_is_measured(admin: Measured) -> None:
    scraped = admin.scrape()
    assert scraped.sum("gateway_state_reachable") == 1
    assert scraped.sum("gateway_state_pending_rows") == 3
    assert scraped.sum("gateway_state_written_rows_total") == 40
    assert scraped.sum("gateway_state_file_bytes") == 8192
    assert scraped.sum("gateway_state_flush_seconds_sum") == 0.25
    assert scraped.sum("gateway_register_size", register="unwritten state") == 900
    admin.kept = KEPT._replace(writes=WRITES._replace(why="disk full", since=7.0), unreadable=2)
    scraped = admin.scrape()
    assert scraped.sum("gateway_state_reachable") == 0
    assert scraped.sum("gateway_state_unreadable_values_total") == 2
    admin.kept = None
    assert "gateway_state_" not in admin.scrape().text


def test_each_account_is_in_one_state(admin: Measured) -> None:
    first, second = admin.accounts
    resting = Fault(FaultKind.EXHAUSTED, "used up", admin.clock.seconds() + 300)
    first.health.refused("gpt-5.5", resting)
    first.health.observe([QuotaWindow("codex primary", 25.0, None, None, 1_900_000_000.0)])
    second.health.disable()
    scraped = admin.scrape()
    states = {
        (account.name, state): scraped.sum(
            "gateway_account_state", account=account.name, state=state
        )
        for account in admin.accounts
        for state in ("ready", "exhausted", "disabled")
    }
    assert [where for where, value in states.items() if value] == [
        (first.name, "exhausted"),
        (second.name, "disabled"),
    ]
    until = "gateway_account_rests_until_timestamp_seconds"
    assert scraped.sum(until, account=first.name) > admin.clock.seconds()
    assert (until, frozenset({("account", second.name)})) not in scraped.samples, "for ever"
    used = scraped.sum("gateway_account_quota_used_ratio", window="codex primary")
    assert used == pytest.approx(0.25)
    assert scraped.sum("gateway_ready") == 0


def test_the_used_share_of_a_quota_is_known_either_way(admin: Measured) -> None:
    health = admin.accounts[0].health
    health.observe(
        [QuotaWindow("requests", None, 100.0, 400.0), QuotaWindow("odd", None, 0.0, 0.0)]
    )
    scraped = admin.scrape()
    used = scraped.sum("gateway_account_quota_used_ratio", window="requests")
    assert used == pytest.approx(0.75)
    assert scraped.sum("gateway_account_quota_used_ratio", window="odd") == 0, "there is none"


def test_a_broken_proxy_and_a_resting_model_are_to_be_seen(admin: Measured) -> None:
    first, second = admin.accounts
    first._egress = Way(UnavailableProxy("no way out", admin.clock.seconds() + 30))
    second.health.refused("gpt-5.5", Fault(FaultKind.RATE_LIMITED, "429", None))
    scraped = admin.scrape()
    assert scraped.sum("gateway_account_state", account=first.name, state="cooling") == 1
    assert scraped.sum("gateway_account_state", account=second.name, state="ready") == 1
    assert scraped.sum("gateway_account_models_at_rest", account=second.name) == 1
    assert scraped.sum("gateway_alarms", level="amber") == 2, "the proxy, and the model"


def test_counts_of_turns_outlive_the_account_and_the_key(admin: Measured) -> None:
    before = admin.scrape()
    pool = admin.world.services.pool
    pool.reconfigure(admin.accounts[1:], RoutingSettings())
    admin.tenants.reconfigure([KeySettings(name="desk", key="sk-gw-2")])
    after = admin.scrape()
    for sample, value in before.samples.items():
        if sample[0].endswith(("_total", "_count", "_sum", "_bucket")):
            assert after.samples.get(sample, -1.0) >= value, f"{sample} went backwards"


def test_who_asks_for_openmetrics_gets_it(admin: Measured) -> None:
    answer = admin.ask("/metrics", OPENMETRICS)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name: family.type for family in read_openmetrics(answer.body.decode())}
    assert families["gateway_turns"] == "counter"
    assert families["gateway_turn_duration_seconds"] == "histogram"
    assert families["gateway_build"] == "info"


@pytest.mark.parametrize("accept", ["", "*/*", "text/html", "\xff;;q=,,", "a/b," * 2000])
def test_whoever_asks_for_something_odd_gets_text(admin: Measured, accept: str) -> None:
    assert admin.scrape(f"accept: {accept}").content_type.startswith("text/plain")


def test_it_takes_what_reading_the_status_takes() -> None:
    admin = Measured(TOKEN)
    anonymous = [admin.ask(path, address="192.0.2.7").status for path in ("/metrics", "/status")]
    assert anonymous[0] == anonymous[1]
    assert admin.ask("/metrics", BEARER).status == 200
    assert admin.ask("/metrics", BEARER, method="POST").status in (403, 405)
    assert admin.ask("/metrics", "authorization: Bearer wrong").status == 401


def test_names_from_outside_cannot_break_the_text(admin: Measured) -> None:
    odd = 'mod"el\n# HELP \\ evil\u2028'
    admin.world.services.turn_log.ended(turn(model=odd, error_code=odd, status="completed"))
    assert admin.scrape().sum("gateway_turns_total", model=odd) == 1


def test_promtool_finds_nothing_wrong(admin: Measured) -> None:
    said = promtool("check", "metrics", text=admin.scrape().text)
    assert said == "", f"promtool: {said}"


def test_promtool_reads_the_example_of_a_configuration() -> None:
    assert "11 rules found" in promtool("check", "config", str(CONFIG / "prometheus.yml"))


def test_every_expression_of_the_dashboard_names_what_there_is(admin: Measured) -> None:
    dashboard = json.loads((CONFIG / "grafana-dashboard.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    assert len(expressions) > 40
    variables = [str(each.get("definition", "")) for each in dashboard["templating"]["list"]]
    there = exposed(admin)
    for expression in (*expressions, *variables):
        for name in metrics_in(expression):
            assert name in there, f"the dashboard asks for {name} in {expression}"


def test_panels_do_not_lie_on_each_other() -> None:
    dashboard = json.loads((CONFIG / "grafana-dashboard.json").read_text())
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                other = taken.setdefault((x, y), panel["title"])
                assert other == panel["title"], f"{panel['title']} lies on {other}"


def test_every_rule_names_what_there_is(admin: Measured) -> None:
    there = exposed(admin)
    rules = yaml.safe_load((CONFIG / "prometheus-alerts.yml").read_text())["groups"][0]["rules"]
    for rule in rules:
        assert set(metrics_in(rule["expr"])) <= there, rule["alert"]


def test_every_metric_is_described_and_nothing_else(admin: Measured) -> None:
    words = (CONFIG / "metrics.md").read_text()
    described = set(re.findall(r"`((?:gateway|process|gen_ai)_\w+)`", words))
    described -= {"gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"}
    described -= {"gen_ai_token_type"}
    text = admin.scrape().text
    text += exposition(worker_list.families([], []), "")[1].decode()
    families = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    assert described == families


def exposed(admin: Measured) -> set[str]:
    """Names of all samples there can be; families without samples now among them."""
    text = admin.scrape().text
    families = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    ends = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    return {name + end for name, kind in families.items() for end in ends.get(kind, ("",))}


def metrics_in(expression: str) -> Iterator[str]:
    """The metrics that a query names; labels in braces or after ``by`` are none."""
    bare = re.sub(r"\{[^}]*\}|by \([^)]*\)", " ", expression)
    yield from re.findall(r"\b(?:gateway|process|gen_ai)_\w+", bare)


def promtool(*arguments: str, text: str = "") -> str:
    """What it says; the test is skipped without it, as `tests/e2e/test_metrics.py` needs it."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done: Any = subprocess.run(
        [found, *arguments], input=text.encode(), capture_output=True, timeout=60
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return str(said)
