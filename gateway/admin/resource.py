"""The admin side over HTTP: each request checked, led to its route, and answered."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from gateway.admin.api import Api
from gateway.admin.auth import check_origin
from gateway.admin.errors import AdminError, not_found
from gateway.admin.requests import AdminQuery, read_body, read_query, segments
from gateway.admin.responses import AdminResponse, wants_html, write
from gateway.admin.routes import AdminEntry, AdminRoute

_log = Logger(namespace="gateway.admin")


class AdminResource(Resource):
    """Leads every path to the API; ``/static`` alone to the files of the pages."""

    isLeaf = False

    def __init__(self, api: Api) -> None:
        super().__init__()
        self._api = api
        self.putChild(b"static", api.pages.static)
        self._leaf = _Leaf(api)

    def getChild(self, path: bytes, request: Request) -> Resource:
        """All that is not put elsewhere."""
        return self._leaf

    def render(self, request: Request) -> Any:
        """Only ``*`` and the like come here."""
        return self._leaf.render(request)


class _Leaf(Resource):
    isLeaf = True

    def __init__(self, api: Api) -> None:
        super().__init__()
        self._api = api

    def render(self, request: Request) -> Any:
        """Check, and hand over to the route."""
        try:
            answer = self._answer(request)
        except AdminError as error:
            self._refuse(request, error)
        except Exception:
            self._failed(request, Failure())
        else:
            if isinstance(answer, Deferred):
                gone: list[object] = []
                request.notifyFinish().addErrback(gone.append)
                answer.addCallback(lambda found: None if gone else _write(request, found))
                answer.addErrback(lambda why: None if gone else self._late(request, why))
            elif answer is not NOT_DONE_YET:
                _write(request, answer)
        return NOT_DONE_YET

    def _answer(self, request: Request) -> Any:
        access = self._api.access
        access.check_host(request)
        place = segments(request)
        routes = {} if place is None else self._api.table.find(place)
        if not routes:
            raise not_found()
        method = request.method.decode("latin-1")
        if method not in routes:
            allowed = ", ".join(sorted(routes))
            raise AdminError(405, f"expected {allowed}", {"allow": allowed})
        route, names = routes[method]
        return route.handle(self._asked(request, route, names))

    def _asked(self, request: Request, route: AdminRoute, names: dict[str, str]) -> AdminQuery:
        access = self._api.access
        open_to_all = route.entry is AdminEntry.ANYBODY
        visitor = access.by_cookie(request) if open_to_all else access.visitor(request)
        if route.entry is AdminEntry.READER:
            access.check_read(visitor)
        if route.method != "POST":
            return AdminQuery(request, visitor, names, read_query(request), {})
        own_page = check_origin(request)
        if route.entry is AdminEntry.OPERATOR:
            access.check_post(request, visitor)
        body, by_form = read_body(request, own_page)
        return AdminQuery(request, visitor, names, read_query(request), body, by_form)

    def _refuse(self, request: Request, error: AdminError) -> None:
        if error.status == 401 and wants_html(request):
            write(request, self._api.login_page(401, None)._replace(headers=error.headers))
        else:
            write(
                request,
                AdminResponse(error.status, {"error": error.sentence}, headers=error.headers),
            )

    def _late(self, request: Request, failure: Failure) -> None:
        if failure.check(AdminError):
            error: Any = failure.value
            self._refuse(request, error)
        else:
            self._failed(request, failure)

    def _failed(self, request: Request, failure: Failure) -> None:
        _log.failure("the admin side failed", failure)
        if not request.startedWriting:
            write(request, AdminResponse(500, {"error": "the gateway failed; the log says why"}))


def _write(request: Request, answer: Any) -> None:
    write(request, answer if isinstance(answer, AdminResponse) else AdminResponse(200, answer))
