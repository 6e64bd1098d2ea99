"""OAuth credentials under any order of requests, 401s, answers, failures, edits and time."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.defer import Deferred

from tests.credentials.stage import Asked, Got, Stage

LIFETIME = 1000.0


class Model(RuleBasedStateMachine):
    """A server that rotates refresh tokens strictly, a slow disk, and requests."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.stage = Stage(Path(self.folder.name))
        self.stage.writes = []
        self.good_refresh = "refresh-config"
        self.ends: dict[str, float] = {}  # of the access tokens given
        self.answered: set[int] = set()
        self.given = 0
        self.waiting: list[Got] = []
        self.in_use: list[str] = []  # what requests under way were sent with

    def teardown(self) -> None:
        """Whatever happened, a login by hand heals it, and nobody is left waiting."""
        self._settle()
        self.log_in()
        self.stage.clock.advance(1.5)
        last = self.stage.headers()
        self.waiting.append(last)
        self._settle()
        assert last.values, f"expected a token after a login, got {last.failures}"
        assert not [each for each in self.waiting if each.waits], "somebody still waits"
        assert self.stage.clock.getDelayedCalls() == []
        self.folder.cleanup()

    def _settle(self) -> None:
        while self.open or self.unwritten:
            if self.open:
                self.answer()
            else:
                self.write()

    @property
    def now(self) -> float:
        return self.stage.clock.seconds()

    @property
    def open(self) -> list[Asked]:
        asked = self.stage.endpoint.asked
        return [
            each
            for number, each in enumerate(asked)
            if number not in self.answered and not each.left
        ]

    @property
    def unwritten(self) -> list[Deferred[None]]:
        assert self.stage.writes is not None
        return [each for each in self.stage.writes if not each.called]

    # --- what happens ------------------------------------------------------------------

    @initialize(held=st.booleans())
    def start(self, held: bool) -> None:
        if held:
            self.ends["access-held"] = self.now + LIFETIME
            self._put("access-held")

    @rule()
    def request(self) -> None:
        before = len(self.stage.endpoint.asked)
        got = self.stage.headers()
        self.waiting.append(got)
        if got.values:
            assert self.now < self.ends[got.token], "an ended token was given"
            self.in_use.append(got.token)
        assert len(self.stage.endpoint.asked) <= before + 1

    @precondition(lambda self: self.in_use)
    @rule(data=st.data())
    def unauthorized(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(self.in_use))
        self.in_use.remove(token)
        self.waiting.append(self.stage.refused(token))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).deferred.cancel()

    @rule(seconds=st.sampled_from([0.1, 1.0, 20.0, 400.0, LIFETIME]))
    def time_passes(self, seconds: float) -> None:
        self.stage.clock.advance(seconds)
        self.stage.endpoint.client.flush()

    @precondition(lambda self: self.open)
    @rule()
    def answer(self) -> None:
        """As the server sees it: the newest refresh token is good, all others are void."""
        asked = self._take()
        if asked.form["refresh_token"] != self.good_refresh:
            asked.answers(400, {"error": "invalid_grant"})
            return
        self.given += 1
        token, self.good_refresh = f"access-{self.given}", f"refresh-{self.given}"
        self.ends[token] = self.now + LIFETIME
        asked.gives(token, expires_in=LIFETIME, refresh_token=self.good_refresh)

    @precondition(lambda self: self.open)
    @rule()
    def fail(self) -> None:
        self._take().answers(503, b"busy")

    @precondition(lambda self: self.unwritten)
    @rule()
    def write(self) -> None:
        self.unwritten[0].callback(None)

    @rule()
    def log_in(self) -> None:
        """The operator puts a new refresh token into the file."""
        self.given += 1
        self.good_refresh = f"refresh-by-hand-{self.given}"
        self._put(None)

    # --- what must hold ----------------------------------------------------------------

    @invariant()
    def one_request_at_a_time(self) -> None:
        assert len(self.open) <= 1
        assert len(self.unwritten) <= 1

    @invariant()
    def the_newest_token_is_in_the_file_when_it_is_used(self) -> None:
        newest = {"authorization": f"Bearer access-{self.given}"}
        if any(got.values and got.values[0] == newest for got in self.waiting):
            assert not self.unwritten, "it is used while it waits to be written"
            assert self.stage.held["access_token"] == f"access-{self.given}"

    def _take(self) -> Asked:
        (asked,) = self.open
        self.answered.add(self.stage.endpoint.asked.index(asked))
        return asked

    def _put(self, access_token: str | None) -> None:
        expires_at = None if access_token is None else self.ends[access_token]
        held = {"access_token": access_token, "expires_at": expires_at}
        self.stage.put({"refresh_token": self.good_refresh, **held})


TestModel = Model.TestCase
