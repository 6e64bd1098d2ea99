"""``/events``: one snapshot for all who listen, and nobody who does not read holds anything up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.admin.live import MAX_LISTENERS
from tests.admin.stage import BEARER, OWN, TOKEN, Admin, Client
from tests.support.events import text_item, turn_events, user


def listen(admin: Admin, *headers: str) -> Client:
    client = admin.client()
    lines = ["GET /events HTTP/1.1", "host: localhost", "content-length: 0", *headers, "", ""]
    client.sends("\r\n".join(lines).encode())
    return client


def events(client: Client) -> list[tuple[str, Any]]:
    """The events so far; chunks are undone by looking for lines alone."""
    found, name = [], ""
    for line in client.received.decode().replace("\r\n", "\n").split("\n"):
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            found.append((name, json.loads(line[6:])))
    return found


def statuses(client: Client) -> list[Any]:
    return [value for name, value in events(client) if name == "status"]


def test_a_listener_hears_how_it_stands_at_once_and_every_second() -> None:
    admin = Admin()
    client = listen(admin)
    answer = client.answer
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert b"retry: " in answer.body
    assert len(statuses(client)) == 1
    for _ in range(3):
        admin.clock.advance(1)
    shown = statuses(client)
    assert len(shown) == 4
    assert "history" not in shown[0], "the history is sent once, by /status"
    assert {"now", "newest", "accounts", "keys", "turns_omitted"} <= set(shown[0])


def test_the_snapshot_is_made_once_for_all_and_never_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    admin = Admin()
    real = admin.managed.view
    monkeypatch.setattr(admin.managed, "view", lambda name: made.append(1) or real(name))
    clients = [listen(admin) for _ in range(10)]
    assert len(made) == 1
    for _ in range(5):
        admin.clock.advance(1)
    assert len(made) == 6, "ten pages should cost as much as one"
    for client in clients:
        client.leaves()
    admin.clock.advance(60)
    assert len(made) == 6
    assert admin.clock.getDelayedCalls() == [], "a timer runs for nobody"


def test_a_page_that_heard_of_a_change_is_never_given_what_was_drawn_before() -> None:
    admin = Admin()
    client = listen(admin)
    admin.clock.advance(0.7)
    ask = ("/status?part=accounts", "accept: text/html")
    assert b'data-state="disabled"' not in admin.ask(*ask).body
    admin.world.accounts["a"].health.disable()
    admin.clock.advance(0.3)
    states = {each["name"]: each["state"] for each in statuses(client)[-1]["accounts"]}
    assert states["a"] == "disabled"
    assert b'data-state="disabled"' in admin.ask(*ask).body, "no event would tell it again"


def test_a_page_that_heard_of_a_turn_is_given_that_turn() -> None:
    admin = Admin()
    client = listen(admin)
    admin.clock.advance(0.7)
    ask = ("/status?part=turns", "accept: text/html")
    assert b"resp_told" not in admin.ask(*ask).body
    admin.world.completed([user("hi")], turn_events([text_item()], "resp_told"))
    assert b"event: turn" in client.received
    assert b"resp_told" in admin.ask(*ask).body, "no event would tell it again"


def test_finished_turns_are_told_up_to_a_rate() -> None:
    admin = Admin()
    client = listen(admin)
    for number in range(30):
        admin.world.completed([user("secret")], turn_events([text_item()], f"resp_{number}"))
    turns = [value for name, value in events(client) if name == "turn"]
    assert [turn["response_id"] for turn in turns] == [f"resp_{n}" for n in range(20)]
    admin.clock.advance(1)
    assert statuses(client)[-1]["turns_omitted"] == 10
    admin.world.completed([user("x")], turn_events([text_item()], "resp_x"))
    admin.clock.advance(1)
    assert events(client)[-2][1]["response_id"] == "resp_x"
    assert statuses(client)[-1]["turns_omitted"] == 0
    assert b"secret" not in client.received


def test_who_does_not_read_gets_nothing_more_and_is_dropped() -> None:
    admin = Admin()
    slow, quick = listen(admin), listen(admin)
    slow.channel.pauseProducing()
    before = len(slow.received)
    for _ in range(9):
        admin.clock.advance(1)
    assert len(slow.received) == before, "the events pile up for one who does not read"
    assert not slow.closed
    for _ in range(3):
        admin.clock.advance(1)
    assert slow.closed
    assert slow.transport.aborted
    assert len(statuses(quick)) == 13, "one slow reader held up another"
    assert (len(admin.api.live), admin.api.live.dropped) == (1, 1)


def test_who_catches_up_goes_on_with_what_is_new() -> None:
    admin = Admin()
    client = listen(admin)
    client.channel.pauseProducing()
    for _ in range(5):
        admin.clock.advance(1)
    client.channel.resumeProducing()
    admin.clock.advance(1)
    assert [each["uptime_seconds"] for each in statuses(client)] == [0, 6]


def test_only_so_many_listen() -> None:
    admin = Admin()
    clients = [listen(admin) for _ in range(MAX_LISTENERS)]
    refused = listen(admin).answer
    assert (refused.status, refused.headers["retry-after"]) == (503, "30")
    clients[0].leaves()
    assert listen(admin).answer.status == 200


def test_a_logout_ends_what_its_pages_hear() -> None:
    admin = Admin(TOKEN)
    assert listen(admin).answer.status == 401
    cookie = admin.log_in().cookie
    client = listen(admin, cookie)
    admin.clock.advance(1)
    assert len(statuses(client)) == 2
    admin.form("/logout", "", OWN, cookie)
    admin.clock.advance(1)
    assert len(statuses(client)) == 2, "a page went on to hear after its logout"
    assert len(admin.api.live) == 0


@pytest.mark.parametrize("before", [None, TOKEN])
def test_another_token_ends_what_was_heard_with_the_old_one(before: str | None) -> None:
    admin = Admin(before)
    listen(admin, BEARER)
    admin.access.reconfigure("another", ())
    admin.clock.advance(1)
    assert len(admin.api.live) == 0


def test_listening_does_not_keep_a_session_alive() -> None:
    admin = Admin(TOKEN)
    cookie = admin.log_in().cookie
    client = listen(admin, cookie)
    for _ in range(13):
        admin.clock.advance(3600)
    assert len(admin.api.live) == 0
    assert admin.ask("/status", cookie).status == 401
    client.leaves()


def test_the_end_of_the_gateway_ends_the_events() -> None:
    admin = Admin()
    client = listen(admin)
    admin.site.stopFactory()
    assert client.received.endswith(b"0\r\n\r\n"), "the answer should end in order"
    assert admin.clock.getDelayedCalls() == []
    client.leaves()


def test_kept_connections_end_with_the_listener_so_that_probes_reach_a_successor() -> None:
    admin = Admin()
    get = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
    idle, late = admin.client(), admin.client()
    idle.sends(get)
    assert not idle.closed, "kept for the next request"
    admin.site.stopFactory()
    assert idle.closed
    late.sends(get)
    assert late.answer.status == 200
    assert late.closed
    admin.site.startFactory()
    again = admin.client()
    again.sends(get)
    assert (again.answer.status, again.closed) == (200, False)
