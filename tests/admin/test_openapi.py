"""The description of the API against its routes and its real answers."""

from __future__ import annotations

import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from gateway.admin.api import DESCRIPTION
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.protocol.rate_limits import read_windows
from tests.admin.stage import BEARER, SOCKETS, TOKEN, Admin
from tests.admin.test_actions import answers, probe
from tests.admin.test_live import events, listen
from tests.support.events import text_item, turn_events, user

#: Paths that answer at once, with what stands in their open segments.
_NAMES = {"{id}": "resp_1"}


def _validator(schema: Any) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": DESCRIPTION["components"]})


def _closed(schema: Any) -> Any:
    """The same, with nothing allowed that is not described."""
    if isinstance(schema, dict):
        closed = {name: _closed(value) for name, value in schema.items()}
        if closed.get("properties") and "additionalProperties" not in closed:
            closed["additionalProperties"] = False
        return closed
    return [_closed(each) for each in schema] if isinstance(schema, list) else schema


def check(name: str, value: Any, exactly: bool = True) -> None:
    components = DESCRIPTION["components"]
    schema = {
        "$ref": f"#/components/schemas/{name}",
        "components": _closed(components) if exactly else components,
    }
    problems = [error.message for error in Draft202012Validator(schema).iter_errors(value)]
    assert problems == [], f"{name} is not as it is described: {problems[:3]}"


def busy() -> Admin:
    """One of everything that can be shown."""
    admin = Admin(TOKEN)
    first = admin.world.completed([user("hi")], turn_events([text_item()], "resp_1"))
    events = turn_events([text_item()], "resp_2", previous_response_id="resp_1")
    admin.world.completed([user("x")], events, parent=first)
    admin.world.upstreams["b"].figures = SOCKETS
    health = admin.world.accounts["b"].health
    health.refused("gpt-5", Fault(FaultKind.MODEL_REFUSED, "no", None))
    health.refused(None, Fault(FaultKind.EXHAUSTED, "used up", None))
    admin.post("/admin/accounts/a/resume", None, BEARER)
    return admin


def test_the_description_is_a_valid_one() -> None:
    assert DESCRIPTION["openapi"].startswith("3.1")
    for schema in DESCRIPTION["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    text = repr(DESCRIPTION)
    for reference in re.findall(r"#/components/(\w+)/(\w+)", text):
        kind, name = reference
        assert name in DESCRIPTION["components"][kind], f"{reference} is described nowhere"


def test_it_describes_the_routes_and_nothing_else() -> None:
    routes = {(route.method, route.template) for route in Admin().api.routes}
    described = {
        (method.upper(), path)
        for path, operations in DESCRIPTION["paths"].items()
        for method in operations
    }
    assert routes == described


def test_it_says_of_each_route_who_may_enter() -> None:
    for route in Admin().api.routes:
        security = DESCRIPTION["paths"][route.template][route.method.lower()]["security"]
        expected = {"anybody": [], "operator": [{"bearer": []}, {"login": []}]}
        wanted = expected.get(route.role.value, [{"bearer": []}, {"login": []}, {}])
        assert security == wanted, f"{route.method} {route.template}"


@pytest.mark.parametrize("path", [p for p, each in DESCRIPTION["paths"].items() if "get" in each])
def test_what_is_read_is_as_described(path: str) -> None:
    if path in ("/events", "/metrics", "/status/recordings/{file}"):
        return  # they have tests of their own
    answer = busy().ask(re.sub(r"\{\w+\}", lambda found: _NAMES[found[0]], path), BEARER)
    response = DESCRIPTION["paths"][path]["get"]["responses"][str(answer.status)]
    kind = answer.headers["content-type"].partition(";")[0]
    content = response.get("content")
    if content is None:
        assert answer.body == b""
    elif kind == "application/json":
        problems = [e.message for e in _validator(content[kind]["schema"]).iter_errors(answer.json)]
        assert problems == [], f"{path}: {problems[:3]}"
    else:
        assert kind in content


def test_nothing_is_shown_that_is_not_described() -> None:
    admin = busy()
    for path, member, schema in (
        ("/status/accounts", "accounts", "Account"),
        ("/status/conversations", "conversations", "Conversation"),
        ("/status/turns", "turns", "Turn"),
        ("/status/keys", "keys", "Key"),
        ("/status/memory", "registers", "Register"),
        ("/status/config", "settings", "Setting"),
        ("/status/audit", "actions", "AuditEntry"),
    ):
        for shown in admin.json(path, BEARER)[member]:
            check(schema, shown)
    check("Why", admin.json("/status/conversations/resp_1/why", BEARER))
    check("Explanation", admin.post("/admin/route-dry-run", {}, BEARER).json)


def test_what_is_measured_is_as_described() -> None:
    admin = busy()
    collector = admin.collector
    told = {"x-ratelimit-limit-requests": "500", "x-codex-primary-used-percent": "9"}
    windows = read_windows(told, admin.clock.seconds())
    admin.world.accounts["a"].health.observe(windows)
    collector.memory_budget = 1
    collector.step()
    status = admin.json("/status", BEARER)
    assert status["alarms"], "one of everything"
    assert status["accounts"][0]["windows"], "one of everything"
    assert status.pop("history")["series"]["turns_per_minute"]
    check("Current", status)
    for register in admin.json("/status/memory", BEARER)["registers"]:
        check("Register", register)


def test_no_object_is_left_open() -> None:
    def bare(schema: Any, place: str) -> list[str]:
        if isinstance(schema, list):
            return [found for each in schema for found in bare(each, place)]
        if not isinstance(schema, dict):
            return []
        told = {"properties", "additionalProperties", "$ref", "allOf"}
        found = [place] if schema.get("type") == "object" and not told & set(schema) else []
        return found + [
            inner for name, each in schema.items() for inner in bare(each, f"{place}.{name}")
        ]

    assert bare(DESCRIPTION["components"]["schemas"], "schemas") == []


def test_events_are_as_described() -> None:
    admin = busy()
    client = listen(admin, BEARER)
    admin.world.completed([user("x")], turn_events([text_item()], "resp_3"))
    kinds = [(name, value) for name, value in events(client)]
    assert [name for name, _ in kinds] == ["status", "turn"]
    check("Current", kinds[0][1])
    check("Turn", kinds[1][1])
    client.leaves()


def test_actions_answer_as_described() -> None:
    admin = busy()
    _, _, client = probe(answers(200))
    check("Done", client.answer.json, exactly=False)
    for path, body in (
        ("/admin/accounts/a/pause", None),
        ("/admin/conversations/resp_1/move", None),
        ("/admin/conversations/resp_1/drop", None),
        ("/admin/log-level", {"level": "info"}),
        ("/admin/drain", None),
        ("/admin/resume", None),
    ):
        check("Done", admin.post(path, body, BEARER).json, exactly=False)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/admin/accounts/x/pause", 404),
        ("/admin/log-level", 400),
        ("/admin/reload", 409),
        ("/status/turns?limit=x", 405),
    ],
)
def test_errors_are_as_described(path: str, status: int) -> None:
    answer = Admin(TOKEN).post(path, {}, BEARER)
    assert answer.status == status
    check("Error", answer.json)
