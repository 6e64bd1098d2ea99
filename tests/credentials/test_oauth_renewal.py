"""When access tokens are renewed, by whom, and who waits for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from tests.credentials.stage import START, Got, Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# --- when ----------------------------------------------------------------------------


def test_the_first_request_asks_for_a_token_and_waits(stage: Stage) -> None:
    first = stage.headers()
    assert first.waits
    stage.endpoint.last.gives("access-1", expires_in=3600)
    assert first.token == "access-1"
    assert stage.headers().token == "access-1"
    assert len(stage.endpoint.asked) == 1


def test_who_needs_a_token_shares_one_request(stage: Stage) -> None:
    waiting = [stage.headers() for _ in range(20)]
    stage.endpoint.last.gives("access-1", expires_in=3600)
    assert {each.token for each in waiting} == {"access-1"}
    assert len(stage.endpoint.asked) == 1


def test_near_its_end_a_token_is_renewed_while_it_is_used(stage: Stage) -> None:
    stage.ready()
    stage.clock.advance(3600 - 301)
    assert stage.headers().token == "access-1"
    assert len(stage.endpoint.asked) == 1, "renewed before its time"
    stage.clock.advance(1.5)
    assert [stage.headers().token for _ in range(3)] == ["access-1"] * 3, "nobody need wait"
    assert len(stage.endpoint.asked) == 2
    stage.endpoint.last.gives("access-2", expires_in=3600)
    assert stage.headers().token == "access-2"


def test_an_ended_token_is_waited_for(stage: Stage) -> None:
    stage.ready()
    stage.clock.advance(3600)
    late = stage.headers()
    assert late.waits
    stage.endpoint.last.gives("access-2", expires_in=3600)
    assert late.token == "access-2"


def test_a_short_token_is_not_renewed_at_every_request(stage: Stage) -> None:
    """It lives shorter than the time that renewals are ahead of the end."""
    stage.ready(expires_in=60)
    stage.clock.advance(29)
    stage.headers()
    assert len(stage.endpoint.asked) == 1
    stage.clock.advance(2)
    stage.headers()
    assert len(stage.endpoint.asked) == 2


def test_a_token_without_an_end_is_used_until_it_is_refused(stage: Stage) -> None:
    stage.ready(expires_in=None)
    stage.clock.advance(10 * 365 * 24 * 3600)
    assert stage.headers().token == "access-1"
    assert stage.held["expires_at"] is None
    again = stage.refused("access-1")
    stage.endpoint.last.gives("access-2")
    assert again.value is True


def test_renewals_of_many_accounts_are_spread(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.credentials._source._jitter = lambda: 1.0
    stage.ready()
    stage.clock.advance(3600 - 331)
    stage.headers()
    assert len(stage.endpoint.asked) == 1
    stage.clock.advance(2)
    stage.headers()
    assert len(stage.endpoint.asked) == 2, "expected a tenth more of the time ahead"


# --- a 401 -----------------------------------------------------------------------------


def settle(stage: Stage) -> None:
    """The token is old enough for a 401 to be its fault."""
    stage.clock.advance(60)


def test_twenty_401s_are_one_renewal(stage: Stage) -> None:
    stage.ready()
    settle(stage)
    waiting = [stage.refused("access-1") for _ in range(20)]
    assert all(each.waits for each in waiting)
    stage.endpoint.last.gives("access-2", expires_in=3600)
    assert [each.value for each in waiting] == [True] * 20
    assert stage.refused("access-1").value is True, "one that comes late needs no renewal"
    assert len(stage.endpoint.asked) == 2


def test_new_requests_wait_while_a_refused_token_is_replaced(stage: Stage) -> None:
    stage.ready()
    settle(stage)
    stage.refused("access-1")
    new = stage.headers()
    assert new.waits, "it would have got a 401, too"
    stage.endpoint.last.gives("access-2", expires_in=3600)
    assert new.token == "access-2"


def test_a_401_joins_the_renewal_that_runs_already(stage: Stage) -> None:
    stage.ready()
    stage.clock.advance(3600 - 60)
    stage.headers()
    again = stage.refused("access-1")
    assert (again.waits, len(stage.endpoint.asked)) == (True, 2)
    stage.endpoint.last.gives("access-2", expires_in=3600)
    assert again.value is True


def test_a_token_refused_as_soon_as_it_came_is_not_renewed(stage: Stage) -> None:
    """An upstream that refuses every token would have one made for every request."""
    stage.ready()
    assert stage.refused("access-1").value is False
    assert len(stage.endpoint.asked) == 1


def test_the_same_token_once_more_is_no_new_one(stage: Stage) -> None:
    stage.ready()
    settle(stage)
    again = stage.refused("access-1")
    stage.endpoint.last.gives("access-1", expires_in=3600)
    assert again.value is False


# --- leaving ---------------------------------------------------------------------------


def test_who_leaves_takes_nothing_from_the_others(stage: Stage) -> None:
    one, other = stage.headers(), stage.headers()
    one.deferred.cancel()
    assert one.failures[0].check(CancelledError)
    stage.endpoint.last.gives("access-1", expires_in=3600)
    assert other.token == "access-1"


def test_when_all_have_left_the_token_is_still_kept(stage: Stage) -> None:
    stage.headers().deferred.cancel()
    stage.endpoint.last.gives("access-1", expires_in=3600, refresh_token="refresh-2")
    assert stage.held["refresh_token"] == "refresh-2"
    assert stage.headers().token == "access-1"


def test_a_stop_waits_for_a_renewal(stage: Stage) -> None:
    stage.headers()
    closed = Got(stage.credentials.close())
    assert closed.waits
    stage.endpoint.last.gives("access-1", expires_in=3600, refresh_token="refresh-2")
    assert closed.value is None
    assert stage.held["refresh_token"] == "refresh-2"
    assert stage.clock.getDelayedCalls() == []


def test_a_stop_waits_only_so_long(stage: Stage) -> None:
    first = stage.headers()
    closed = Got(stage.credentials.close())
    stage.clock.advance(5)
    assert closed.value is None
    assert first.error.code == "upstream_token_unavailable"
    assert stage.clock.getDelayedCalls() == []


def test_without_a_renewal_a_stop_is_at_once(stage: Stage) -> None:
    assert stage.credentials.close() is None
    stage.ready()
    assert stage.credentials.close() is None


# --- the file ----------------------------------------------------------------------------


def test_the_new_refresh_token_is_in_the_file_before_the_access_token_is_used(
    stage: Stage,
) -> None:
    stage.writes = []
    first = stage.headers()
    stage.endpoint.last.gives("access-1", expires_in=3600, refresh_token="refresh-2")
    assert first.waits, "the access token was used before the file was written"
    assert not stage.path.exists()
    stage.writes[0].callback(None)
    assert first.token == "access-1"
    assert stage.held == {
        "refresh_token": "refresh-2",
        "access_token": "access-1",
        "expires_at": START + 3600,
    }
    assert stage.path.stat().st_mode & 0o777 == 0o600


def test_each_renewal_takes_the_newest_refresh_token(stage: Stage) -> None:
    stage.ready(refresh_token="refresh-2")
    assert stage.endpoint.last.form["refresh_token"] == "refresh-config"
    stage.clock.advance(3600)
    stage.headers()
    assert stage.endpoint.last.form["refresh_token"] == "refresh-2"
    stage.endpoint.last.gives("access-2", expires_in=3600)
    stage.clock.advance(3600)
    stage.headers()
    assert stage.endpoint.last.form["refresh_token"] == "refresh-2", "it was not replaced"


def test_a_restart_goes_on_with_the_tokens_of_the_file(stage: Stage) -> None:
    stage.ready(refresh_token="refresh-2")
    stage.restarted()
    assert stage.headers().token == "access-1"
    assert len(stage.endpoint.asked) == 1
    stage.clock.advance(3600)
    stage.headers()
    assert stage.endpoint.last.form["refresh_token"] == "refresh-2"


@pytest.mark.parametrize("content", ["", "\n"], ids=["empty", "blank"])
def test_an_empty_file_is_like_none(tmp_path: Path, content: str) -> None:
    stage = Stage(tmp_path, content)
    stage.headers()
    assert stage.endpoint.last.form["refresh_token"] == "refresh-config"


def test_before_a_renewal_the_file_is_read_again(stage: Stage) -> None:
    stage.ready(refresh_token="refresh-2")
    stage.put({"refresh_token": "refresh-by-hand"})
    assert stage.headers().token == "access-1", "nothing is due"
    stage.clock.advance(3600)
    stage.headers()
    assert stage.endpoint.last.form["refresh_token"] == "refresh-by-hand"


def test_a_token_that_another_process_got_is_used(stage: Stage) -> None:
    stage.ready()
    stage.clock.advance(3600)
    stage.put({"refresh_token": "r", "access_token": "theirs", "expires_at": START + 9000})
    assert stage.headers().token == "theirs"
    assert len(stage.endpoint.asked) == 1


def test_after_a_401_a_token_that_another_process_got_is_used(stage: Stage) -> None:
    stage.ready()
    settle(stage)
    stage.put({"refresh_token": "r", "access_token": "theirs", "expires_at": START + 9000})
    assert stage.refused("access-1").value is True
    assert stage.headers().token == "theirs"
    assert len(stage.endpoint.asked) == 1


def test_tokens_that_cannot_be_written_are_used_and_written_later(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losing them would lose the account: the old refresh token may be void."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.credentials.token_store.os.replace", full)
    stage.ready(refresh_token="refresh-2")
    assert not stage.path.exists()
    stage.clock.advance(11)
    assert stage.headers().token == "access-1"
    assert not stage.path.exists()
    monkeypatch.undo()
    stage.headers()
    assert not stage.path.exists(), "it is tried now and then, not at every request"
    stage.clock.advance(11)
    assert stage.headers().token == "access-1"
    assert stage.held["refresh_token"] == "refresh-2"
    assert len(stage.endpoint.asked) == 1


def test_nothing_shows_the_tokens(stage: Stage) -> None:
    stage.ready(refresh_token="refresh-2")
    source = stage.credentials._source
    for shown in (repr(stage.credentials), repr(source), repr(source._tokens), str(source._tokens)):
        assert "access-1" not in shown
        assert "refresh-2" not in shown


def test_all_that_it_has_is_secret(tmp_path: Path) -> None:
    stage = Stage(tmp_path, client_secret="client-secret")
    stage.ready(refresh_token="refresh-2")
    stage.clock.advance(3600)
    stage.headers()
    stage.endpoint.last.gives("access-2", expires_in=3600)
    assert set(stage.credentials.secrets()) == {
        *("access-2", "refresh-2", "access-1", "refresh-config", "client-secret")
    }


# --- a clock that is set right -----------------------------------------------------------


def set_back(stage: Stage) -> None:
    """An hour too fast until now; a token made then seems good for an hour more than it is."""
    stage.clock.rightNow -= 3600


def test_a_401_after_the_clock_was_set_back_is_still_answered_by_a_renewal(stage: Stage) -> None:
    stage.ready()
    set_back(stage)
    assert stage.refused("access-1").waits, "the token only seems to be young"
    stage.endpoint.last.gives("access-2", expires_in=3600)
    assert stage.headers().token == "access-2"


def test_a_token_from_the_future_is_renewed_while_it_is_used(stage: Stage) -> None:
    stage.ready()
    set_back(stage)
    assert stage.headers().token == "access-1"
    assert len(stage.endpoint.asked) == 2, "nobody knows when it ends"
    stage.endpoint.last.gives("access-2", expires_in=3600)
    assert stage.headers().token == "access-2"
    assert len(stage.endpoint.asked) == 2


# --- one file, two accounts --------------------------------------------------------------


def test_an_account_made_anew_waits_for_the_renewal_of_the_one_before(stage: Stage) -> None:
    """A refresh token that is used twice may be taken for stolen."""
    before = stage.headers()
    stage.restarted()
    after = stage.headers()
    assert len(stage.endpoint.asked) == 1
    stage.endpoint.last.gives("access-1", expires_in=3600, refresh_token="refresh-2")
    assert (before.token, after.token) == ("access-1", "access-1")
    assert len(stage.endpoint.asked) == 1


def test_where_the_one_before_failed_the_account_tries_itself(stage: Stage) -> None:
    before = stage.headers()
    stage.restarted()
    after, left = stage.headers(), stage.headers()
    left.deferred.cancel()
    stage.endpoint.last.answers(503, {})
    assert before.error.code == "upstream_token_unavailable"
    stage.endpoint.last.gives("access-1", expires_in=3600)
    assert after.token == "access-1"
    assert len(stage.endpoint.asked) == 2


def test_a_stop_ends_the_wait_for_the_one_before(stage: Stage) -> None:
    stage.headers()
    waiting = stage.restarted()
    stage.headers()
    stopped = Got(waiting.close())
    stage.clock.advance(5)
    assert not stopped.waits
    stage.restarted()
    last = stage.headers()
    stage.endpoint.last.gives("access-1", expires_in=3600)
    assert last.token == "access-1"
