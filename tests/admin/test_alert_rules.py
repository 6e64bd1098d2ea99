"""The alert rules, played through by promtool: when they tell, and when they keep quiet."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path(__file__).resolve().parents[2] / "config" / "prometheus-alerts.yml"
ONE = 'instance="gateway:8081",job="responses-gateway"'
OTHER = 'instance="other:9100",job="node"'

#: What a gateway that does nothing exposes.
CALM = {
    f"up{{{ONE}}}": "1x60",
    f"gateway_ready{{{ONE}}}": "1x60",
    f"gateway_build_info{{{ONE}}}": "1x60",
    f'gateway_alarms{{{ONE},level="red"}}': "0x60",
    f'gateway_turns_total{{{ONE},status="completed"}}': "0+60x60",
    f'gateway_turns_total{{{ONE},status="error"}}': "0+1x60",
    f"process_open_fds{{{ONE}}}": "100x60",
    f"process_max_fds{{{ONE}}}": "1000x60",
    f"process_open_fds{{{OTHER}}}": "990x60",
    f"process_max_fds{{{OTHER}}}": "1000x60",
    f"gateway_config_last_reload_successful{{{ONE}}}": "1x60",
}


def told(tmp_path: Path, at: str, **series: str) -> set[str]:
    """The alerts that fire at a moment of a calm gateway with these series besides."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    rules: Any = yaml.safe_load(RULES.read_text())
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    play = {
        "interval": "30s",
        "input_series": [
            {"series": name, "values": values} for name, values in {**CALM, **series}.items()
        ],
        # Nothing is expected of any; promtool names those that fire all the same.
        "alert_rule_test": [
            {"eval_time": at, "alertname": name, "exp_alerts": []} for name in names
        ],
    }
    written = {"rule_files": [str(RULES)], "evaluation_interval": "30s", "tests": [play]}
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(written))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, timeout=60)
    said = (done.stdout + done.stderr).decode()
    fired = set(re.findall(r"alertname: ?(\w+), time", said))
    assert bool(fired) == bool(done.returncode), said
    return fired


def test_a_calm_gateway_tells_nothing(tmp_path: Path) -> None:
    assert told(tmp_path, "20m") == set()


@pytest.mark.parametrize(
    ("alert", "series"),
    [
        ("GatewayDown", {f"up{{{ONE}}}": "1x5 0x55"}),
        ("GatewayNotReady", {f"gateway_ready{{{ONE}}}": "1x5 0x55"}),
        ("GatewayAlarm", {f'gateway_alarms{{{ONE},level="red"}}': "0x5 1x55"}),
        (
            "GatewayAccountUnauthorized",
            {f'gateway_account_state{{{ONE},account="a",state="unauthorized"}}': "0x5 1x55"},
        ),
        (  # it is tried again and again
            "GatewayAccountUnauthorized",
            {
                f'gateway_account_state{{{ONE},account="a",state="unauthorized"}}': "0x5 1x1 0x53",
                f'gateway_account_state{{{ONE},account="a",state="unproven"}}': "0x7 1x53",
            },
        ),
        ("GatewayTurnsFail", {f'gateway_turns_total{{{ONE},status="failed"}}': "0+30x60"}),
        ("GatewayOpenFiles", {f"process_open_fds{{{ONE}}}": "900x60"}),
        (
            "GatewayMemory",
            {
                f"process_resident_memory_bytes{{{ONE}}}": "95x60",
                f"gateway_memory_budget_bytes{{{ONE}}}": "100x60",
            },
        ),
        (
            "GatewayEventLoopLate",
            {
                f'gateway_event_loop_lag_seconds_bucket{{{ONE},le="0.25"}}': "0+100x60",
                f'gateway_event_loop_lag_seconds_bucket{{{ONE},le="1.0"}}': "0+240x60",
                f'gateway_event_loop_lag_seconds_bucket{{{ONE},le="+Inf"}}': "0+240x60",
            },
        ),
        ("GatewayReloadRejected", {f"gateway_config_last_reload_successful{{{ONE}}}": "1x5 0x55"}),
    ],
)
def test_each_rule_tells_of_its_own(tmp_path: Path, alert: str, series: dict[str, str]) -> None:
    assert told(tmp_path, "20m", **series) == {alert}


def test_a_key_at_its_limit_is_no_failure_of_the_gateway(tmp_path: Path) -> None:
    refused = {
        f'gateway_turns_total{{{ONE},status="error"}}': "0+600x60",
        f'gateway_key_refusals_total{{{ONE},key="a",limit="requests_per_minute"}}': "0+598x60",
    }
    assert told(tmp_path, "20m", **refused) == set()


def test_two_turns_that_fail_at_night_wake_nobody(tmp_path: Path) -> None:
    few = {
        f'gateway_turns_total{{{ONE},status="completed"}}': "0x60",
        f'gateway_turns_total{{{ONE},status="error"}}': "0x10 1x6 2x44",
    }
    assert told(tmp_path, "11m", **few) == set()


def test_a_state_that_is_not_kept(tmp_path: Path) -> None:
    reachable = f"gateway_state_reachable{{{ONE}}}"
    assert told(tmp_path, "10m", **{reachable: "1x60"}) == set()
    assert told(tmp_path, "10m", **{reachable: "1x4 0x60"}) == {"GatewayStateNotKept"}
    dropped = f"gateway_state_dropped_rows_total{{{ONE}}}"
    assert told(tmp_path, "10m", **{dropped: "0x10 500x60"}) == {"GatewayStateDropped"}
