"""Named lanes: protocol.md §6.1, §10.46, §10.66."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.conformance.conftest import Rig, Stage
from tests.support.checks import assert_error, assert_strictly_increasing, completed
from tests.support.events import text_item, user
from tests.support.gateway import account
from tests.support.upstream import Exchange
from tests.support.wsclient import TERMINAL

pytestmark = pytest.mark.conformance


def test_10_46_named_lanes_echo_their_stream_id(any_rig: Rig) -> None:
    client = any_rig.connect()
    for lane in ("lane-1", "A.b_9", "x" * 256):
        client.create(stream_id=lane)
        events = client.until(*TERMINAL, lane="*")
        completed(events)
        wrong = [event for event in events if event.get("stream_id") != lane]
        assert wrong == [], f"every event of lane {lane} carries its stream_id"
    events = client.turn()
    completed(events)
    assert [event for event in events if "stream_id" in event] == []


def test_10_46_lanes_only_add_a_member(rig: Rig) -> None:
    rig.upstream.queue(lambda exchange: exchange.answer([text_item("x")], empty_output=True))
    client = rig.connect()
    client.create(stream_id="lane")
    events = client.until(*TERMINAL, lane="*")
    assert {event.pop("stream_id") for event in events} == {"lane"}
    assert_strictly_increasing(events)
    assert completed(events)["output"][0]["content"][0]["text"] == "x"


def test_10_46_errors_and_prewarms_of_a_lane(rig: Rig) -> None:
    client = rig.connect()
    client.create(stream_id="a", previous_response_id="resp_unknown")
    error = client.event()
    assert_error(error, 400, "previous_response_not_found")
    assert error["stream_id"] == "a"
    client.create(stream_id="a", generate=False)
    events = client.until(*TERMINAL, lane="*")
    assert {event.get("stream_id") for event in events} == {"a"}
    completed(events)


def test_10_46_lanes_run_at_the_same_time_and_are_fifo_inside(rig: Rig) -> None:
    releases = {name: threading.Event() for name in ("slow", "fast")}

    def script(exchange: Exchange) -> None:
        name = next((n for n in releases if n in json.dumps(exchange.request.input)), None)
        if name:
            exchange.hold(releases[name])
        exchange.answer()

    rig.upstream.script = script
    client = rig.connect()
    client.create(stream_id="one", input="slow")
    client.create(stream_id="one", input="second of one")
    client.create(stream_id="two", input="fast")
    rig.upstream.wait_for(2)
    releases["fast"].set()
    events = client.until(*TERMINAL, lane="*")
    assert {event["stream_id"] for event in events} == {"two"}, "lanes do not wait for each other"
    completed(events)
    releases["slow"].set()
    completed(client.until_terminal("one"))
    completed(client.until_terminal("one"))
    order = [json.dumps(request.input) for request in rig.upstream.requests]
    assert "second of one" in order[2]


def test_10_46_a_lane_forks_a_conversation(any_rig: Rig) -> None:
    client = any_rig.connect()
    root = completed(client.turn(input=[user("root")], store=False))["id"]
    fork = client.turn(stream_id="b", input=[user("fork")], previous_response_id=root, store=False)
    main = client.turn(input=[user("main")], previous_response_id=root, store=False)
    completed(fork)
    completed(main)
    for request, word in zip(any_rig.upstream.requests[1:], ("fork", "main"), strict=True):
        if request.previous_response_id is None:
            assert request.input[0] == user("root")
        else:
            assert request.previous_response_id == root
        assert request.input[-1] == user(word)


def test_10_46_keepalives_of_a_lane(stage: Stage) -> None:
    release = threading.Event()
    upstream = stage.upstream(lambda exchange: exchange.hold(release) and exchange.answer())
    session = {"keepalive_seconds": 0.2}
    client = stage.gateway(account("solo", upstream), session=session).connect()
    client.create(stream_id="quiet")
    alive = [client.event(10) for _ in range(3)]
    release.set()
    completed(client.until_terminal("quiet"))
    for event in alive:
        if event["type"].startswith("response."):
            assert event.get("stream_id") == "quiet"


BAD_LANES: list[Any] = ["", "x" * 257, "a b", "ä", "a/b", "a\nb", 7, True, [], {}, "a:b"]


@pytest.mark.parametrize("lane", BAD_LANES, ids=lambda lane: repr(lane)[:12])
def test_10_66_invalid_stream_id(rig: Rig, lane: Any) -> None:
    client = rig.connect()
    client.create(stream_id=lane)
    assert_error(client.event(), 400, "invalid_stream_id", "stream_id")
    assert rig.upstream.requests == []
    completed(client.turn())


def test_10_66_the_33rd_lane_is_refused(rig: Rig) -> None:
    client = rig.connect()
    for number in range(32):
        completed(client.turn(stream_id=f"lane-{number}", generate=False))
    client.create(stream_id="lane-32")
    error = client.event()
    assert_error(error, 400, "websocket_stream_limit_reached")
    assert error["stream_id"] == "lane-32", "the error carries the offending stream_id"
    completed(client.turn(stream_id="lane-7"))
    completed(client.turn())
    completed(rig.connect().turn(stream_id="lane-32"))


def test_10_66_sixteen_lanes_run_and_the_others_wait(rig: Rig) -> None:
    release = threading.Event()
    rig.upstream.script = lambda exchange: exchange.hold(release) and exchange.answer()
    client = rig.connect()
    for number in range(20):
        client.create(stream_id=f"lane-{number}")
    rig.upstream.wait_for(16)
    client.assert_silent(0.5)
    assert len(rig.upstream.requests) == 16, "protocol.md §6.1: 16 running responses a connection"
    release.set()
    ended = [client.until(*TERMINAL, lane="*")[-1] for _ in range(20)]
    assert {event["type"] for event in ended} == {"response.completed"}
    assert len({event["stream_id"] for event in ended}) == 20
