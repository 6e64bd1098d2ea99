"""Recordings on the admin side: who may ask for them, who may read them, and what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from gateway.admin.page import recordings_page, timeline_page
from gateway.admin.views.recordings import MAX_LINES, timeline
from gateway.config import ContentLogSettings
from gateway.request_log.files import LogLine, LogPage
from gateway.routing.affinity import connection_key, opaque_id
from tests.admin.stage import BEARER, OWN, TOKEN, Admin, Answer
from tests.admin.test_openapi import check
from tests.admin.test_page import ATTACKS, assert_harmless, parsed, text
from tests.support.events import text_item, turn_events, user

CONVERSATION = opaque_id(connection_key("laptop", "c-1"))
HTML = "accept: text/html"
SECRET_WORDS = "only for the operator"


def admin(place: Path, token: str | None = TOKEN, **more: Any) -> Admin:
    made = Admin(token)
    log = made.world.services.request_log
    log.configure(ContentLogSettings(directory=str(place / "requests"), **{"keys": (), **more}))
    return made


def record(of: Admin, lines: int = 0) -> str:
    """Records a turn; the name of its file."""
    log = of.world.services.request_log
    recording = log.recording(
        log.asking("laptop", "m", CONVERSATION), "c-1.1", "laptop", 1_764_561_696.0
    )
    recording.request({"model": "m"}, json.dumps({"input": SECRET_WORDS}).encode())
    event = json.dumps({"type": "response.output_text.delta", "delta": "<b>x</b>"}).encode()
    for _ in range(lines):
        recording.note("to_client", {}, event)
    recording.note("end", {"status": "completed"})
    return recording.name


# --- asking for recordings ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "name"), [("key", "laptop"), ("account", "a"), ("conversation", CONVERSATION)]
)
def test_an_operator_records_one_thing_for_ten_minutes(
    tmp_path: Path, what: str, name: str
) -> None:
    it = admin(tmp_path)
    it.world.completed([user("hi")], turn_events([text_item()], "resp_1"))
    answer = it.post("/admin/record", {what: name}, BEARER)
    assert answer.status == 200, answer.body
    until = it.clock.seconds() + 600
    assert answer.json["until"] == until
    (rule,) = it.json("/status/recordings", BEARER)["recorded"]
    assert rule == {"what": what, "name": name, "until": until, "turns": 0}
    assert it.json("/status", BEARER)["recordings"] == [rule]
    stopped = it.post("/admin/record/stop", {what: name}, BEARER)
    assert stopped.json["result"] == f"the {what} {name} is no longer recorded"
    assert it.json("/status/recordings", BEARER)["recorded"] == []
    assert it.post("/admin/record/stop", {what: name}, BEARER).status == 404
    actions = it.json("/status/audit", BEARER)["actions"]
    assert [(each["action"], each["done"]) for each in actions] == [
        ("stop recording", False),
        ("stop recording", True),
        ("record", True),
    ]
    assert actions[-1]["target"] == f"{what} {name}"


def test_a_conversation_is_found_by_its_response(tmp_path: Path) -> None:
    it = admin(tmp_path)
    it.world.completed([user("hi")], turn_events([text_item()], "resp_1"))
    it.post("/admin/record", {"conversation": "resp_1"}, BEARER)
    assert it.json("/status/recordings", BEARER)["recorded"][0]["name"] == CONVERSATION


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"key": "laptop", "account": "a"}, 400),
        ({"key": ["laptop"]}, 400),
        ({"key": "nobody"}, 404),
        ({"account": "nobody"}, 404),
        ({"conversation": "nothing"}, 404),
        *(({"key": "laptop", "minutes": each}, 400) for each in (-1, "x", 1441, "inf", "nan", [1])),
    ],
)
def test_what_makes_no_sense_records_nothing(tmp_path: Path, body: Any, status: int) -> None:
    it = admin(tmp_path)
    assert it.post("/admin/record", body, BEARER).status == status
    assert it.world.services.request_log.rules == ()


def test_another_time_may_be_given_by_json_or_a_form(tmp_path: Path) -> None:
    it = admin(tmp_path)
    it.post("/admin/record", {"key": "laptop", "minutes": 0.5}, BEARER)
    it.clock.advance(30)
    assert it.world.services.request_log.rules == ()
    cookie = it.log_in().cookie
    answer = it.form("/admin/record", "key=laptop&minutes=90", cookie, OWN)
    assert (answer.status, answer.headers["location"]) == (303, "/status#recordings")
    (rule,) = it.world.services.request_log.rules
    assert rule.until == it.clock.seconds() + 5400


@pytest.mark.parametrize("path", ["/admin/record", "/admin/record/stop"])
def test_nobody_else_may_ask(tmp_path: Path, path: str) -> None:
    it = admin(tmp_path)
    assert it.post(path, {"key": "laptop"}).status == 401
    open_to_all = admin(tmp_path, token=None)
    assert open_to_all.post(path, {"key": "laptop"}).status == 403
    assert it.world.services.request_log.rules == ()


# --- reading -----------------------------------------------------------------------------


def test_content_is_only_for_those_who_may_act(tmp_path: Path) -> None:
    it = admin(tmp_path, keys=("*",))
    path = f"/status/recordings/{record(it)}"
    for headers in ((), (HTML,), ("authorization: Bearer wrong",), ("cookie: gateway_admin=x",)):
        answer = it.ask(path, *headers)
        assert answer.status == 401, headers
        assert SECRET_WORDS.encode() not in answer.body
    assert SECRET_WORDS.encode() in it.ask(path, BEARER).body
    cookie = it.log_in().cookie
    assert SECRET_WORDS.encode() in it.ask(path, cookie, HTML).body
    cross = it.ask(path, cookie, "sec-fetch-site: cross-site")
    assert cross.status == 403
    assert SECRET_WORDS.encode() not in cross.body


@pytest.mark.parametrize("headers", [(), (HTML,), (BEARER,)])
def test_where_anybody_may_look_content_still_needs_a_token(
    tmp_path: Path, headers: tuple[str, ...]
) -> None:
    it = admin(tmp_path, token=None, keys=("*",))
    name = record(it)
    assert it.ask("/status/recordings").json["files"][0]["name"] == name
    for path in ("/status", "/status/recordings", "/status/turns", f"/status/recordings/{name}"):
        answer = it.ask(path, *headers)
        assert SECRET_WORDS.encode() not in answer.body, path
    assert it.ask(f"/status/recordings/{name}", *headers).status == 403


def test_who_read_a_recording_is_noted(tmp_path: Path) -> None:
    it = admin(tmp_path, keys=("*",))
    name = record(it)
    it.ask(f"/status/recordings/{name}", BEARER)
    (noted,) = it.json("/status/audit", BEARER)["actions"]
    assert (noted["who"], noted["action"], noted["target"]) == ("token", "read a recording", name)


def test_who_reads_only_the_rest_of_a_recording_is_noted_too(tmp_path: Path) -> None:
    it = admin(tmp_path, keys=("*",))
    path = f"/status/recordings/{record(it)}"
    for start in (1, 2, 3):
        assert SECRET_WORDS.encode() in it.ask(f"{path}?from={start}", BEARER).body
    it.post("/admin/log-level", {"level": "warn"}, BEARER)
    it.ask(f"{path}?from=1", BEARER)
    noted = it.json("/status/audit", BEARER)["actions"]
    assert [each["action"] for each in noted] == [
        "read a recording",
        "set the log level",
        "read a recording",
    ]


def test_a_turn_is_a_timeline(tmp_path: Path) -> None:
    it = admin(tmp_path, keys=("*",))
    found = it.json(f"/status/recordings/{record(it, 1)}", BEARER)
    assert [(step["kind"], step["title"]) for step in found["steps"]] == [
        ("request", "request"),
        ("to_client", "response.output_text.delta"),
        ("end", "end completed"),
    ]
    assert found["next"] is None
    assert SECRET_WORDS in found["steps"][0]["text"]


def test_answers_are_as_described(tmp_path: Path) -> None:
    it = admin(tmp_path, keys=("*",))
    check("Timeline", it.json(f"/status/recordings/{record(it, 1)}", BEARER))
    check("Recordings", it.json("/status/recordings", BEARER))
    check("Done", it.post("/admin/record", {"key": "laptop"}, BEARER).json)


def test_a_long_recording_has_pages(tmp_path: Path) -> None:
    it = admin(tmp_path, keys=("*",))
    path = f"/status/recordings/{record(it, 250)}"
    starts, steps = [], 0
    start: int | None = 0
    while start is not None:
        found = it.json(path + (f"?from={start}" if start else ""), BEARER)
        starts.append(found["start"])
        steps += len(found["steps"])
        start = found["next"]
    assert (len(starts), steps) == (3, 252)
    page = it.ask(f"{path}?from={starts[1]}", BEARER, HTML).body
    assert b"First page" in page
    assert f"?from={starts[2]}".encode() in page
    assert page.count(b'class="step') == MAX_LINES


@pytest.mark.parametrize("start", ["x", "-1", "0", "1" * 20])
def test_a_page_that_is_none_is_said_to_be_wrong(tmp_path: Path, start: str) -> None:
    it = admin(tmp_path, keys=("*",))
    assert it.ask(f"/status/recordings/{record(it)}?from={start}", BEARER).status == 400


def test_what_vanished_is_not_found_and_nothing_else_is_read(tmp_path: Path) -> None:
    it = admin(tmp_path, keys=("*",))
    name = record(it)
    (tmp_path / "requests" / name).unlink()
    (tmp_path / "requests" / "notes.txt").write_text("private")
    for wanted in (name, "notes.txt", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd"):
        assert it.ask(f"/status/recordings/{wanted}", BEARER).status == 404, wanted
    assert it.json("/status/recordings", BEARER)["files"] == []


def test_a_disk_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    it = admin(tmp_path)
    it.world.services.request_log._in_thread = lambda _: Deferred()
    for path in ("/status/recordings", "/status/recordings/x"):
        client = it.client()
        client.sends(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{BEARER}\r\n\r\n".encode())
        assert client.received == b""
        it.clock.advance(60)
        assert client.answer.status == 503


def test_the_list_leads_to_the_recordings_of_those_who_may_read_them(tmp_path: Path) -> None:
    it = admin(tmp_path, keys=("*",))
    name = record(it)
    answer: Answer = it.ask("/status/recordings", BEARER, HTML)
    assert f'href="/status/recordings/{name}"'.encode() in answer.body
    assert f'href="/status/recordings/{name}"'.encode() not in recordings_page(
        it.json("/status/recordings", BEARER), False
    )
    assert_harmless(answer.body, parsed(answer.body))


# --- what others wrote ---------------------------------------------------------------------


def page_of(*lines: bytes, whole: bool = True) -> bytes:
    found = [LogLine(line, len(line), whole) for line in lines]
    return timeline_page(timeline("v1.log", LogPage(found, 0, 10, 10)))


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_word_of_a_recording_becomes_markup(attack: str) -> None:
    word = attack.encode("utf-8", "replace").decode()
    lines = [
        {"ms": 1, "kind": "to_client", "body": {"type": word, word: word}},
        {"ms": 1, "kind": "attempt", "account": word, "attempt": 1, "status": word},
        {"ms": word, "kind": word, "error": word},
    ]
    page = page_of(*(json.dumps(line).encode() for line in lines), word.encode())
    root = parsed(page)
    assert_harmless(page, root)
    if word.isprintable() and "alert(1)" in word:
        assert "alert(1)" in text(root), "it is shown nevertheless"


def test_lines_that_were_cut_off_are_shown_in_part() -> None:
    long = b'{"ms":7.5,"kind":"request","body":{"input":"' + b"a" * 70_000
    found = timeline("f", LogPage([LogLine(long, 5_000_000), LogLine(b'{"ms"', 5, False)], 0, 9, 9))
    first, second = found["steps"]
    assert (first["ms"], first["kind"], first["is_whole"]) == (7.5, "request", False)
    assert len(first["text"]) < 25_000
    assert (second["ms"], second["kind"], second["is_whole"]) == (None, "", False)


@given(
    st.lists(
        st.binary(max_size=60)
        | st.recursive(
            st.none() | st.floats() | st.text(max_size=5),
            lambda inner: st.dictionaries(
                st.sampled_from(["ms", "kind", "body", "attempt", "account", "status", "type"]),
                inner,
            ),
            max_leaves=5,
        ).map(lambda value: json.dumps(value).encode()),
        max_size=4,
    )
)
@settings(max_examples=50, deadline=None)
def test_whatever_a_file_has_is_a_page(lines: list[bytes]) -> None:
    page = page_of(*lines)
    assert_harmless(page, parsed(page))
