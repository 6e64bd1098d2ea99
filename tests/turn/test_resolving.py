"""Looking up what a request continues: at once, later, in vain, never, and left meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

from gateway.protocol.errors import ApiError
from gateway.routing.affinity import AffinityKey
from gateway.routing.selection import RouteRequest
from gateway.turn.context import Resolution, TurnContext
from gateway.turn.forwarding import Forwarding, KnownRoute, PoolRoute
from gateway.turn.routed_request import RESOLVE_SECONDS, TRANSITIONS, RequestPhase
from gateway.turn.turn import Turn
from tests.support.events import call_item, call_output, text_item, turn_events, user
from tests.turn.calls import CallWorld, FakeResponseSink, FakeSpec
from tests.turn.fakes import World

UNKNOWN = ApiError.previous_response_not_found("resp_0")


class Later:
    """A turn whose conversation a slow store looks up."""

    def __init__(self, keepalive_seconds: float = 20.0, **members: Any) -> None:
        self.world = World(keepalive_seconds=keepalive_seconds)
        self.parent = self.world.completed(
            [user("list files")], turn_events([call_item("call_1")], "resp_1")
        )
        self.before = len(self.world.exchanges())
        self.found: Deferred[Resolution] = Deferred(lambda _: self.cancelled.append(True))
        self.cancelled: list[bool] = []
        self.turn: Turn = self.world.turn([call_output("call_1")], **members)
        self.turn._resolver = lambda request: self.found
        self.turn.start()
        assert len(self.world.exchanges()) == self.before, "nothing is sent before it is known"

    def arrives(self) -> None:
        self.found.callback(Resolution(self.turn.request, self.parent, "previous_response_id"))

    def check_ended(self, status: str) -> None:
        assert self.world.sink.ended == 1
        assert self.turn.record.status == status
        assert len(self.world.exchanges()) == self.before, "nothing may be sent any more"
        self.world.check_rest()


def test_what_is_found_later_is_continued() -> None:
    later = Later()
    later.arrives()
    sent = later.world.exchanges()[-1]
    assert sent.body["previous_response_id"] == "resp_1"
    sent.sends(*turn_events([text_item()], "resp_2", previous_response_id="resp_1"))
    record = later.turn.record
    assert (record.status, record.route) == ("completed", "chained")
    assert record.continuation == "previous_response_id"
    later.world.check_rest()


def test_a_deferred_that_has_fired_already_is_as_good() -> None:
    world = World()
    turn = world.turn([user("hi")])
    found: Deferred[Resolution] = Deferred()
    found.callback(Resolution(turn.request))
    turn._resolver = lambda request: found
    turn.start()
    world.exchanges()[-1].sends(*turn_events([text_item()], "resp_1"))
    assert turn.record.status == "completed"
    world.check_rest()


def test_a_conversation_that_cannot_be_continued_is_refused() -> None:
    later = Later()
    later.found.errback(UNKNOWN)
    assert later.world.sink.last["error"]["code"] == "previous_response_not_found"
    later.check_ended("error")


def test_a_lookup_that_fails_is_the_gateways_fault() -> None:
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    try:
        later = Later()
        later.found.errback(OSError("the disk is gone"))
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert later.world.sink.last["status"] == 500
    assert "disk" not in later.world.sink.raw[-1].decode()
    assert [each for each in events if "log_failure" in each], "expected it in the log"
    later.check_ended("error")


def test_a_bug_after_a_late_lookup_ends_the_turn() -> None:
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    try:
        later = Later()
        later.found.callback(None)  # type: ignore[arg-type]
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert later.world.sink.last["status"] == 500
    assert [each for each in events if "log_failure" in each], "expected it in the log"
    later.check_ended("error")


def test_a_store_that_never_answers_is_not_waited_for_without_end() -> None:
    later = Later(keepalive_seconds=4.0)
    for _ in range(int(RESOLVE_SECONDS)):
        assert not later.world.sink.ended
        later.world.clock.advance(1)
    assert later.world.sink.keep_alives == 2, "the client hears that it is not forgotten"
    assert later.world.sink.last["status"] == 503
    assert later.cancelled, "the store may stop to look"
    later.check_ended("error")


@pytest.mark.parametrize(
    ("how", "status"),
    [
        (lambda turn: turn.cancel(), "cancelled"),
        (lambda turn: turn.interrupt(None), "incomplete"),
        (lambda turn: turn.abandon(ApiError.gateway_restarts()), "error"),
    ],
    ids=["cancel", "interrupt", "abandon"],
)
@pytest.mark.parametrize("answers", [True, False])
def test_a_turn_may_end_before_its_conversation_is_found(
    how: Callable[[Turn], None], status: str, answers: bool
) -> None:
    later = Later()
    if answers:
        later.found = Deferred()  # one that fires although it was cancelled
        later.turn = later.world.turn([call_output("call_1")])
        later.turn._resolver = lambda request: later.found
        later.turn.start()
    how(later.turn)
    if answers:
        later.arrives()
    assert later.turn.recorded is None
    assert later.world.sink.types in ([], ["error"], ["response.created", "response.incomplete"])
    assert later.world.sink.ended == 1
    assert later.turn.record.status == status
    assert len(later.world.exchanges()) == later.before


def test_a_client_may_be_slow_while_its_conversation_is_looked_up() -> None:
    later = Later()
    later.turn.pause()
    later.arrives()
    assert later.world.exchanges()[-1].paused
    later.turn.resume()
    assert not later.world.exchanges()[-1].paused
    later.turn.cancel()
    later.world.check_rest()


def test_a_prewarm_waits_for_its_conversation_too() -> None:
    later = Later(generate=False)
    assert later.world.sink.raw == []
    later.arrives()
    assert later.turn.recorded is not None
    assert later.turn.recorded.parent is later.parent
    later.check_ended("completed")


class LaterSpec(FakeSpec):
    """A passed-through request that a slow store finds the way of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Deferred[PoolRoute | KnownRoute] = Deferred()

    def resolve(self) -> Any:
        return self.found


@pytest.mark.parametrize("how", ["arrives", "fails", "never", "cancel", "abandon"])
def test_a_passed_through_request_may_be_resolved_later(how: str) -> None:
    world, spec, sink = CallWorld(), LaterSpec(), FakeResponseSink()
    context = TurnContext(
        tenant="laptop",
        connection="http-1",
        client_headers={},
        affinity=[AffinityKey("session", "laptop", "s-1")],
        accepted_at=world.clock.seconds(),
    )
    request = Forwarding(world.services, context, spec, sink)
    request.start()
    assert world.all_calls == []
    if how == "arrives":
        spec.found.callback(PoolRoute(RouteRequest(spec.model, context.affinity)))
        world.calls()[0].answers({"ok": True})
        assert (sink.status, sink.endings) == (200, [None])
    elif how == "fails":
        spec.found.errback(UNKNOWN)
        assert sink.error is UNKNOWN
    elif how == "never":
        world.clock.advance(RESOLVE_SECONDS)
        assert sink.error.status == 503
    elif how == "cancel":
        request.cancel()
        assert sink.endings == []
    else:
        request.abandon(ApiError.gateway_restarts())
        assert sink.error.status == 502
    assert request.record.status != "running"
    world.check_rest()


def test_every_phase_leads_to_the_end() -> None:
    for phase in RequestPhase:
        assert phase is RequestPhase.ENDED or RequestPhase.ENDED in TRANSITIONS[phase]
