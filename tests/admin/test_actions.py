"""What an operator does: with accounts, conversations and the gateway; and what is noted of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from twisted.logger import LogEvent, globalLogPublisher

from gateway.admin.actions import ANSWER_SECONDS
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.protocol.errors import ApiError
from gateway.routing.affinity import AffinityKey, connection_key, opaque_id
from gateway.upstream.interface import BodyReceiver, ForwardedRequest
from gateway.upstream.proxy import UnavailableProxy
from tests.admin.stage import BEARER, OWN, TOKEN, Admin, Way
from tests.support.events import text_item, turn_events, user

CONVERSATION = opaque_id(connection_key("laptop", "c-1"))


def state(admin: Admin, name: str = "a") -> Any:
    shown = admin.json("/status/accounts", BEARER)["accounts"]
    return next(each for each in shown if each["name"] == name)


# --- accounts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "becomes", "offers"),
    [
        ("pause", "disabled", ["resume", "clear", "probe"]),
        ("drain", "draining", ["pause", "resume", "clear", "probe"]),
    ],
)
def test_an_account_is_taken_out_and_put_back(action: str, becomes: str, offers: list[str]) -> None:
    admin = Admin(TOKEN)
    answer = admin.post(f"/admin/accounts/a/{action}", None, BEARER)
    assert (answer.status, answer.json["state"]) == (200, becomes)
    shown = state(admin)
    assert (shown["state"], shown["why"], shown["until"]) == (becomes, "the operator", None)
    assert shown["actions"] == offers
    admin.world.completed([user("hi")], turn_events([text_item()], "resp_1"))
    assert admin.world.exchanges("a") == [], "an account that was taken out got a turn"
    assert admin.post("/admin/accounts/a/resume", None, BEARER).json["state"] == "ready"


def test_a_cleared_account_rests_no_longer() -> None:
    admin = Admin(TOKEN)
    health = admin.world.accounts["a"].health
    health.refused(None, Fault(FaultKind.EXHAUSTED, "used up", None))
    assert state(admin)["state"] == "exhausted"
    answer = admin.post("/admin/accounts/a/clear", None, BEARER)
    assert answer.json["state"] == "ready"


def test_a_cleared_account_forgives_its_proxy_too() -> None:
    admin = Admin(TOKEN)
    way: Any = Way(UnavailableProxy("the proxy refused the connection", admin.clock.seconds() + 30))
    admin.world.accounts["a"]._egress = way
    assert state(admin)["state"] == "cooling"
    admin.post("/admin/accounts/a/clear", None, BEARER)
    assert state(admin)["state"] == "ready"
    assert admin.world.upstreams["a"].forgotten == 1, "expected WebSockets to be tried again"


def test_a_turn_that_waits_is_served_when_an_account_is_resumed() -> None:
    admin = Admin(TOKEN, accounts=1)
    woken: list[bool] = []
    admin.world.accounts["a"].health.disable()
    admin.world.services.waiting.wait(
        "laptop", 10, lambda: bool(woken.append(True)) or True, lambda: None, ()
    )
    admin.post("/admin/accounts/a/resume", None, BEARER)
    assert woken, "nobody told the waiting room"


@pytest.mark.parametrize("path", ["a/explode", "nobody/pause", "a/_pause", "a/__init__"])
def test_what_does_not_exist_is_not_found_and_done_to_nobody(path: str) -> None:
    admin = Admin(TOKEN)
    assert admin.post(f"/admin/accounts/{path}", None, BEARER).status == 404
    admin.check_nothing_was_done()


class Upstream:
    """Answers a probe as the test says."""

    def __init__(self, play: Callable[[BodyReceiver], None]) -> None:
        self.play = play
        self.calls: list[ForwardedRequest] = []
        self.cancelled = False

    def forward(self, call: ForwardedRequest, receiver: BodyReceiver) -> Upstream:
        self.calls.append(call)
        self.receiver = receiver
        return self

    def sockets(self) -> None:
        """It has none."""

    def start(self) -> None:
        self.play(self.receiver)

    def cancel(self) -> None:
        self.cancelled = True


def probe(play: Callable[[BodyReceiver], None]) -> tuple[Admin, Upstream, Any]:
    admin = Admin(TOKEN)
    upstream = admin.world.accounts["a"].upstream = Upstream(play)  # type: ignore[assignment]
    client = admin.client()
    client.sends(
        f"POST /admin/accounts/a/probe HTTP/1.1\r\nhost: localhost\r\n{BEARER}\r\n"
        "content-length: 0\r\n\r\n".encode()
    )
    return admin, upstream, client  # type: ignore[return-value]


def answers(status: int, body: bytes = b"{}") -> Callable[[BodyReceiver], None]:
    def play(receiver: BodyReceiver) -> None:
        receiver.upstream_answered(status, {})
        receiver.upstream_data(body)
        receiver.upstream_ended(None)

    return play


@pytest.mark.parametrize(("status", "answered"), [(200, True), (401, False), (503, False)])
def test_a_probe_tells_what_the_account_answered(status: int, answered: bool) -> None:
    admin, upstream, client = probe(answers(status))
    shown = client.answer.json
    assert (shown["status"], shown["answered"]) == (status, answered)
    assert [(call.method, call.path) for call in upstream.calls] == [("GET", "/models")]
    assert f"answered {status}" in admin.json("/status/audit", BEARER)["actions"][0]["result"]
    assert state(admin)["state"] == "ready", "a probe is no turn and blames nobody"


def test_a_probe_that_fails_says_why() -> None:
    _, _, client = probe(lambda each: each.upstream_ended(ApiError.bad_gateway("refused", "x")))
    assert "refused" in client.answer.json["result"]


def test_a_probe_has_a_deadline() -> None:
    admin, upstream, client = probe(lambda _: None)
    assert client.received == b""
    admin.clock.advance(ANSWER_SECONDS)
    assert "no answer within" in client.answer.json["error"]
    assert upstream.cancelled
    upstream.receiver.upstream_ended(None)  # too late; nobody minds


def test_a_probe_whose_client_is_gone_ends_quietly() -> None:
    admin, _, client = probe(lambda _: None)
    client.leaves()
    admin.clock.advance(ANSWER_SECONDS)
    assert admin.json("/status/audit", BEARER)["actions"][0]["action"] == "probe"


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    def endless(receiver: BodyReceiver) -> None:
        receiver.upstream_answered(200, {})
        for _ in range(100):
            receiver.upstream_data(b"x" * 100_000)

    _, upstream, client = probe(endless)
    assert client.answer.json["answered"] is True
    assert upstream.cancelled


# --- conversations -----------------------------------------------------------------------


def talked(**more: Any) -> Admin:
    admin = Admin(TOKEN, **more)
    first = admin.world.completed([user("hi")], turn_events([text_item()], "resp_1"))
    events = turn_events([text_item("msg_2")], "resp_2", previous_response_id="resp_1")
    admin.world.completed([user("more")], events, parent=first)
    return admin


@pytest.mark.parametrize("name", [CONVERSATION, "resp_1", "resp_2"])
def test_an_unpinned_conversation_chooses_anew(name: str) -> None:
    admin = talked()
    assert admin.post(f"/admin/conversations/{name}/unpin", None, BEARER).status == 200
    assert len(admin.world.services.pool.bindings) == 0
    assert admin.post(f"/admin/conversations/{name}/unpin", None, BEARER).status == 404


def test_a_moved_conversation_goes_to_another_account_and_stays_there() -> None:
    admin = talked()
    first = admin.world.conversations.get("laptop", "resp_2")
    assert first is not None
    assert first.record.account == "a"
    answer = admin.post("/admin/conversations/resp_2/move", None, BEARER)
    assert (answer.status, answer.json["leaves"]) == (200, "a")
    shown = admin.json("/status/conversations", BEARER)["conversations"][0]
    assert (shown["account"], shown["leaves"]) == ("a", "a")
    events = turn_events([text_item("msg_3")], "resp_3")
    third = admin.world.completed([user("go")], events, parent=first)
    assert third.record.account == "b", "the conversation should have left its account"
    replayed = admin.world.exchanges("b")[-1].body
    assert replayed.get("previous_response_id") is None, "b cannot know a's responses"
    assert len(replayed["input"]) > 1, "the transcript should have moved along"
    shown = admin.json("/status/conversations", BEARER)["conversations"][0]
    assert (shown["account"], shown["leaves"]) == ("b", None)
    assert "by the operator" in shown["why"]
    events = turn_events([text_item("msg_4")], "resp_4", previous_response_id="resp_3")
    fourth = admin.world.completed([user("go")], events, parent=third)
    assert fourth.record.account == "b", "it should stay where it was moved to"


def test_a_conversation_that_nobody_else_can_take_stays() -> None:
    admin = talked(accounts=1)
    admin.post(f"/admin/conversations/{CONVERSATION}/move", None, BEARER)
    parent = admin.world.conversations.get("laptop", "resp_2")
    events = turn_events([text_item("msg_3")], "resp_3", previous_response_id="resp_2")
    assert admin.world.completed([user("x")], events, parent=parent).record.account == "a"


@pytest.mark.parametrize("name", [CONVERSATION, "resp_1", "resp_2"])
def test_a_dropped_conversation_is_forgotten_with_its_responses(name: str) -> None:
    admin = talked()
    answer = admin.post(f"/admin/conversations/{name}/drop", None, BEARER)
    assert (answer.status, answer.json["responses"]) == (200, 2)
    assert admin.world.conversations.get("laptop", "resp_1") is None
    assert admin.world.conversations.figures().bytes == 0
    assert len(admin.world.services.pool.bindings) == 0
    assert admin.post("/admin/conversations/resp_1/drop", None, BEARER).status == 404


@pytest.mark.parametrize("name", ["nothing", "00", "zz", "%F0%9F%90%88", "0" * 400])
@pytest.mark.parametrize("action", ["unpin", "move", "drop", "explode"])
def test_nothing_is_done_to_an_unknown_conversation(name: str, action: str) -> None:
    admin = talked()
    assert admin.post(f"/admin/conversations/{name}/{action}", None, BEARER).status == 404
    assert len(admin.world.services.pool.bindings) == 1


# --- the gateway -------------------------------------------------------------------------


def test_the_log_level_changes_at_once() -> None:
    admin = Admin(TOKEN)
    answer = admin.post("/admin/log-level", {"level": "debug"}, BEARER)
    assert (answer.status, admin.threshold.level) == (200, "debug")
    assert admin.threshold.predicate.logLevelForNamespace("gateway.turn").name == "debug"
    assert admin.json("/status/config", BEARER)["log_level"] == "debug"
    cookie = admin.log_in().cookie
    assert admin.form("/admin/log-level", "level=warn", OWN, cookie).status == 303
    assert admin.threshold.level == "warn"


class Guest:
    def __init__(self) -> None:
        self.drained = 0

    def drain(self) -> None:
        self.drained += 1

    def abandon(self) -> None:
        """Nobody does that."""


def test_a_drain_lets_nobody_in_and_counts_who_is_left() -> None:
    admin = Admin(TOKEN)
    guests = [Guest(), Guest()]
    for guest in guests:
        admin.limiter.enter(guest)
    assert admin.post("/admin/drain", None, BEARER).json["left"] == 2
    assert [guest.drained for guest in guests] == [1, 1]
    with pytest.raises(ApiError):
        admin.limiter.enter(Guest())
    admin.limiter.leave(guests[0])
    assert admin.json("/status", BEARER)["now"]["connections"] == 1
    assert admin.post("/admin/drain", None, BEARER).json["left"] == 1
    assert [guest.drained for guest in guests] == [1, 1], "a second drain is the same drain"
    assert admin.ask("/readyz").status == 503
    shown = admin.json("/status", BEARER)
    assert shown["state"] == "draining"
    assert shown["drain"]["connections_left"] == 1
    assert shown["drain"]["seconds_left"] is None


def test_a_resume_lets_clients_in_again() -> None:
    admin = Admin(TOKEN)
    admin.post("/admin/drain", None, BEARER)
    assert admin.post("/admin/resume", None, BEARER).json == {"result": "clients are let in"}
    admin.limiter.enter(Guest())
    assert admin.ask("/readyz").status == 200
    assert admin.json("/status", BEARER)["drain"] is None


def test_a_stop_is_not_taken_back() -> None:
    admin = Admin(TOKEN)
    admin.running.drain.finish()
    refused = admin.post("/admin/resume", None, BEARER)
    assert (refused.status, "stopping" in refused.json["error"]) == (409, True)
    assert admin.ask("/readyz").status == 503


# --- the audit log -----------------------------------------------------------------------


def test_every_action_is_noted_with_who_and_from_where() -> None:
    admin = Admin(TOKEN)
    cookie = admin.log_in().cookie
    admin.post("/admin/accounts/a/pause", None, BEARER, address="192.0.2.7")
    admin.post("/admin/accounts/nobody/pause", {}, cookie, OWN)
    admin.form("/login", "token=guess", OWN, address="192.0.2.8")
    admin.form("/logout", "", cookie, OWN)
    noted = [
        (each["action"], each["target"], each["address"], each["done"])
        for each in reversed(admin.json("/status/audit", BEARER)["actions"])
    ]
    assert noted == [
        ("log in", None, "127.0.0.1", True),
        ("pause", "a", "192.0.2.7", True),
        ("pause", "nobody", "127.0.0.1", False),
        ("log in", None, "192.0.2.8", False),
        ("log out", None, "127.0.0.1", True),
    ]
    who = [each["who"] for each in admin.json("/status/audit", BEARER)["actions"]]
    assert who[3] == "token"
    assert who[0] == who[2] == who[4], "a login has one name from its beginning to its end"
    assert who[0].startswith("login ")


def test_each_action_is_a_line_of_the_log() -> None:
    events: list[LogEvent] = []
    admin = Admin(TOKEN)
    globalLogPublisher.addObserver(events.append)
    try:
        admin.post("/admin/accounts/a/pause", None, BEARER)
    finally:
        globalLogPublisher.removeObserver(events.append)
    audit: list[Mapping[str, Any]] = [e for e in events if e["log_namespace"] == "gateway.audit"]
    assert [(each["who"], each["action"], each["target"]) for each in audit] == [
        ("token", "pause", "a")
    ]


def test_the_audit_log_is_bounded() -> None:
    admin = Admin(TOKEN)
    for _ in range(520):
        admin.api.audit.note("token", "::1", "x" * 10, "y" * 1000, True, "z" * 1000)
    actions = admin.json("/status/audit", BEARER)["actions"]
    assert len(actions) == 500
    assert len(actions[0]["target"]) == len(actions[0]["result"]) == 300


def test_a_binding_is_found_by_no_other_tenants_words() -> None:
    """The key of a binding holds its tenant: the same thread of two tenants is two of them."""
    one, other = (AffinityKey("thread", tenant, "t-1") for tenant in ("laptop", "desk"))
    assert opaque_id(one) != opaque_id(other)
