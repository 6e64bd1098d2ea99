"""Events: protocol.md §10.38-51; named lanes (§10.46) are in test_lanes.py."""

from __future__ import annotations

import json
import threading

import pytest

from tests.conformance.conftest import Rig, Stage
from tests.support.checks import (
    assert_error,
    assert_failed,
    assert_failed_or_502,
    assert_one_terminal,
    assert_strictly_increasing,
    completed,
    output_text,
    real,
    types,
)
from tests.support.events import (
    Json,
    call_item,
    call_output,
    custom_call_item,
    numbered,
    reasoning_item,
    text_item,
    user,
)
from tests.support.gateway import account
from tests.support.upstream import Exchange, sse_bytes
from tests.support.wsclient import TERMINAL

pytestmark = pytest.mark.conformance


def test_10_38_one_id_that_can_be_continued(any_rig: Rig) -> None:
    client = any_rig.connect()
    events = client.turn(store=False)
    final = completed(events)
    ids = {event["response"]["id"] for event in events if "response" in event}
    assert ids == {final["id"]}
    assert final["id"] == any_rig.upstream.requests[0].response_id, "ids pass as they were made"
    completed(client.turn(previous_response_id=final["id"], store=False))


def test_10_39_every_item_has_a_done_event(rig: Rig) -> None:
    """Some upstreams show the items in the terminal event alone."""
    message, call = text_item("only at the end"), call_item("call_end")

    def script(exchange: Exchange) -> None:
        events = exchange.turn([message, call])
        exchange.sse(*numbered([events[0], events[1], events[-1]]))
        exchange.end()

    rig.upstream.queue(script)
    client = rig.connect()
    events = client.turn(store=False)
    final = completed(events)
    done = [e for e in events if e["type"] == "response.output_item.done"]
    assert [event["item"] for event in done] == [message, call]
    assert [event["output_index"] for event in done] == [0, 1]
    assert final["output"] == [message, call]
    output = call_output("call_end")
    completed(client.turn(input=[output], previous_response_id=final["id"], store=False))


@pytest.mark.parametrize(
    "final",
    [
        {**call_item("call_1"), "id": "fc_final"},
        {"type": "custom_tool_call", "call_id": "call_1", "name": "look", "input": "x"},
    ],
    ids=["other id", "other type"],
)
def test_10_39_an_item_that_was_shown_is_not_announced_again(rig: Rig, final: Json) -> None:
    """A client would run the call twice."""
    shown, missing = call_item("call_1"), reasoning_item("sealed")

    def script(exchange: Exchange) -> None:
        events = exchange.turn([shown])
        events[-1]["response"]["output"] = [missing, final]
        exchange.sse(*events)
        exchange.end()

    rig.upstream.queue(script)
    client = rig.connect()
    events = client.turn(store=False)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == [shown, missing], "the client was to see each item once"
    answered = {"input": [call_output("call_1")], "previous_response_id": completed(events)["id"]}
    completed(client.turn(store=False, **answered))


def test_10_40_empty_output_is_filled_in_order(any_rig: Rig) -> None:
    items = [reasoning_item("sealed"), text_item("a"), call_item("call_a"), custom_call_item()]
    any_rig.upstream.queue(lambda exchange: exchange.answer(items, empty_output=True))
    client = any_rig.connect()
    final = completed(client.turn())
    assert final["output"] == items, "SDKs believe an empty list"
    assert final["usage"]["total_tokens"] == 16


def trailing(exchange: Exchange) -> None:
    events = exchange.turn()
    last = events[-1]
    limits = {"type": "codex.rate_limits", "rate_limits": {"primary": {"used_percent": 1}}}
    exchange.sse(*events)
    exchange.sse(last, limits, {"type": "error", "error": {}}, {"type": "response.failed"})
    exchange.sse({"type": "error", "code": "late", "message": "late"})
    exchange.end()


def test_10_41_exactly_one_terminal_and_nothing_after_it(rig: Rig) -> None:
    rig.upstream.queue(trailing)
    client = rig.connect()
    first = completed(client.turn())
    client.assert_silent(0.5)
    events = client.turn(previous_response_id=first["id"])
    assert output_text(events) == "hello"
    assert events[0]["type"] == "response.created"


def test_10_41_nothing_follows_an_error(stage: Stage) -> None:
    def script(exchange: Exchange) -> None:
        exchange.sse({"type": "error", "code": "invalid_prompt", "message": "no", "param": None})
        exchange.sse(*exchange.turn())
        exchange.end()

    upstream = stage.upstream()
    upstream.queue(script)
    client = stage.serve(upstream).connect()
    events = client.turn()
    assert_one_terminal(events)
    assert_error(events[-1])
    client.assert_silent(0.5)
    completed(client.turn())


@pytest.mark.parametrize("kind", ["response.cancelled", "response.done"])
@pytest.mark.parametrize("output", [False, True], ids=["before output", "after output"])
def test_10_42_cancelled_and_done_are_no_terminals(stage: Stage, kind: str, output: bool) -> None:
    def script(exchange: Exchange) -> None:
        events = exchange.turn()
        head = events[:-1] if output else events[:2]
        status = kind.removeprefix("response.").replace("done", "completed")
        response = {**events[-1]["response"], "status": status}
        exchange.sse(*numbered([*head, {"type": kind, "response": response}]))
        exchange.end()

    upstream = stage.upstream(script)
    client = stage.serve(upstream).connect()
    client.create()
    events = client.until_terminal()
    assert events[-1]["type"] in TERMINAL
    assert_one_terminal(events)
    client.assert_silent(0.3)


USAGES: list[Json] = [
    {"input_tokens": 5},
    {"input_tokens": 5, "output_tokens": 6},
    {"input_tokens": 5, "output_tokens": 6, "total_tokens": None},
    {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11, "input_tokens_details": {}},
    {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11, "output_tokens_details": {}},
    {},
]


@pytest.mark.parametrize("usage", USAGES, ids=str)
@pytest.mark.parametrize("empty_output", [False, True])
def test_10_43_usage_is_null_or_complete(rig: Rig, usage: Json, empty_output: bool) -> None:
    rig.upstream.queue(lambda e: e.answer(usage=usage, empty_output=empty_output))
    seen = completed(rig.connect().turn()).get("usage")
    if seen is not None:
        for name in ("input_tokens", "output_tokens", "total_tokens"):
            assert type(seen.get(name)) is int, f"usage without {name} ends a turn of Codex: {seen}"
            assert seen[name] == usage.get(name, seen[name]) or usage.get(name) is None
        inner = {"input_tokens_details": "cached_tokens"}
        inner["output_tokens_details"] = "reasoning_tokens"
        for name, required in inner.items():
            if isinstance(seen.get(name), dict):
                assert type(seen[name].get(required)) is int, f"{name} needs {required}: {seen}"


def test_10_44_prefixed_item_ids_are_kept(any_rig: Rig) -> None:
    items = [reasoning_item("sealed"), text_item(item_id="msg_0123-abc"), call_item()]
    any_rig.upstream.queue(lambda exchange: exchange.answer(items))
    events = any_rig.connect().turn()
    done = [e["item"]["id"] for e in events if e["type"] == "response.output_item.done"]
    assert done == [item["id"] for item in items]


def test_10_45_the_stored_item_is_the_one_the_client_saw(replay_rig: Rig) -> None:
    item: Json = {
        **text_item("x"),
        "phase": "final",
        "unheard_of": {"deep": [1.0, None, "\u2028"]},
    }
    item["content"][0]["annotations"] = [{"type": "url_citation", "url": "u"}]
    replay_rig.upstream.queue(lambda exchange: exchange.answer([item], empty_output=True))
    client = replay_rig.connect()
    events = client.turn(input=[user("a")])
    seen = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    final = completed(events)
    completed(client.turn(input=[user("b")], previous_response_id=final["id"]))
    assert seen == [item]
    assert final["output"] == [item]
    assert replay_rig.upstream.requests[1].input == [user("a"), item, user("b")]


# ---- sequence numbers and housekeeping events


def test_10_47_sequence_numbers_increase_with_keepalives_in_between(stage: Stage) -> None:
    releases = [threading.Event() for _ in range(3)]

    def script(exchange: Exchange) -> None:
        events = exchange.turn([text_item("abcdef")], pieces=3)
        for at, release in zip((2, 5, 7), releases, strict=True):
            exchange.sse(*events[{2: 0, 5: 2, 7: 5}[at] : at])
            exchange.hold(release)
        exchange.sse(*events[7:])
        exchange.end()

    upstream = stage.upstream(script)
    session = {"keepalive_seconds": 0.15, "hold_seconds": 0.1}
    client = stage.gateway(account("solo", upstream), session=session).connect()
    client.create()
    events: list[Json] = []
    for number, release in enumerate(releases):
        wanted = ("response.in_progress", *["response.output_text.delta"] * 2)[number]
        events += client.until(wanted)
        events += [client.event(10), client.event(10)]
        release.set()
    events += client.until_terminal()
    completed(events)
    assert_strictly_increasing(events)
    assert types(real(events)).count("response.output_text.delta") == 3


def test_10_47_sequence_numbers_increase_after_an_unseen_retry(stage: Stage) -> None:
    def fails(exchange: Exchange) -> None:
        exchange.sse(*exchange.turn()[:2])
        exchange.close()

    bad, good = stage.upstream(fails), stage.upstream()
    gateway = stage.serve(bad, good)
    for _ in range(2):  # one of the two conversations starts on the bad one
        events = gateway.connect().turn()
        completed(events)
        assert_strictly_increasing(events)
        assert types(events).count("response.created") == 1


METADATA: Json = {
    "type": "response.metadata",
    "headers": {"x-codex-turn-state": "opaque", "openai-model": "gpt-5.5"},
    "metadata": {"a": 1},
}


@pytest.mark.parametrize("at", [0, 1, 2, 4])
def test_10_48_response_metadata_passes(rig: Rig, at: int) -> None:
    def script(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(*events[:at], METADATA, *events[at:])
        exchange.end()

    rig.upstream.queue(script)
    client = rig.connect()
    events = client.turn()
    completed(events)
    passed = next(event for event in events if event["type"] == "response.metadata")
    state = passed["headers"].pop("x-codex-turn-state")
    assert passed == {**METADATA, "headers": {"openai-model": "gpt-5.5"}}
    assert state != "opaque", "the client gets the gateway's own turn state in its place"
    client.turn(client_metadata={"x-codex-turn-state": state})
    assert rig.upstream.requests[-1].header("x-codex-turn-state") == "opaque"


def test_10_48_turn_state_leads_back_to_its_account(stage: Stage) -> None:
    upstreams = {name: stage.upstream() for name in ("a", "b", "c")}
    for name, upstream in upstreams.items():

        def script(exchange: Exchange, state: str = f"state-{name}") -> None:
            events = exchange.turn()
            headers = {"x-codex-turn-state": state}
            metadata = {"type": "response.metadata", "headers": headers, "metadata": {}}
            exchange.start(headers=headers)
            exchange.sse(events[0], metadata, *events[1:])
            exchange.end()

        upstream.default = upstream.script = script
    gateway = stage.gateway(*(account(name, up) for name, up in upstreams.items()))
    events = gateway.connect().turn()
    state = next(e["headers"]["x-codex-turn-state"] for e in events if "headers" in e)
    name, home = next((name, each) for name, each in upstreams.items() if each.requests)
    for count in (2, 3, 4):
        completed(gateway.connect().turn(client_metadata={"x-codex-turn-state": state}))
        assert len(home.requests) == count, "the echoed turn state names the account"
        assert home.requests[-1].header("x-codex-turn-state") == f"state-{name}"


def test_10_49_rate_limits_never_follow_the_terminal(rig: Rig) -> None:
    limits = {"type": "codex.rate_limits", "rate_limits": {"primary": {"used_percent": 1}}}

    def script(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(limits, *events[:3], limits, *events[3:], limits)
        exchange.end()

    rig.upstream.queue(script)
    client = rig.connect()
    completed(client.turn())
    client.assert_silent(0.5)


def test_10_50_end_turn_is_not_invented(any_rig: Rig) -> None:
    client = any_rig.connect()
    any_rig.upstream.queue(lambda exchange: exchange.answer(empty_output=True), Exchange.answer)
    assert "end_turn" not in completed(client.turn())
    assert "end_turn" not in completed(client.turn())
    assert "end_turn" not in completed(client.turn(generate=False))
    any_rig.upstream.queue(lambda exchange: exchange.answer(end_turn=False))
    assert completed(client.turn())["end_turn"] is False


@pytest.mark.parametrize("how", ["end", "close", "reset"])
@pytest.mark.parametrize("sent", ["nothing", "created", "delta", "item done"])
def test_10_51_end_of_stream_without_terminal_is_a_failure(
    stage: Stage, how: str, sent: str
) -> None:
    def script(exchange: Exchange) -> None:
        events = exchange.turn([text_item("a"), text_item("b")])
        done = types(events).index("response.output_item.done") + 1
        exchange.start()
        exchange.sse(*events[: {"nothing": 0, "created": 2, "delta": 5, "item done": done}[sent]])
        if sent != "nothing" and how == "reset":
            exchange.hold(timeout=0.3)  # a reset would overtake what is still in the buffers
        getattr(exchange, how)()

    upstream = stage.upstream(script)
    client = stage.serve(upstream).connect()
    events = client.turn()
    if sent in ("nothing", "created"):
        assert_failed_or_502(events)
    else:
        assert_one_terminal(events)
        failed = assert_failed(events[-1])
        assert failed["id"] == events[0]["response"]["id"]
        assert len(upstream.requests) == 1, "after output nothing is sent again"
    assert_strictly_increasing(events)
    client.assert_silent(0.3)
    upstream.script = Exchange.answer
    completed(client.turn())


def test_10_51_a_created_that_was_shown_fails_under_the_same_id(stage: Stage) -> None:
    release = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.sse(*exchange.turn()[:2])
        exchange.hold(release)
        exchange.end()

    upstream = stage.upstream(script)
    client = stage.gateway(account("solo", upstream), session={"hold_seconds": 0.1}).connect()
    client.create()
    shown = client.until("response.in_progress")
    release.set()
    events = shown + client.until_terminal()
    failed = assert_failed(events[-1])
    assert failed["id"] == shown[0]["response"]["id"]
    assert_strictly_increasing(events)


def test_an_unparsable_event_does_not_end_the_turn(rig: Rig) -> None:
    def script(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(*events[:3])
        exchange.chunks(b"data: {not json\n\n", b"event: response.x\n\n", b"data:\n\n")
        exchange.chunks(*(sse_bytes(event) for event in events[3:]))
        exchange.end()

    rig.upstream.queue(script)
    client = rig.connect()
    client.create()
    seen: list[Json] = []
    while not seen or seen[-1]["type"] not in TERMINAL:
        try:
            seen.append(json.loads(client.text()))
        except json.JSONDecodeError:
            continue  # passed on as it was: a client skips it
    assert seen[-1]["type"] == "response.completed"
