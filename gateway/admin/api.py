"""The admin API: the table of its routes, and what each answers.  GET never changes anything."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from gateway import __version__
from gateway.admin.actions import MAX_ACTIONS, Actions, Audit
from gateway.admin.auth import MAX_ADDRESSES, MAX_LOGINS, Access, cookie
from gateway.admin.dry_run import dry_run
from gateway.admin.errors import AdminError, bad_request, not_found
from gateway.admin.live import MAX_LISTENERS, LiveFeed
from gateway.admin.page import Page, PageData, Viewer, login_page
from gateway.admin.responses import HTML, AdminResponse, accepted, see_other, wants_html
from gateway.admin.routes import ANSWERED_LATER, AdminEntry, AdminQuery, AdminRoute
from gateway.admin.running import Running
from gateway.admin.views.accounts import accounts
from gateway.admin.views.conversations import conversations, turns, why
from gateway.admin.views.overview import configuration, memory, overview, ready
from gateway.metrics.registers import BoundedStructure
from gateway.server.routes import RouteTable

#: The description of the admin API, OpenAPI 3.1: the contract that tests hold the code to.
DESCRIPTION: dict[str, Any] = msgspec.json.decode(
    (files(__package__) / "openapi.json").read_bytes()
)
DESCRIPTION["info"]["version"] = __version__

_MAX_LISTED = 1000


class Api:
    """Handlers, and the table that leads to them.

    :param metrics: makes the type and text of ``/metrics`` for an ``Accept`` header.
    :ivar pages: for browsers.
    """

    def __init__(
        self,
        running: Running,
        access: Access,
        metrics: Callable[[str], tuple[str, bytes]],
    ) -> None:
        self.running = running
        self.access = access
        self.audit = Audit(running.now)
        self.live = LiveFeed(running)
        self.actions = Actions(running)
        self.pages = Page(PageData(running, self.memory), running.now)
        self._metrics = metrics
        anybody, reader, operator = AdminEntry.ANYBODY, AdminEntry.READER, AdminEntry.OPERATOR
        routes: list[tuple[str, str, AdminEntry, Callable[[AdminQuery], Any]]] = [
            ("GET", "/", anybody, lambda _: see_other("/status")),
            ("GET", "/livez", anybody, lambda _: {"status": "alive"}),
            ("GET", "/readyz", anybody, self._readyz),
            ("GET", "/openapi.json", anybody, lambda _: AdminResponse(200, DESCRIPTION)),
            ("GET", "/login", anybody, lambda _: self.login_page(200, None)),
            ("POST", "/login", anybody, self._log_in),
            ("POST", "/logout", anybody, self._log_out),
            ("GET", "/status", reader, self._status),
            ("GET", "/status/accounts", reader, lambda _: {"accounts": accounts(running)}),
            ("GET", "/status/conversations", reader, self._conversations),
            ("GET", "/status/conversations/{id}/why", reader, self._why),
            ("GET", "/status/turns", reader, self._turns),
            ("GET", "/status/keys", reader, lambda _: {"keys": running.tenants.snapshot()}),
            ("GET", "/status/memory", reader, lambda _: self.memory()),
            ("GET", "/status/config", reader, lambda _: configuration(running)),
            ("GET", "/status/audit", reader, lambda _: self.audit.shown()),
            ("GET", "/events", reader, self._events),
            ("GET", "/metrics", reader, self._scrape),
            ("POST", "/admin/accounts/{name}/{action}", operator, self._account),
            ("POST", "/admin/conversations/{id}/{action}", operator, self._conversation),
            ("POST", "/admin/log-level", operator, self._log_level),
            ("POST", "/admin/drain", operator, self._drain),
            ("POST", "/admin/reload", operator, self._reload),
            ("POST", "/admin/route-dry-run", operator, lambda it: dry_run(running, it.body)),
        ]
        self.routes = tuple(AdminRoute(*route) for route in routes)
        table: dict[str, dict[str, AdminRoute]] = {}
        for route in self.routes:
            table.setdefault(route.template, {})[route.method] = route
        self.table = RouteTable(table)

    def memory(self) -> dict[str, Any]:
        """The memory register, with what the admin side itself keeps."""
        access = self.access
        own = (
            ("admin audit", len(self.audit), MAX_ACTIONS, "actions"),
            ("admin logins", len(access.logins), MAX_LOGINS, "logins"),
            ("admin event listeners", len(self.live), MAX_LISTENERS, "connections"),
            ("admin wrong logins", len(access.forms), MAX_ADDRESSES, "addresses"),
            ("admin wrong tokens", len(access.bearers), MAX_ADDRESSES, "addresses"),
        )
        return memory(self.running, (BoundedStructure(*each)._asdict() for each in own))

    def login_page(self, status: int, wrong: str | None) -> AdminResponse:
        """The login form, with the error of the last try."""
        return AdminResponse(status, login_page(wrong), HTML)

    # --- reading -----------------------------------------------------------------------

    def _readyz(self, asked: AdminQuery) -> AdminResponse:
        why_not = ready(self.running)
        if why_not is None:
            return AdminResponse(200, {"status": "ready"})
        return AdminResponse(503, {"status": why_not})

    def _status(self, asked: AdminQuery) -> AdminResponse:
        vary = {"vary": "accept, cookie"}
        if not wants_html(asked.request):
            return AdminResponse(200, overview(self.running), headers=vary)
        query = asked.request.http.query_string.encode("latin-1")
        arguments = parse_qs(query, keep_blank_values=True)
        login = asked.visitor.login
        said = None if login is None else login.said(self.running.now())
        viewer = Viewer(asked.visitor.why_not, login is not None, self.access.has_token, said)
        return AdminResponse(200, self.pages.render(arguments, viewer), HTML, vary)

    def _conversations(self, asked: AdminQuery) -> Any:
        limit = asked.number("limit", 100, _MAX_LISTED)
        return conversations(self.running, (asked.text("q") or "").strip()[:300], limit)

    def _why(self, asked: AdminQuery) -> Any:
        found = why(self.running, asked.names["id"])
        if found is None:
            raise not_found("nothing is known of this conversation")
        return found

    def _turns(self, asked: AdminQuery) -> Any:
        return turns(
            self.running,
            asked.text("account"),
            asked.text("key"),
            asked.text("status"),
            asked.text("conversation"),
            asked.number("limit", _MAX_LISTED, _MAX_LISTED),
        )

    def _events(self, asked: AdminQuery) -> Any:
        if asked.request.http.is_head:
            return AdminResponse(200, b"", "text/event-stream")
        self.live.listen(asked.request.http, lambda: self.access.lasts(asked.visitor))
        return ANSWERED_LATER

    def _scrape(self, asked: AdminQuery) -> AdminResponse:
        content_type, text = self._metrics(accepted(asked.request))
        return AdminResponse(200, text, content_type)

    # --- logging in and out --------------------------------------------------------------

    def _log_in(self, asked: AdminQuery) -> AdminResponse:
        token = asked.body.get("token")
        if not isinstance(token, str):
            raise bad_request("token: expected the admin token")
        address = asked.visitor.address
        try:
            session_id, login = self.access.log_in(asked.request, token)
        except AdminError as error:
            if error.status == 401:
                self.audit.note("nobody known", address, "log in", None, False, error.sentence)
            if asked.by_form:
                return self.login_page(error.status, error.sentence)._replace(headers=error.headers)
            raise
        self.audit.note(login.name, address, "log in", None, True, "done")
        headers = {"set-cookie": cookie(session_id, asked.request.is_secure)}
        if asked.by_form:
            return see_other("/status", headers)
        return AdminResponse(200, {"result": "logged in", "login": login.name}, headers=headers)

    def _log_out(self, asked: AdminQuery) -> AdminResponse:
        if asked.visitor.login is not None:
            name, address = asked.visitor.login.name, asked.visitor.address
            self.audit.note(name, address, "log out", None, True, "done")
        self.access.log_out(asked.request)
        headers = {"set-cookie": cookie("", asked.request.is_secure)}
        if asked.by_form:
            return see_other("/login", headers)
        return AdminResponse(200, {"result": "logged out"}, headers=headers)

    # --- acting --------------------------------------------------------------------------

    def _account(self, asked: AdminQuery) -> Any:
        name, action = asked.names["name"], asked.names["action"]
        act = lambda: self.actions.account(name, action)  # noqa: E731
        return self._act(asked, action, name, "accounts", act)

    def _conversation(self, asked: AdminQuery) -> Any:
        identity, action = asked.names["id"], asked.names["action"]
        act = lambda: self.actions.conversation(identity, action)  # noqa: E731
        return self._act(asked, action, identity, "conversations", act)

    def _log_level(self, asked: AdminQuery) -> Any:
        level = asked.body.get("level")
        act = lambda: self.actions.log_level(level)  # noqa: E731
        return self._act(asked, "set the log level", str(level), "configuration", act)

    def _drain(self, asked: AdminQuery) -> Any:
        return self._act(asked, "drain", None, "configuration", self.actions.drain)

    def _reload(self, asked: AdminQuery) -> Any:
        return self._act(asked, "reload", None, "configuration", self.actions.reload)

    def _act(
        self,
        asked: AdminQuery,
        action: str,
        target: str | None,
        section: str,
        act: Callable[[], Any],
    ) -> Any:
        """Do it, note it in the audit log, and answer.

        A browser that sent a form is redirected to the section of its button, and the page shows
        the result there.
        """
        visitor = asked.visitor
        browser = visitor.login if asked.by_form else None
        name = visitor.name or "nobody known"

        def note(done: bool, result: str) -> None:
            self.audit.note(name, visitor.address, action, target, done, result)

        def answer(result: str, value: Any) -> Any:
            if browser is None:
                return value
            browser.tell(result, self.running.now())
            return see_other(f"/status#{section}")

        def did(done: dict[str, Any]) -> Any:
            note(True, done["result"])
            self.pages.forget()
            return answer(done["result"], done)

        def failed(failure: Failure) -> Failure:
            note(False, "the gateway failed; the log says why")
            return failure

        try:
            done = act()
        except AdminError as error:
            note(False, error.sentence)
            if browser is None:
                raise
            return answer(error.sentence, None)
        except Exception:
            note(False, "the gateway failed; the log says why")
            raise
        if isinstance(done, Deferred):
            return done.addCallbacks(did, failed)
        return did(done)
