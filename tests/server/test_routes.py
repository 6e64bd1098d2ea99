"""The table of routes."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config import Settings
from gateway.protocol.errors import ApiError
from gateway.server.connections import ConnectionLimiter
from gateway.server.http_request import ClientRequest
from gateway.server.http_site import ClientSite


def one(request: ClientRequest, tenant: str) -> None:
    """A handler."""


def two(request: ClientRequest, tenant: str) -> None:
    """Another one."""


NOBODY: Any = None
ROUTES = ClientSite(
    None,
    {
        "/things": {"GET": one, "POST": two},
        "/things/count": {"POST": two},
        "/turns": {"POST": two},
        "/things/{thing_id}": {"GET": one},
        "/things/{thing_id}/parts/{part}": {"GET": two},
    },
    Settings(),
    NOBODY,
    ConnectionLimiter(1),
    NOBODY,
)


@pytest.mark.parametrize("prefix", ["/v1", "/backend-api/codex"])
@pytest.mark.parametrize(
    ("method", "path", "handler", "parameters"),
    [
        ("GET", "/things", one, {}),
        ("POST", "/things", two, {}),
        ("POST", "/things/count", two, {}),
        ("GET", "/things/count", one, {"thing_id": "count"}),
        ("GET", "/things/resp_1", one, {"thing_id": "resp_1"}),
        ("GET", "/things/a%2Fb%20c", one, {"thing_id": "a/b c"}),
        ("GET", "/things/a/parts/b", two, {"thing_id": "a", "part": "b"}),
        ("POST", "/things/", two, {}),
        ("POST", "//things//", two, {}),
        ("GET", "/things/resp_1/", one, {"thing_id": "resp_1"}),
        ("HEAD", "/things", one, {}),
        ("HEAD", "/things/a/parts/b/", two, {"thing_id": "a", "part": "b"}),
    ],
)
def test_paths_lead_to_handlers(
    prefix: str, method: str, path: str, handler: object, parameters: dict[str, str]
) -> None:
    route = ROUTES.find(method, prefix + path)
    assert (route.handler, route.parameters) == (handler, parameters)


@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1", "/v1/", "/things", "/v1/things/a/parts", "/v1/things//parts/b",
     "/v1/things/../things", "/V1/things", "/v1/things/a/parts/b/c", "*", "/v1/%74hings"],
)  # fmt: skip
def test_other_paths_are_404(path: str) -> None:
    with pytest.raises(ApiError) as caught:
        ROUTES.find("GET", path)
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/things", "GET, HEAD, POST"),
        ("PUT", "/v1/things/count", "GET, HEAD, POST"),
        ("POST", "/v1/things/x", "GET, HEAD"),
        ("HEAD", "/v1/turns", "POST"),
        ("get", "/v1/things", "GET, HEAD, POST"),
    ],
)
def test_other_methods_are_405_and_hear_what_is_allowed(
    method: str, path: str, allowed: str
) -> None:
    with pytest.raises(ApiError) as caught:
        ROUTES.find(method, path)
    assert caught.value.status == 405
    assert caught.value.headers == {"allow": allowed}
