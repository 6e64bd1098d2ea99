"""The admin side's HTTP resources: liveness, readiness, status and the last turns, as JSON."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from .status import Status


class AdminSite(Site):
    """Serves the admin side; no access log.

    :param status: what is shown.
    :param token: the Bearer token that readers need, or None where anybody may read.
    """

    noisy = False

    def __init__(self, status: Status, token: str | None, reactor: Any) -> None:
        root = Nothing()
        root.putChild(b"livez", JsonResource(lambda: {"status": "alive"}, None))
        root.putChild(b"readyz", ReadyResource(status))
        shown = JsonResource(status.overview, token)
        root.putChild(b"status", shown)
        shown.putChild(b"turns", JsonResource(status.turns, token))
        super().__init__(root, reactor=reactor, timeout=60)
        self.displayTracebacks = False

    def log(self, request: Request) -> None:
        """Say nothing."""


class AdminResource(Resource):
    """What can only be read; all it says is JSON."""

    def getChild(self, path: bytes, request: Request) -> Resource:
        """What was not put here is not here."""
        return Nothing()

    def render(self, request: Request) -> bytes:
        """Answer GET and HEAD."""
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader("allow", "GET, HEAD")
            return answer(request, 405, {"error": "this can only be read"})
        return self.render_GET(request)

    def render_GET(self, request: Request) -> bytes:
        """Answer."""
        return answer(request, 404, {"error": "nothing is here; see /status"})


class Nothing(AdminResource):
    """Where wrong paths lead."""

    def render(self, request: Request) -> bytes:
        """Answer whatever method."""
        return self.render_GET(request)


class JsonResource(AdminResource):
    """A GET that answers with what ``produce`` returns.

    :param token: the Bearer token it asks for, or None.
    """

    def __init__(self, produce: Callable[[], Any], token: str | None) -> None:
        super().__init__()
        self._produce = produce
        self._token = token.encode() if token is not None else None

    def render_GET(self, request: Request) -> bytes:
        """Answer."""
        if not self._may_read(request):
            request.setHeader("www-authenticate", "Bearer")
            return answer(request, 401, {"error": "send 'Authorization: Bearer <admin token>'"})
        return answer(request, 200, self._produce())

    def _may_read(self, request: Request) -> bool:
        if self._token is None:
            return True
        scheme, _, token = (request.getHeader(b"authorization") or b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)


class ReadyResource(AdminResource):
    """200 while new work is welcome, 503 otherwise."""

    def __init__(self, status: Status) -> None:
        super().__init__()
        self._status = status

    def render_GET(self, request: Request) -> bytes:
        """Answer."""
        if self._status.ready():
            return answer(request, 200, {"status": "ready"})
        return answer(request, 503, {"status": "draining"})


def answer(request: Request, code: int, body: Any) -> bytes:
    """Set up a JSON answer and return its bytes."""
    request.setResponseCode(code)
    request.setHeader("content-type", "application/json")
    request.setHeader("cache-control", "no-store")
    return msgspec.json.encode(body)
