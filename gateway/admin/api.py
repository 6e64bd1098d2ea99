"""The admin API: what each route answers.  GET never changes anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET

from gateway.admin.actions import Actions
from gateway.admin.answers import HTML, AdminResponse, accepted, see_other, wants_html
from gateway.admin.asked import AdminQuery
from gateway.admin.audit import MAX_ACTIONS, Audit
from gateway.admin.auth import Access, cookie
from gateway.admin.dry_run import dry_run
from gateway.admin.errors import AdminError, bad_request, not_found
from gateway.admin.live import MAX_LISTENERS, LiveFeed
from gateway.admin.logins import MAX_LOGINS, AdminSession
from gateway.admin.openapi import DESCRIPTION
from gateway.admin.page import BrowserPages
from gateway.admin.routes import AdminEntry, AdminRoute, RouteTable
from gateway.admin.running import Running
from gateway.admin.throttle import MAX_ADDRESSES
from gateway.admin.views.accounts import accounts
from gateway.admin.views.configuration import configuration
from gateway.admin.views.conversations import conversations
from gateway.admin.views.keys import keys
from gateway.admin.views.memory import memory, register
from gateway.admin.views.overview import overview, ready
from gateway.admin.views.turns import turns
from gateway.admin.views.why import why

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
        self.pages = BrowserPages(running, access, self.memory)
        self._metrics = metrics
        anybody, reader, operator = AdminEntry.ANYBODY, AdminEntry.READER, AdminEntry.OPERATOR
        self.table = RouteTable(
            [
                AdminRoute("GET", "/", anybody, lambda _: see_other("/status")),
                AdminRoute("GET", "/livez", anybody, lambda _: {"status": "alive"}),
                AdminRoute("GET", "/readyz", anybody, self._readyz),
                AdminRoute(
                    "GET", "/openapi.json", anybody, lambda _: AdminResponse(200, DESCRIPTION)
                ),
                AdminRoute("GET", "/login", anybody, lambda _: self.login_page(200, None)),
                AdminRoute("POST", "/login", anybody, self._log_in),
                AdminRoute("POST", "/logout", anybody, self._log_out),
                AdminRoute("GET", "/status", reader, self._status),
                AdminRoute("GET", "/status/accounts", reader, lambda _: accounts(running)),
                AdminRoute("GET", "/status/conversations", reader, self._conversations),
                AdminRoute("GET", "/status/conversations/{id}/why", reader, self._why),
                AdminRoute("GET", "/status/turns", reader, self._turns),
                AdminRoute("GET", "/status/keys", reader, lambda _: keys(running)),
                AdminRoute("GET", "/status/memory", reader, lambda _: self.memory()),
                AdminRoute("GET", "/status/config", reader, lambda _: configuration(running)),
                AdminRoute("GET", "/status/audit", reader, lambda _: self.audit.shown()),
                AdminRoute("GET", "/events", reader, self._events),
                AdminRoute("GET", "/metrics", reader, self._scrape),
                AdminRoute("POST", "/admin/accounts/{name}/{action}", operator, self._account),
                AdminRoute(
                    "POST", "/admin/conversations/{id}/{action}", operator, self._conversation
                ),
                AdminRoute("POST", "/admin/log-level", operator, self._log_level),
                AdminRoute("POST", "/admin/drain", operator, self._drain),
                AdminRoute("POST", "/admin/reload", operator, self._reload),
                AdminRoute("POST", "/admin/route-dry-run", operator, self._dry_run),
            ]
        )

    def memory(self) -> dict[str, Any]:
        """The memory register, with what the admin side itself keeps."""
        access = self.access
        own = [
            register("admin audit", len(self.audit), MAX_ACTIONS, "actions"),
            register("admin logins", len(access.logins), MAX_LOGINS, "logins"),
            register("admin event listeners", len(self.live), MAX_LISTENERS, "connections"),
            register("admin wrong logins", len(access.forms), MAX_ADDRESSES, "addresses"),
            register("admin wrong tokens", len(access.bearers), MAX_ADDRESSES, "addresses"),
        ]
        return memory(self.running, own)

    def login_page(self, status: int, wrong: str | None) -> AdminResponse:
        """The form, after what went wrong."""
        return AdminResponse(status, self.pages.login(wrong), HTML)

    # --- reading -----------------------------------------------------------------------

    def _readyz(self, asked: AdminQuery) -> AdminResponse:
        why_not = ready(self.running)
        return (
            AdminResponse(200, {"status": "ready"})
            if why_not is None
            else AdminResponse(503, {"status": why_not})
        )

    def _status(self, asked: AdminQuery) -> AdminResponse:
        asked.request.setHeader("vary", "accept, cookie")
        if wants_html(asked.request):
            arguments: Any = asked.request.args
            return AdminResponse(200, self.pages.status(arguments, asked.visitor), HTML)
        return AdminResponse(200, overview(self.running))

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
        if asked.request.method == b"HEAD":
            return AdminResponse(200, b"", "text/event-stream")
        self.live.listen(asked.request, lambda: self.access.lasts(asked.visitor))
        return NOT_DONE_YET

    def _scrape(self, asked: AdminQuery) -> AdminResponse:
        content_type, text = self._metrics(accepted(asked.request))
        return AdminResponse(200, text, content_type)

    # --- coming and going ----------------------------------------------------------------

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
        headers = {"set-cookie": cookie(session_id, asked.request.isSecure())}
        if asked.by_form:
            return see_other("/status", headers)
        return AdminResponse(200, {"result": "logged in", "login": login.name}, headers=headers)

    def _log_out(self, asked: AdminQuery) -> AdminResponse:
        if asked.visitor.login is not None:
            name, address = asked.visitor.login.name, asked.visitor.address
            self.audit.note(name, address, "log out", None, True, "done")
        self.access.log_out(asked.request)
        headers = {"set-cookie": cookie("", asked.request.isSecure())}
        if asked.by_form:
            return see_other("/login", headers)
        return AdminResponse(200, {"result": "logged out"}, headers=headers)

    # --- acting --------------------------------------------------------------------------

    def _account(self, asked: AdminQuery) -> Any:
        name, action = asked.names["name"], asked.names["action"]
        return self._act(
            asked, action, name, "accounts", lambda: self.actions.account(name, action)
        )

    def _conversation(self, asked: AdminQuery) -> Any:
        identity, action = asked.names["id"], asked.names["action"]
        return self._act(
            asked,
            action,
            identity,
            "conversations",
            lambda: self.actions.conversation(identity, action),
        )

    def _log_level(self, asked: AdminQuery) -> Any:
        level = asked.body.get("level")
        act = lambda: self.actions.log_level(level)  # noqa: E731
        return self._act(asked, "set the log level", str(level), "configuration", act)

    def _drain(self, asked: AdminQuery) -> Any:
        return self._act(asked, "drain", None, "configuration", self.actions.drain)

    def _reload(self, asked: AdminQuery) -> Any:
        return self._act(asked, "reload", None, "configuration", self.actions.reload)

    def _dry_run(self, asked: AdminQuery) -> Any:
        return dry_run(self.running, asked.body)

    def _act(
        self,
        asked: AdminQuery,
        action: str,
        target: str | None,
        section: str,
        act: Callable[[], Any],
    ) -> Any:
        """Do it, note it, and answer; a browser goes back to where the button was, and is told."""
        visitor = asked.visitor
        browser = visitor.login if asked.by_form else None

        def back(login: AdminSession, said: str) -> AdminResponse:
            login.tell(said, self.running.now())
            return see_other(f"/status#{section}")

        def note(done: bool, result: str) -> None:
            self.audit.note(
                visitor.name or "nobody known", visitor.address, action, target, done, result
            )

        def did(done: dict[str, Any]) -> Any:
            note(True, done["result"])
            self.pages.forget()
            return done if browser is None else back(browser, done["result"])

        def failed(failure: Failure) -> Failure:
            note(False, "the gateway failed; the log says why")
            return failure

        try:
            done = act()
        except AdminError as error:
            note(False, error.sentence)
            if browser is not None:
                return back(browser, error.sentence)
            raise
        except Exception:
            note(False, "the gateway failed; the log says why")
            raise
        if isinstance(done, Deferred):
            return done.addCallbacks(did, failed)
        return did(done)
