"""What becomes of requests while no new access token is to be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from tests.credentials.stage import START, Stage

GOOD_UNTIL = START + 3600
HELD = {"refresh_token": "refresh-1", "access_token": "access-1", "expires_at": GOOD_UNTIL}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, HELD, refresh_token=None)


def refuse(stage: Stage, code: str = "invalid_grant") -> None:
    stage.endpoint.last.answers(400, {"error": code, "error_description": "It was revoked."})


# --- refused refresh tokens ----------------------------------------------------------------


def test_a_refused_refresh_token_is_a_sentence_for_the_operator(stage: Stage) -> None:
    stage.clock.advance(3600)
    first = stage.headers()
    refuse(stage)
    error = first.error
    assert (error.status, error.code) == (502, "upstream_unauthorized")
    assert error.message == (
        "This account's refresh token was refused (invalid_grant): log in again and put the new"
        " refresh token into its token file."
    )


def test_each_who_waits_gets_an_error_of_its_own(stage: Stage) -> None:
    stage.clock.advance(3600)
    waiting = [stage.headers(), stage.headers()]
    refuse(stage)
    assert waiting[0].error is not waiting[1].error


def test_it_is_not_tried_again_at_once(stage: Stage) -> None:
    stage.clock.advance(3600)
    stage.headers()
    refuse(stage)
    stage.clock.advance(59)
    assert stage.headers().error.code == "upstream_unauthorized"
    assert len(stage.endpoint.asked) == 1
    stage.clock.advance(1)
    assert stage.headers().waits
    assert len(stage.endpoint.asked) == 2
    refuse(stage)
    stage.clock.advance(119)
    stage.headers()
    assert len(stage.endpoint.asked) == 2, "the second pause is twice the first"


def test_a_new_file_ends_the_pause(stage: Stage) -> None:
    stage.clock.advance(3600)
    stage.headers()
    refuse(stage)
    assert stage.headers().error
    stage.put({"refresh_token": "refresh-by-hand"})
    stage.clock.advance(1)
    again = stage.headers()
    assert stage.endpoint.last.form["refresh_token"] == "refresh-by-hand"
    stage.endpoint.last.gives("access-2", expires_in=3600)
    assert again.token == "access-2"


def test_while_the_access_token_is_good_it_is_used_on(stage: Stage) -> None:
    stage.clock.advance(3600 - 200)
    assert stage.headers().token == "access-1"
    refuse(stage)
    assert stage.headers().token == "access-1"
    stage.clock.advance(199)
    assert stage.headers().token == "access-1"
    refuse(stage)
    stage.clock.advance(1)
    assert stage.headers().error.code == "upstream_unauthorized"


def test_after_a_401_a_refused_refresh_token_is_the_error(stage: Stage) -> None:
    stage.headers()
    again = stage.refused("access-1")
    refuse(stage)
    assert again.error.code == "upstream_unauthorized"
    assert stage.headers().token == "access-1", "nothing better is to be had"
    assert stage.refused("access-1").error.code == "upstream_unauthorized"
    assert len(stage.endpoint.asked) == 1


def test_a_refresh_token_that_came_into_the_file_meanwhile_is_tried_at_once(
    stage: Stage,
) -> None:
    """Another process was faster, and the old one is void."""
    stage.clock.advance(3600)
    first = stage.headers()
    stage.put({"refresh_token": "refresh-2"})
    refuse(stage)
    assert first.waits
    assert stage.endpoint.last.form["refresh_token"] == "refresh-2"
    stage.endpoint.last.gives("access-2", expires_in=3600)
    assert first.token == "access-2"


def test_an_access_token_that_came_into_the_file_meanwhile_is_used(stage: Stage) -> None:
    stage.clock.advance(3600)
    first = stage.headers()
    stage.put({**HELD, "access_token": "theirs", "expires_at": GOOD_UNTIL + 3600})
    refuse(stage)
    assert first.token == "theirs"
    assert len(stage.endpoint.asked) == 1


def test_the_configured_refresh_token_is_the_last_resort(tmp_path: Path) -> None:
    """The operator logged in again and wrote it there; the file still has the old one."""
    stage = Stage(tmp_path, {"refresh_token": "refresh-old"}, refresh_token="refresh-new")
    first = stage.headers()
    assert stage.endpoint.last.form["refresh_token"] == "refresh-old"
    refuse(stage)
    assert stage.endpoint.last.form["refresh_token"] == "refresh-new"
    stage.endpoint.last.gives("access-1", expires_in=3600)
    assert first.token == "access-1"
    assert stage.held["refresh_token"] == "refresh-new"


def test_without_any_refresh_token_nobody_is_asked(tmp_path: Path) -> None:
    stage = Stage(tmp_path, refresh_token=None)
    assert stage.headers().error.code == "upstream_unauthorized"
    assert stage.endpoint.asked == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "This account's token file is not JSON."),
        ("[1]", "This account's token file is no JSON object."),
        ('{"access_token": "a"}', "This account's token file has no refresh_token."),
    ],
)
def test_a_broken_file_is_told_and_read_again_when_it_changes(
    tmp_path: Path, content: str, said: str
) -> None:
    stage = Stage(tmp_path, content)
    error = stage.headers().error
    assert (error.code, error.message) == ("upstream_unauthorized", said)
    stage.clock.advance(1)
    assert stage.headers().error.message == said
    stage.put(HELD)
    stage.clock.advance(1)
    assert stage.headers().token == "access-1"
    assert stage.endpoint.asked == []


# --- an endpoint that cannot be used -------------------------------------------------------


def test_while_the_endpoint_is_down_a_good_token_is_used_on(stage: Stage) -> None:
    stage.clock.advance(3600 - 200)
    stage.headers()
    for _ in range(4):
        stage.endpoint.last.answers(503, b"busy")
        assert stage.headers().token == "access-1"
        stage.clock.advance(40)
        assert stage.headers().token == "access-1"
    asked = len(stage.endpoint.asked)
    assert asked == 5
    stage.endpoint.last.gives("access-2", expires_in=3600)
    assert stage.headers().token == "access-2"


def test_without_a_good_token_its_absence_is_the_error(stage: Stage) -> None:
    stage.clock.advance(3600)
    first = stage.headers()
    stage.endpoint.last.answers(503, b"busy")
    error = first.error
    assert (error.status, error.code) == (502, "upstream_token_unavailable")
    assert error.message == "This account's token endpoint answered with the status 503."
    assert stage.headers().error.code == "upstream_token_unavailable"
    assert len(stage.endpoint.asked) == 1, "asked again at once"
    stage.clock.advance(1)
    assert stage.headers().waits, "the first pause is short"


def test_the_pauses_grow_up_to_a_minute(stage: Stage) -> None:
    stage.clock.advance(3600)
    pauses = []
    stage.headers()
    for _ in range(9):
        stage.endpoint.last.answers(503, b"busy")
        before, asked = stage.clock.seconds(), len(stage.endpoint.asked)
        while len(stage.endpoint.asked) == asked:
            stage.clock.advance(0.5)
            stage.headers()
        pauses.append(stage.clock.seconds() - before)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_success_forgets_the_pauses(stage: Stage) -> None:
    stage.clock.advance(3600)
    for pause in (1, 2, 4):
        stage.headers()
        stage.endpoint.last.answers(503, b"busy")
        stage.clock.advance(pause)
    stage.headers()
    stage.endpoint.last.gives("access-2", expires_in=60)
    stage.clock.advance(60)
    stage.headers()
    stage.endpoint.last.answers(503, b"busy")
    stage.clock.advance(1)
    assert stage.headers().waits


def test_after_a_401_an_endpoint_that_is_down_is_the_error(stage: Stage) -> None:
    stage.headers()
    again = stage.refused("access-1")
    assert stage.headers().waits
    stage.endpoint.last.answers(500, b"")
    assert again.error.code == "upstream_token_unavailable"
    assert stage.headers().token == "access-1", "it may be good elsewhere, and time will tell"


def test_an_endpoint_that_never_answers_has_a_deadline(stage: Stage) -> None:
    stage.clock.advance(3600)
    first = stage.headers()
    stage.clock.advance(29)
    assert first.waits
    stage.clock.advance(1)
    assert first.error.message == "This account's token endpoint did not answer within 30 seconds."
    assert stage.clock.getDelayedCalls() == []


def test_a_bug_is_logged_and_ends_the_wait(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug")

    logged: list[Any] = []
    globalLogPublisher.addObserver(logged.append)
    try:
        monkeypatch.setattr(stage.credentials._source, "_take", broken)
        stage.clock.advance(3600)
        first = stage.headers()
        stage.endpoint.last.gives("access-2")
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert first.error.code == "upstream_token_unavailable"
    assert any("log_failure" in each for each in logged), "the bug was not logged"


def test_a_clock_that_is_set_back_makes_no_pause_longer(stage: Stage) -> None:
    stage.clock.advance(7200)
    stage.headers()
    stage.endpoint.last.answers(503, {})
    assert stage.headers().error.code == "upstream_token_unavailable"
    stage.clock.rightNow -= 600
    assert stage.headers().waits, "the pause was of a second"
    stage.endpoint.last.gives("access-2", expires_in=3600)
