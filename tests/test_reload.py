"""A configuration read anew: what it changes at once, what waits, and what is refused."""

from __future__ import annotations

import pytest

from gateway.config import ConfigError, Settings, load_settings
from gateway.reload import ConfigReloader, changed, needs_restart

BASE = "accounts: [{name: a, preset: ollama}]\n"


class Files:
    """A configuration file that the test rewrites, and what was applied of it."""

    def __init__(self) -> None:
        self.text = BASE
        self.applied: list[tuple[Settings, Settings]] = []
        self.reloads = ConfigReloader(
            self.read(), self.read, lambda new, old: self.applied.append((new, old)), lambda: 7.0
        )

    def read(self) -> Settings:
        return load_settings(self.text, {}, "gateway.yaml")


def test_new_settings_come_into_force_with_the_next_number() -> None:
    files = Files()
    before = files.reloads.settings
    files.text = BASE + "routing: {strategy: weighted}"
    line = "configuration 2 is in force, changed: routing.strategy"
    assert files.reloads.reload() == line
    assert files.applied == [(files.reloads.settings, before)]
    assert files.reloads.settings.routing.strategy == "weighted"


def test_what_cannot_be_read_changes_nothing_and_is_remembered() -> None:
    files = Files()
    before = files.reloads.settings
    files.text = BASE + "routing: {strategy: wild}"
    with pytest.raises(ConfigError, match=r"routing\.strategy"):
        files.reloads.reload()
    assert (files.reloads.settings, files.reloads.generation) == (before, 1)
    assert files.applied == []
    rejected = files.reloads.last_rejected
    assert rejected is not None
    assert rejected.at == 7.0
    assert "routing.strategy" in rejected.error
    files.text = BASE
    files.reloads.reload()
    assert files.reloads.last_rejected is None, "a later one was taken"


def test_what_needs_a_restart_is_named() -> None:
    files = Files()
    files.text = BASE + "listen: 'tcp:1:interface=127.0.0.1'\nrouting: {max_attempts: 1}"
    assert files.reloads.reload() == (
        "configuration 2 is in force, changed: listen, routing.max_attempts;"
        " a restart is needed for listen"
    )


def test_a_restart_is_needed_until_the_file_says_what_it_said_at_the_start() -> None:
    files = Files()
    moved = BASE + "listen: 'tcp:1:interface=127.0.0.1'\n"
    files.text = moved
    files.reloads.reload()
    files.text = moved + "routing: {max_attempts: 1}"
    assert files.reloads.reload().endswith("; a restart is needed for listen"), "it still waits"
    files.text = BASE + "routing: {max_attempts: 1}"
    assert files.reloads.reload() == "configuration 4 is in force, changed: listen"


def test_a_file_that_did_not_change_is_told_from_one_that_did() -> None:
    """Whoever edited another file than the one that is read finds out."""
    assert Files().reloads.reload() == "configuration 2 is in force, nothing changed"


# --- which changes wait for a restart ---

RUNNING = """
admin: {token: t}
keys: [{name: a, key: k}]
accounts: [{name: a, preset: ollama}]
"""


def load(more: str = "", base: str = RUNNING) -> Settings:
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
        ("simulator: {}", RUNNING, "simulator"),
        (RUNNING, "simulator: {}", "simulator"),
    ],
)
def test_the_simulator_is_started_once(old: str, new: str, path: str) -> None:
    assert path in needs_restart(load(base=old), load(base=new))


def test_a_setting_is_named_as_in_the_file() -> None:
    assert list(changed(load(), load("routing: {return: stay}"))) == ["routing.return"]
