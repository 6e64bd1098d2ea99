"""Which changes of a configuration wait for a restart."""

from __future__ import annotations

import pytest

from gateway.config import Settings, changed, load_settings, needs_restart

BASE = """
admin: {token: t}
keys: [{name: a, key: k}]
accounts: [{name: a, preset: ollama}]
"""


def load(more: str = "", base: str = BASE) -> Settings:
    return load_settings(base + more, {}, "f")


@pytest.mark.parametrize(
    ("more", "paths"),
    [
        ("listen: 'tcp:1:interface=127.0.0.1'", ["listen"]),
        (
            "session: {compression: true, hold_seconds: 1}",
            ["session.hold_seconds", "session.compression"],
        ),
        ("session: {max_message_bytes: 2048}", ["session.max_message_bytes"]),
        ("timeouts: {handshake_seconds: 1, idle_seconds: 1}", ["timeouts.handshake_seconds"]),
        (
            "ledger: {max_bytes: 2048, ttl_minutes: 1}",
            ["ledger.max_bytes", "ledger.ttl_minutes"],
        ),
        ("log: {format: json, level: debug}", ["log.format"]),
        ("limits: {max_connections: 1, max_queued_turns: 1}", []),
        ("routing: {strategy: weighted, return: stay, queue_seconds: 0}", []),
        ("session: {websocket: false, chaining: always, max_age_minutes: 1}", []),
        ("", []),
    ],
)
def test_only_what_is_built_once_waits_for_a_restart(more: str, paths: list[str]) -> None:
    assert needs_restart(load(), load(more)) == paths


def test_keys_accounts_and_the_token_change_while_running() -> None:
    new = load(
        base="""
admin: {token: u}
keys: [{name: b, key: l}]
accounts: [{name: a, preset: ollama, weight: 2}, {name: b, preset: vllm}]
"""
    )
    assert needs_restart(load(), new) == []
    assert list(changed(load(), new)) == ["admin.token", "keys", "accounts"]


def test_the_admin_side_stays_where_it_is() -> None:
    old, new = load(base="simulator: {}\nadmin: {listen: null}"), load(base="simulator: {}")
    assert needs_restart(old, new) == ["admin.listen"]


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("simulator: {accounts: 2}", "simulator: {accounts: 3}", "simulator.accounts"),
        ("simulator: {}", BASE, "simulator"),
        (BASE, "simulator: {}", "simulator"),
    ],
)
def test_the_simulator_is_started_once(old: str, new: str, path: str) -> None:
    assert path in needs_restart(load(base=old), load(base=new))


def test_a_setting_is_named_as_in_the_file() -> None:
    assert list(changed(load(), load("routing: {return: stay}"))) == ["routing.return"]
