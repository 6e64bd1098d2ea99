"""A configuration read anew: what it changes at once, what waits, and what is refused."""

from __future__ import annotations

import pytest

from gateway.config import ConfigError, Settings, load_settings
from gateway.reload import ConfigReloader

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
