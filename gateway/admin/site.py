"""The operator's listener: the clients' HTTP server with tighter bounds, and the admin routes.

Each request is checked, led to its route, and answered.  Connections are few, so one whose request
is not complete makes way for a new one: slow clients keep out no probes and no metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.admin.api import ANSWERED_LATER, AdminQuery, AdminRoute, Api, RequiredRole
from gateway.admin.auth import check_origin
from gateway.admin.page.static_files import static_file
from gateway.admin.requests import (
    AdminError,
    AdminRequest,
    not_found,
    read_body,
    read_query,
    segments,
)
from gateway.admin.responses import SECURITY_HEADERS, AdminResponse, wants_html, write
from gateway.server.connections import ConnectionLimiter
from gateway.server.http_channel import HttpSite
from gateway.server.http_request import ClientRequest, WireRequest
from gateway.server.routes import NoRoute

#: Bounds on what a request may bring, in bytes.
MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 64 * 1024

#: How long a head may take, and a body besides the time that its size is worth, in seconds.
REQUEST_SECONDS = 10.0

#: How long a client may take for what it is sent, in seconds; live events have less.
_STALL_SECONDS = 30.0

#: Connections at the same time, each open page takes one or two; and how many of them may not
#: have sent a head yet.
MAX_CONNECTIONS = 100
_MAX_SILENT = 20

#: The part of the open files that the admin side leaves, as one in so many: a small part of what
#: clients leave to it.
_RESERVED_FILES = 16

_log = Logger(namespace="gateway.admin")


class AdminSite(HttpSite):
    """The factory of operators' connections."""

    max_head_bytes = MAX_HEAD_BYTES
    max_headers = 100
    idle_seconds = 60.0
    headers: Mapping[str, str] = SECURITY_HEADERS
    unfinished_make_way = True

    def __init__(self, api: Api, reactor: Any) -> None:
        limiter = ConnectionLimiter(
            MAX_CONNECTIONS - _MAX_SILENT,
            max_silent=_MAX_SILENT,
            files=api.managed.files,
            reserved_files=_RESERVED_FILES,
        )
        super().__init__(reactor, limiter, REQUEST_SECONDS, _STALL_SECONDS, MAX_BODY_BYTES)
        self.api = api

    @property
    def body_seconds(self) -> float:
        """As long as a head."""
        return REQUEST_SECONDS

    def accept(self, request: WireRequest) -> Callable[[ClientRequest], None]:
        """Admit the connection; authorization and routing follow when the request is complete."""
        request.channel.enter()
        transport = request.channel.transport
        local, peer = _host(transport.getHost()), _host(transport.getPeer()) or "local"
        is_secure = request.isSecure()
        has_path = request.uri.startswith(b"/")
        return lambda client_request: self._serve(
            AdminRequest(client_request, local, peer, is_secure), has_path
        )

    def startFactory(self) -> None:
        """The port is open."""
        super().startFactory()
        self.limiter.open_doors()

    def stopFactory(self) -> None:
        """The port is closed: who keeps a connection is to find a successor, if there is one."""
        self.api.live.close()
        self.limiter.drain(refuse=False)
        super().stopFactory()

    def _serve(self, request: AdminRequest, has_path: bool) -> None:
        try:
            answer = self._answer(request, segments(request.http.path) if has_path else None)
        except AdminError as error:
            self._refuse(request, error)
        except Exception:
            self._failed(request, Failure())
        else:
            if isinstance(answer, Deferred):
                answer.addCallback(lambda found: _write(request, found))
                answer.addErrback(lambda why: self._late(request, why))
            elif answer is not ANSWERED_LATER:
                _write(request, answer)

    def _answer(self, request: AdminRequest, path: list[str] | None) -> Any:
        if path is not None and path[0] == "static":
            return static_file(request, path[1:])
        self.api.access.check_host(request)
        if path is None:
            raise not_found()
        method = "HEAD" if request.http.is_head else request.http.method
        try:
            found = self.api.table.find(method, path)
        except NoRoute as error:
            if not error.allowed:
                raise not_found() from None
            allowed = ", ".join(error.allowed)
            raise AdminError(405, f"expected {allowed}", {"allow": allowed}) from None
        return found.handler.handle(self._query(request, found.handler, found.parameters))

    def _query(self, request: AdminRequest, route: AdminRoute, names: dict[str, str]) -> AdminQuery:
        access = self.api.access
        open_to_all = route.role is RequiredRole.ANYBODY
        caller = access.by_cookie(request) if open_to_all else access.caller(request)
        if route.role is RequiredRole.READER:
            access.check_read(caller)
        if route.method != "POST":
            if route.role is RequiredRole.OPERATOR:
                access.check_content(request, caller)
            return AdminQuery(request, caller, names, read_query(request), {})
        own_page = check_origin(request)
        if route.role is RequiredRole.OPERATOR:
            access.check_post(request, caller)
        body, by_form = read_body(request, own_page)
        return AdminQuery(request, caller, names, read_query(request), body, by_form)

    def _refuse(self, request: AdminRequest, error: AdminError) -> None:
        if error.status == 401 and wants_html(request):
            write(request, self.api.login_page(401, None)._replace(headers=error.headers))
        else:
            body = {"error": error.sentence}
            write(request, AdminResponse(error.status, body, headers=error.headers))

    def _late(self, request: AdminRequest, failure: Failure) -> None:
        if isinstance(failure.value, AdminError):
            self._refuse(request, failure.value)
        else:
            self._failed(request, failure)

    def _failed(self, request: AdminRequest, failure: Failure) -> None:
        _log.failure("the admin side failed", failure)
        if not request.http.started:
            write(request, AdminResponse(500, {"error": "the gateway failed; the log says why"}))


def _write(request: AdminRequest, answer: Any) -> None:
    write(request, answer if isinstance(answer, AdminResponse) else AdminResponse(200, answer))


def _host(address: Any) -> str:
    """The IP address of one end of a connection; empty for a UNIX socket."""
    return address.host if isinstance(address, (IPv4Address, IPv6Address)) else ""
