"""Which turns are recorded, until when, and what happens when the disk does not take it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher

from gateway.config import ContentLogSettings, KeySettings
from gateway.request_log import writer
from gateway.request_log.request_log import MAX_ASKED, RequestLog, TurnRecording, default_directory
from tests.turn.fakes import at_once

TURNS = [("laptop", "gpt-5"), ("desk", "gpt-5"), ("laptop", "o3")]


def settings(place: Path, **more: Any) -> ContentLogSettings:
    return ContentLogSettings(directory=str(place / "requests"), **more)


def log(place: Path, **more: Any) -> RequestLog:
    made = RequestLog(Clock(), at_once)
    made.configure(settings(place, **more))
    return made


def begin(
    of: RequestLog,
    account: str | None = "a",
    tenant: str = "laptop",
    model: str | None = "gpt-5",
    conversation: str | None = "conv",
) -> TurnRecording | None:
    asking = of.asking(tenant, model, conversation)
    if not asking:
        return None
    recording = of.recording(asking, f"c.{of.turns + 1}", tenant, 1_764_561_696.0 + of.turns)
    recording.request({"model": model}, b'{"input":"hi"}')
    if account is not None:
        recording.wants(account)
    return recording


def recorded(of: RequestLog, **about: Any) -> bool:
    recording = begin(of, **about)
    return recording is not None and recording.is_written


def lines(of: RequestLog, recording: TurnRecording | None) -> list[Any]:
    assert recording is not None
    text = (Path(of.directory) / recording.name).read_text()
    return [json.loads(line) for line in text.splitlines()]


# --- rules -------------------------------------------------------------------------------


def test_without_a_configuration_there_are_no_rules() -> None:
    assert RequestLog(Clock(), at_once).rules == ()


def test_a_configuration_asks_by_key_model_and_account(tmp_path: Path) -> None:
    of = log(tmp_path, keys=("lap*",), models=("gpt-*",), accounts=("a", "b*"))
    assert recorded(of)
    assert recorded(of, account="b2")
    assert not recorded(of, account="c")
    assert not recorded(of, tenant="desk")
    assert not recorded(of, model="o3")
    assert not recorded(of, model=None)


def test_everything_is_asked_for_by_default_also_turns_without_model_or_account(
    tmp_path: Path,
) -> None:
    assert recorded(log(tmp_path), model=None, account=None)


def test_an_empty_list_of_keys_leaves_the_choice_to_the_page(tmp_path: Path) -> None:
    of = log(tmp_path, keys=())
    assert of.rules == ()
    of.record("key", "laptop", 600)
    assert recorded(of)


@pytest.mark.parametrize(
    ("what", "name", "other"),
    [
        ("key", "laptop", {"tenant": "desk"}),
        ("account", "a", {"account": "b"}),
        ("conversation", "conv", {"conversation": "another"}),
    ],
)
def test_an_operator_asks_for_one_thing(
    tmp_path: Path, what: str, name: str, other: dict[str, str]
) -> None:
    of = log(tmp_path, keys=())
    of.record(what, name, 600)
    assert recorded(of)
    assert not recorded(of, **other)
    assert of.rules[0].turns == of.turns == 1


def test_what_an_operator_asked_for_ends_by_itself(tmp_path: Path) -> None:
    clock = Clock()
    of = RequestLog(clock, at_once)
    of.configure(settings(tmp_path, keys=()))
    of.record("key", "laptop", 600)
    recording = begin(of)
    clock.advance(599)
    assert of.rules
    clock.advance(1)
    assert of.rules == (), "turns pay for it after its end"
    assert recording is not None
    recording.note("to_client", {}, b"{}")
    recording.note("to_client", {}, b"{}")
    assert [line["kind"] for line in lines(of, recording)] == ["request", "end"]
    assert not clock.getDelayedCalls()


def test_asking_again_prolongs_and_stopping_stops(tmp_path: Path) -> None:
    clock = Clock()
    of = RequestLog(clock, at_once)
    of.configure(settings(tmp_path, keys=()))
    of.record("key", "laptop", 600)
    of.record("key", "laptop", 60)
    assert [rule.until for rule in of.rules] == [60.0]
    assert of.stop("key", "laptop")
    assert not of.stop("key", "laptop")
    assert of.rules == ()
    assert not clock.getDelayedCalls()


def test_operators_cannot_ask_for_ever_more(tmp_path: Path) -> None:
    of = log(tmp_path, keys=())
    assert all(of.record("key", str(number), 60) for number in range(MAX_ASKED))
    assert of.record("key", "one more", 60) is None
    assert of.record("key", "3", 60) is not None, "what is recorded already may be prolonged"


def test_a_reload_replaces_the_configured_rule_and_keeps_the_others(tmp_path: Path) -> None:
    of = log(tmp_path)
    of.record("key", "laptop", 600)
    recording = begin(of, tenant="desk")
    of.configure(None)
    assert [rule.what for rule in of.rules] == ["key"]
    assert recording is not None
    recording.note("to_client", {}, b"{}")
    assert lines_of(tmp_path) == ["request", "end"], "content is written after it was switched off"


def test_a_reload_that_changes_nothing_ends_no_recording(tmp_path: Path) -> None:
    of = log(tmp_path)
    recording = begin(of)
    assert recording is not None
    of.configure(settings(tmp_path))
    recording.note("to_client", {}, b"{}")
    assert [line["kind"] for line in lines(of, recording)] == ["request", "to_client"]


def test_secrets_of_the_configuration_are_hidden_from_the_first_line_on(tmp_path: Path) -> None:
    of = log(tmp_path)
    keys = [KeySettings(name="laptop", key="key-of-laptop"), KeySettings(name="desk", key="k-desk")]
    of.configure(settings(tmp_path), keys, ["the-admin-token", None])
    recording = begin(of, tenant="laptop")
    assert recording is not None
    recording.note("to_client", {}, b'{"a": "key-of-laptop or the-admin-token"}')
    assert lines(of, recording)[-1]["body"] == {"a": "<hidden> or <hidden>"}


def lines_of(place: Path) -> list[str]:
    (file,) = (place / "requests").iterdir()
    return [json.loads(line)["kind"] for line in file.read_text().splitlines()]


def test_nothing_is_written_of_a_turn_on_other_accounts(tmp_path: Path) -> None:
    of = log(tmp_path, accounts=("a",))
    recording = begin(of, account=None)
    assert recording is not None
    recording.note("to_client", {}, b"{}")
    assert not (tmp_path / "requests").exists()
    assert not recording.wants("b")
    assert recording.wants("a")
    assert [line["kind"] for line in lines(of, recording)] == ["request"]
    assert recording.wants("b"), "a turn is recorded whole, also when it moves on"


def test_the_default_directory_is_the_service_managers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGS_DIRECTORY", "/var/log/one:/var/log/two")
    assert default_directory() == "/var/log/one/requests"
    monkeypatch.delenv("LOGS_DIRECTORY")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one")
    assert default_directory() == "/var/lib/one/requests"
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/state")
    assert default_directory() == "/home/me/state/responses-gateway/requests"


# --- lines -------------------------------------------------------------------------------


def test_each_body_is_a_line_with_its_time(tmp_path: Path) -> None:
    of = log(tmp_path)
    of._clock.advance(1_764_561_696.0)  # type: ignore[attr-defined]
    recording = begin(of)
    assert recording is not None
    of._clock.advance(0.25)  # type: ignore[attr-defined]
    recording.note("to_client", {"attempt": 1}, b'{"n": 1}', b'{"n": 2}')
    recording.note("keep_alive", {})
    assert lines(of, recording) == [
        {"ms": 0.0, "kind": "request", "model": "gpt-5", "body": {"input": "hi"}},
        {"ms": 250.0, "kind": "to_client", "attempt": 1, "body": {"n": 1}},
        {"ms": 250.0, "kind": "to_client", "attempt": 1, "body": {"n": 2}},
        {"ms": 250.0, "kind": "keep_alive"},
    ]
    assert of.bytes == (tmp_path / "requests" / recording.name).stat().st_size


def test_a_file_that_is_full_keeps_its_first_lines_and_its_end(tmp_path: Path) -> None:
    of = log(tmp_path, max_bytes=2**20)
    recording = begin(of)
    assert recording is not None
    recording.note("from_account", {}, json.dumps("x" * 200_000).encode())
    for _ in range(100):
        recording.note("to_client", {}, json.dumps("y" * 3000).encode())
    recording.note("end", {"status": "completed"}, b"{}")
    found = lines(of, recording)
    assert (tmp_path / "requests" / recording.name).stat().st_size <= 2**20 // 8
    assert found[1]["cut_bytes"] == 200_002, "a body that does not fit is counted"
    assert found[2]["body"] == "y" * 3000
    assert found[-1]["kind"] == "end"
    assert found[-1]["dropped"] > 0


def test_a_body_that_is_too_long_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_BODY_BYTES", 10)
    of = log(tmp_path)
    recording = begin(of)
    assert lines(of, recording)[0]["cut_bytes"] == 14


def test_a_file_that_somebody_removed_is_not_written_again(tmp_path: Path) -> None:
    of = log(tmp_path)
    recording = begin(of)
    assert recording is not None
    (tmp_path / "requests" / recording.name).unlink()
    recording.note("to_client", {}, b"{}")
    recording.note("end", {}, b"{}")
    assert not list((tmp_path / "requests").iterdir())
    assert of.failed is None


# --- a disk that does not take it ----------------------------------------------------------


def logged(act: Callable[[], object]) -> list[LogEvent]:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        act()
    finally:
        globalLogPublisher.removeObserver(events.append)
    return [each for each in events if each.get("log_namespace") == "gateway.request_log"]


def test_a_directory_that_cannot_be_written_is_one_line_and_logging_stops(tmp_path: Path) -> None:
    of = log(tmp_path)
    (tmp_path / "requests").mkdir(mode=0o755)
    (tmp_path / "requests").chmod(0o755)
    events = logged(lambda: [begin(of) for _ in range(3)])
    assert len(events) == 1
    assert of.failed == "others may enter it (mode 0755): chmod 0700 it"
    assert of.rules == ()
    assert of.failures == 1


def test_a_reload_or_an_operator_tries_again(tmp_path: Path) -> None:
    of = log(tmp_path)
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests").chmod(0o755)
    begin(of)
    assert of.failed
    shutil.rmtree(tmp_path / "requests")
    of.configure(settings(tmp_path))
    assert of.failed is None
    assert recorded(of)
    (tmp_path / "requests").chmod(0o755)
    of._files._scanned_at = None
    begin(of)
    assert of.failed
    (tmp_path / "requests").chmod(0o700)
    of.record("key", "laptop", 60)
    assert len(of.rules) == 2


def test_a_full_disk_stops_it_and_turns_notice_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = log(tmp_path)
    recording = begin(of)
    assert recording is not None

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.request_log.files.os.write", full)
    events = logged(lambda: [recording.note("to_client", {}, b"{}") for _ in range(3)])
    assert [event["reason"] for event in events] == ["No space left on device"]
    assert (of.failed, of.rules) == ("No space left on device", ())
    assert of.queued_bytes == 0


def test_a_mistake_of_the_gateway_is_no_different(tmp_path: Path) -> None:
    def broken(function: Callable[[], Any]) -> Deferred[Any]:
        return fail(RuntimeError("a bug"))

    of = RequestLog(Clock(), broken)
    of.configure(settings(tmp_path))
    logged(lambda: begin(of))
    assert of.failed is not None


class Slow:
    """A thread that is busy until the test says otherwise."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def __call__(self, function: Callable[[], Any]) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.waiting.append((function, done))
        return done

    def go_on(self) -> None:
        (function, done), *self.waiting = self.waiting
        done.callback(function())


def test_a_slow_disk_loses_lines_not_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_QUEUED_BYTES", 10_000)
    slow = Slow()
    of = RequestLog(Clock(), slow)
    of.configure(settings(tmp_path))
    recording = begin(of)
    assert recording is not None
    events = logged(lambda: [recording.note("to_client", {}, b'"%s"' % (b"x" * 998,))] * 1)
    events += logged(lambda: [recording.note("to_client", {}, b'"x"' * 300) for _ in range(30)])
    assert len(events) == 1, "it is said once"
    assert of.queued_bytes <= 10_000
    recording.note("end", {"status": "completed"}, b"{}")
    while slow.waiting:
        slow.go_on()
    assert lines(of, recording)[-1]["dropped"] > 10
    assert (of.queued_bytes, of.failed) == (0, None)


def test_closing_waits_for_the_last_lines_but_not_for_ever(tmp_path: Path) -> None:
    clock, slow = Clock(), Slow()
    of = RequestLog(clock, slow)
    of.configure(settings(tmp_path))
    recording = begin(of)
    closed: list[object] = []
    of.close().addBoth(closed.append)
    assert (closed, of.rules) == ([], ())
    slow.go_on()
    assert closed == [None]
    assert [line["kind"] for line in lines(of, recording)] == ["request"]
    of.configure(settings(tmp_path))
    begin(of)
    of.close().addBoth(closed.append)
    clock.advance(10)
    assert len(closed) == 2
    slow.go_on()
