"""Both forms of the log: one line an event, whole, and without secrets."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure

from gateway import log
from gateway.config import LogSettings
from gateway.log import LogFile, LogThreshold, json_line, log_observer, text_line
from gateway.protocol.errors import ApiError
from gateway.turn.turn_log import TurnLog
from tests.support.events import turn_events, user
from tests.turn.fakes import World


def logged(format: str, level: str = "info", namespace: str = "gateway.test") -> Any:
    """A logger, and the text that its lines end up in."""
    out = io.StringIO()
    publisher = LogPublisher()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log.sys, "stdout", out)
        settings = LogSettings(format=format, level=level)  # type: ignore[arg-type]
        publisher.addObserver(log_observer(settings, None))
    return Logger(namespace, observer=publisher), out


def test_text_has_time_namespace_and_message() -> None:
    logger, out = logged("text")
    logger.info("turn {turn} ended", turn="c-1.1")
    line = out.getvalue()
    assert line.endswith(" [gateway.test] turn c-1.1 ended\n")
    assert line[:2] == "20"


def test_json_is_flat_and_has_the_events_own_fields() -> None:
    logger, out = logged("json")
    logger.warn("turn {turn} ended", turn="c-1.1", sizes=[1, 2])
    line = json.loads(out.getvalue())
    assert line.pop("time")[:2] == "20"
    assert line == {
        "level": "warn",
        "namespace": "gateway.test",
        "message": "turn c-1.1 ended",
        "turn": "c-1.1",
        "sizes": [1, 2],
    }


def test_fields_of_other_libraries_stay_out() -> None:
    logger, out = logged("json", namespace="twisted.web")
    logger.info("request", secret="sk-1", request=object())
    assert set(json.loads(out.getvalue())) == {"time", "level", "namespace", "message"}


@pytest.mark.parametrize("format", ["text", "json"])
def test_that_files_are_short_is_not_said_by_others_for_each_connection(format: str) -> None:
    for namespace in ("Port", "_FileDescriptorReservation"):
        logger, out = logged(format, namespace=f"twisted.internet.tcp.{namespace}")
        logger.info("EMFILE encountered")
        if namespace != "Port":
            logger.failure("could not reserve", Failure(OSError(24, "Too many open files")))
        assert out.getvalue() == ""


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_failure_brings_its_traceback(format: str) -> None:
    logger, out = logged(format)
    try:
        raise ValueError("of a test")
    except ValueError:
        logger.failure("it broke")
    lines = out.getvalue().splitlines()
    if format == "json":
        (line,) = lines
        assert "ValueError: of a test" in json.loads(line)["traceback"]
    else:
        assert lines[0].endswith("it broke")
        assert all(line.startswith("    ") for line in lines[1:])


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_is_below_the_level_is_left_out(format: str) -> None:
    logger, out = logged(format, "warn")
    logger.debug("no")
    logger.info("no")
    logger.error("yes")
    assert out.getvalue().count("\n") == 1


@pytest.mark.parametrize("format", [text_line, json_line])
def test_events_without_a_message_make_no_line(format: Any) -> None:
    assert format({"log_time": 0.0, "log_format": ""}) is None


class Odd:
    """Of a kind that no encoder knows."""


@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda name: not name.startswith("log_")),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.binary()
        | st.builds(Odd)
        | st.just(ApiError.bad_gateway("It broke.")),
    )
)
def test_json_lines_are_json_whatever_the_fields(fields: dict[str, Any]) -> None:
    event = {"log_time": 0.0, "log_namespace": "gateway.x", "log_format": "m", **fields}
    line = json_line(event)
    assert line is not None
    assert line.count("\n") == 1
    assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("evil", ["a\nb", "a\r\nb", "a\x1b[2Jb", "a\u2028b", "a\x85b"])
def test_a_clients_words_cannot_make_a_line_of_their_own(format: str, evil: str) -> None:
    world = World()
    logger, out = logged(format)
    world.turn_log._log = logger
    turn = world.turn([user("hi")], model=evil)
    turn.start()
    turn.cancel()
    lines = out.getvalue().splitlines() if format == "text" else out.getvalue().split("\n")[:-1]
    assert len(lines) == 1, f"expected one line: {lines}"
    assert "\x1b" not in out.getvalue()


def test_a_failed_format_does_not_stop_the_log() -> None:
    logger, out = logged("text")
    logger.info("{missing}")
    logger.info("next")
    assert "next" in out.getvalue()


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_turns_line_has_no_secret_and_no_content(format: str) -> None:
    world = World()
    logger, out = logged(format)
    turn_log = TurnLog(logger)
    world.completed([user("my secret wish")], turn_events([], "resp_1"))
    turn_log.ended(world.turn_log.latest()[0])
    line = out.getvalue()
    assert line.count("\n") == 1
    for expected in ("resp_1", "completed", "laptop", "gpt-5.5", "root"):
        assert expected in line
    for secret in ("sk-a", "wish", "Bearer"):
        assert secret not in line


def test_the_log_can_go_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.log"
    observer = log_observer(LogSettings(), LogFile(str(path)))
    observer({"log_time": 0.0, "log_format": "größer", "log_level": None})
    logger = Logger("gateway.test", observer=observer)
    logger.info("größer")
    assert "größer" in path.read_text(encoding="utf-8")


def test_a_file_that_was_put_aside_is_opened_again(tmp_path: Path) -> None:
    """As logrotate does it: rename, then a signal."""
    path = tmp_path / "gateway.log"
    file = LogFile(str(path))
    logger = Logger("gateway.test", observer=log_observer(LogSettings(), file))
    logger.info("first")
    path.rename(tmp_path / "old")
    logger.info("second")
    file.reopen()
    logger.info("third")
    assert "third" in path.read_text(encoding="utf-8")
    assert "first" in (tmp_path / "old").read_text(encoding="utf-8")
    assert "second" in (tmp_path / "old").read_text(encoding="utf-8")


def test_a_file_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_FILE_BYTES", 100)
    monkeypatch.setattr(log, "_FILES_KEPT", 3)
    path = tmp_path / "gateway.log"
    logger = Logger("gateway.test", observer=log_observer(LogSettings(), LogFile(str(path))))
    for number in range(20):
        logger.info("{number} " + "x" * 100, number=number)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        *("gateway.log", "gateway.log.1", "gateway.log.2", "gateway.log.3")
    ]
    assert "19 x" in path.read_text(encoding="utf-8")


def test_processes_append_to_one_file_and_one_of_them_rotates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_FILE_BYTES", 100)
    path = tmp_path / "gateway.log"
    supervisor, worker = LogFile(str(path)), LogFile(str(path), rotates=False)
    supervisor.write("one\n")
    worker.write("two " + "x" * 100 + "\n")
    worker.write("three\n")
    assert supervisor.rotate_if_large()
    worker.write("four\n")
    worker.reopen()
    worker.write("five\n")
    assert [line[:5] for line in (tmp_path / "gateway.log.1").read_text().splitlines()] == [
        *("one", "two x", "three", "four")
    ]
    assert path.read_text() == "five\n"
    assert not supervisor.rotate_if_large()


def test_a_file_that_cannot_be_put_aside_is_written_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_FILE_BYTES", 1)
    monkeypatch.setattr(log, "_FILES_KEPT", 1)
    path = tmp_path / "gateway.log"
    file = LogFile(str(path))
    file.write("one\n")
    (tmp_path / "gateway.log.1").mkdir()
    (tmp_path / "gateway.log.1" / "in the way").touch()
    file.write("two\n")
    assert path.read_text() == "one\ntwo\n"


def test_lines_of_a_worker_name_it() -> None:
    event: dict[str, object] = {"log_time": 0.0, "log_format": "x", "log_namespace": "gateway.turn"}
    assert (text_line(event, worker=2) or "").endswith(" [worker 2, gateway.turn] x\n")
    assert json.loads(json_line(event, worker=2) or "")["worker"] == 2
    assert "worker" not in (json_line(event) or "")


def test_a_traceback_of_an_error_value_is_not_needed() -> None:
    failure = Failure(ApiError.bad_gateway("It broke."))
    line = text_line({"log_time": 0.0, "log_format": "x", "log_failure": failure})
    assert line is not None
    assert "It broke." in line


def test_the_threshold_moves_while_the_gateway_runs(tmp_path: Path) -> None:
    path = tmp_path / "gateway.log"
    threshold = LogThreshold("info")
    observer = log_observer(LogSettings(level="error"), LogFile(str(path)), threshold)
    logger = Logger("gateway.test", observer=observer)
    logger.debug("before")
    threshold.level = "debug"
    logger.debug("between")
    threshold.level = "warn"
    logger.info("after")
    assert threshold.level == "warn"
    lines = path.read_text(encoding="utf-8")
    assert [word for word in ("before", "between", "after") if word in lines] == ["between"]
