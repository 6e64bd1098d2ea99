"""What the admin side shows: liveness, readiness, the overview, the last turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.config import ConfigError
from gateway.protocol.concessions import Concession, ConcessionKind
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.reload import RejectedReload
from gateway.routing.capabilities import CapabilityScope
from gateway.routing.wait_queue import WaitReason
from gateway.server.routes import RouteTable
from tests.admin.stage import BEARER, TOKEN, Admin
from tests.support.events import text_item, turn_events, user
from tests.turn.fakes import World

READABLE = [
    "/status",
    "/status/accounts",
    "/status/conversations",
    "/status/turns",
    "/status/keys",
    "/status/memory",
    "/status/config",
    "/status/audit",
]


def test_it_lives() -> None:
    assert Admin().json("/livez") == {"status": "alive"}


def test_it_is_ready_until_it_stops() -> None:
    admin = Admin()
    assert admin.json("/readyz") == {"status": "ready"}
    admin.limiter.drain()
    answer = admin.ask("/readyz")
    assert (answer.status, answer.json) == (503, {"status": "draining"})
    assert admin.ask("/livez").status == 200, "a gateway that finishes its turns is not dead"
    assert admin.json("/status")["state"] == "draining"


def test_it_is_not_ready_without_a_usable_account() -> None:
    admin = Admin()
    admin.world.accounts["a"].health.disable()
    assert admin.ask("/readyz").status == 200, "one account is left"
    admin.world.accounts["b"].health.drain()
    answer = admin.ask("/readyz")
    assert (answer.status, answer.json) == (503, {"status": "no account is usable"})
    shown = admin.json("/status")
    assert (shown["state"], shown["alarms"][0]["level"]) == ("unusable", "red")


@pytest.mark.parametrize("kind", [FaultKind.UNAUTHORIZED, FaultKind.EXHAUSTED])
def test_an_account_that_never_answered_well_does_not_become_ready_by_time(kind: FaultKind) -> None:
    admin = Admin()
    accounts = admin.world.accounts.values()
    for number in range(4):
        for account in accounts:
            account.health.refused(None, Fault(kind, "it refuses", None))
        for seconds in (0, 30, 1200):
            admin.clock.advance(seconds)
            assert admin.ask("/readyz").status == 503, f"{seconds} s after refusal {number}"
            shown = admin.json("/status")
            assert (shown["state"], shown["ready"]) == ("unusable", False)
            assert {each["state"] for each in shown["accounts"]} != {"ready"}
            whats = [each["what"] for each in shown["alarms"]]
            assert whats == [
                "no account is usable: it refuses",
                f"a is {kind.value}: it refuses",
                f"b is {kind.value}: it refuses",
            ], "an alarm that comes and goes with each try would be none"
    assert [each["state"] for each in shown["accounts"]] == ["unproven", "unproven"]
    health = admin.world.accounts["a"].health
    health.acknowledged(None, health.begin(None))
    assert admin.ask("/readyz").status == 200
    assert admin.json("/status")["accounts"][0]["state"] == "ready"


def test_waiting_for_a_keys_limit_is_no_waiting_for_an_account() -> None:
    admin = Admin()
    waiting = admin.world.services.waiting
    for lacks in (WaitReason.LIMIT, WaitReason.LIMIT, WaitReason.ACCOUNT):
        waiting.wait("laptop", 5.0, lambda: False, lambda: None, reason=lacks)
    now = admin.json("/status")["now"]
    assert (now["turns_waiting"], now["turns_limited"]) == (1, 2)


def test_a_full_account_is_still_usable() -> None:
    world = World(1)
    world.accounts["a"]._max_in_flight = 0
    assert Admin(world=world).ask("/readyz").status == 200


def test_the_status_shows_accounts_turns_and_ledger() -> None:
    admin = Admin()
    admin.world.completed([user("hi")], turn_events([text_item()], "resp_1"))
    admin.clock.advance(90)
    shown = admin.json("/status")
    assert shown["uptime_seconds"] == 90
    assert (shown["state"], shown["alarms"]) == ("ready", [])
    assert (shown["now"]["connections"], shown["now"]["turns_in_flight"]) == (0, 0)
    assert shown["turns"] == {"completed": 1}
    assert [account["name"] for account in shown["accounts"]] == ["a", "b"]
    first = shown["accounts"][0]
    assert (first["turns"], first["failures"], first["in_flight"]) == (1, 0, 0)
    assert (first["state"], first["pinned"]) == ("ready", 1)
    assert first["continuity"] == {
        "setting": "auto",
        "learned": {"store": "unknown", "no_store": "unknown"},
    }
    assert shown["ledger"]["responses"] == 1
    assert [key["name"] for key in shown["keys"]] == ["laptop"]


def test_the_status_shows_what_accounts_taught() -> None:
    admin = Admin()
    account = admin.world.accounts["a"]
    account.learned.learn(
        CapabilityScope(model="o9"), Concession(ConcessionKind.MEMBER, "user"), "400: no user"
    )
    first, second = admin.json("/status/accounts")["accounts"]
    assert first["learned"] == account.learned.shown() != []
    assert second["learned"] == []


def test_what_somebody_should_act_on_is_an_alarm() -> None:
    admin = Admin()
    refused = Fault(FaultKind.UNAUTHORIZED, "401", None)
    admin.world.accounts["b"].health.refused(None, refused)
    rejected = RejectedReload(admin.clock.seconds(), "accounts: none")
    admin.running.configuration.last_rejected = lambda: rejected
    shown = admin.json("/status")
    assert shown["state"] == "degraded"
    assert {(each["level"], each["what"]) for each in shown["alarms"]} == {
        ("red", "b is unauthorized: 401"),
        ("amber", "a configuration was rejected: accounts: none"),
    }
    assert shown["last_rejected_reload"]["error"] == "accounts: none"


def test_the_last_turns_are_shown_without_content_or_keys() -> None:
    admin = Admin()
    for number in range(2):
        admin.world.completed([user("my wish")], turn_events([text_item()], f"resp_{number}"))
    answer = admin.ask("/status/turns")
    turns = answer.json["turns"]
    assert [turn["response_id"] for turn in turns] == ["resp_0", "resp_1"]
    assert turns[0]["attempts"][0]["outcome"] == "completed"
    assert turns[0]["conversation"] == turns[1]["conversation"]
    for path in (*READABLE, "/status/conversations/resp_1/why"):
        body = admin.ask(path).body
        assert b"wish" not in body, f"{path} shows what a client said"
        assert b"sk-" not in body, f"{path} shows a key"


def test_turns_are_filtered() -> None:
    admin = Admin()
    for number in range(3):
        admin.world.completed([user("x")], turn_events([text_item()], f"resp_{number}"))
    assert len(admin.json("/status/turns?limit=2")["turns"]) == 2
    assert admin.json("/status/turns?limit=1")["turns"][0]["response_id"] == "resp_2"
    assert len(admin.json("/status/turns?account=a&key=laptop&status=completed")["turns"]) == 3
    for query in ("account=b", "key=desk", "status=failed", "conversation=00"):
        assert admin.json(f"/status/turns?{query}")["turns"] == []


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1e9", "99999999"])
def test_a_limit_that_is_none_is_said_to_be_wrong(limit: str) -> None:
    answer = Admin().ask(f"/status/turns?limit={limit}")
    assert (answer.status, answer.json["error"]) == (400, "limit: expected a number above 0")


@pytest.mark.parametrize("path", READABLE)
@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "Basic t0ken", "t0ken"])
def test_the_token_is_asked_for(path: str, header: str | None) -> None:
    headers = [] if header is None else [f"authorization: {header}"]
    answer = Admin(TOKEN).ask(path, *headers)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "error" in answer.json
    assert TOKEN.encode() not in answer.body


def test_with_the_token_all_is_shown_and_health_needs_none() -> None:
    admin = Admin(TOKEN)
    assert "accounts" in admin.json("/status", "authorization: bearer t0ken")
    assert admin.json("/status/turns", "authorization: Bearer  t0ken ") == {"turns": []}
    assert admin.ask("/livez").status == 200
    assert admin.ask("/readyz").status == 200


def test_a_listener_that_others_reach_shows_nothing_without_a_token() -> None:
    """The configuration does not allow one; the admin side does not rely on that."""
    answer = Admin(None, loopback=False).ask("/status")
    assert answer.status == 401
    assert "admin.token" in answer.json["error"], "it should be said how to configure one"


@pytest.mark.parametrize("path", ["/nothing", "/status/nothing", "/livez/nothing", "/v1/responses"])
def test_there_is_nothing_else(path: str) -> None:
    assert Admin().ask(path).status == 404


def test_the_root_leads_to_the_status() -> None:
    answer = Admin().ask("/")
    assert (answer.status, answer.headers["location"]) == (303, "/status")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/events", *READABLE])
def test_it_can_only_be_read(method: str, path: str) -> None:
    answer = Admin().ask(path, method=method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/livez", "/status", "/login", "/events"])
def test_a_head_has_no_body(path: str) -> None:
    answer = Admin().ask(path, method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"] == Admin().ask(path).headers["content-type"]


def test_a_bug_shows_nothing_of_the_inside() -> None:
    admin = Admin()
    broken: Callable[..., Any] = lambda *_: {}.popitem()  # noqa: E731
    admin.api.table = RouteTable({"/livez": {"GET": admin.api.routes[1]._replace(handle=broken)}})
    answer = admin.ask("/livez")
    assert answer.status == 500
    assert b"KeyError" not in answer.body


def test_every_answer_makes_browsers_strict() -> None:
    admin = Admin()
    for path in ("/livez", "/status", "/login", "/nothing", "/", "/openapi.json"):
        headers = admin.ask(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy, f"{path} lacks a strict policy"
        assert "unsafe" not in policy
        for part in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"):
            assert part in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_the_configuration_shows_no_secret_and_reloads_where_there_is_a_file() -> None:
    admin = Admin(TOKEN)
    assert admin.json("/status/config", BEARER)["can_reload"] is False
    assert admin.post("/admin/reload", None, BEARER).status == 409

    def reject() -> str:
        raise ConfigError("gateway.yaml", "accounts", "none")

    admin.running.configuration.reload = reject
    answer = admin.post("/admin/reload", None, BEARER)
    assert (answer.status, answer.json["error"]) == (422, "rejected: gateway.yaml: accounts: none")
    admin.running.configuration.reload = lambda: "configuration 2 is in force"
    assert admin.post("/admin/reload", None, BEARER).json["result"] == "configuration 2 is in force"
