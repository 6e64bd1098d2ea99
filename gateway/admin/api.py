"""The admin API: the table of its routes, and what each answers.  GET never changes anything."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from gateway import __version__
from gateway.admin.actions import MAX_ACTIONS, RECORDED, Audit
from gateway.admin.auth import MAX_ADDRESSES, MAX_LOGINS, AccessControl, Caller, cookie
from gateway.admin.live import MAX_LISTENERS, LiveFeed
from gateway.admin.managed_gateway import ManagedGateway, when_known
from gateway.admin.page import (
    Page,
    PageData,
    Viewer,
    login_page,
    recordings_page,
    timeline_page,
)
from gateway.admin.requests import AdminError, AdminRequest, bad_request, not_found
from gateway.admin.responses import HTML, AdminResponse, accepted, see_other, wants_html
from gateway.metrics.bounded_structures import BoundedStructure
from gateway.server.routes import RouteTable

#: The description of the admin API, OpenAPI 3.1: the contract that tests hold the code to.
DESCRIPTION: dict[str, Any] = msgspec.json.decode(
    (files(__package__) / "openapi.json").read_bytes()
)
DESCRIPTION["info"]["version"] = __version__

_MAX_LISTED = 1000

#: Where a page of a recording may begin, in bytes.
_FURTHEST = 2**40

#: In the audit log; further pages of the same recording are one reading.
_READ = "read a recording"

#: What a handler returns that answers later by itself.
ANSWERED_LATER: Final = object()


class RequiredRole(enum.Enum):
    """The right that a route asks for."""

    ANYBODY = "anybody"
    READER = "reader"
    OPERATOR = "operator"


class AdminQuery(NamedTuple):
    """A request as its handler gets it.

    :ivar names: the parts of the path that its template leaves open.
    :ivar by_form: whether a form was posted, by a browser that shows the answer.
    """

    request: AdminRequest
    caller: Caller
    names: Mapping[str, str]
    query: Mapping[str, str]
    body: Mapping[str, Any]
    by_form: bool = False

    def text(self, name: str) -> str | None:
        """A value of the query; None when it is missing or empty."""
        return self.query.get(name) or None

    def number(self, name: str, default: int, most: int) -> int:
        """A number of the query.

        :raises AdminError: 400 when it is none.
        """
        value = self.query.get(name)
        if not value:
            return default
        digits = max(7, len(str(most)))
        if not (value.isascii() and value.isdigit() and len(value) <= digits and int(value) > 0):
            raise bad_request(f"{name}: expected a number above 0")
        return min(int(value), most)


class AdminRoute(NamedTuple):
    """One method of one path.

    :ivar template: a path whose parts in braces are open.
    :ivar handle: answers with an ``AdminResponse``, with what becomes JSON, with
        :data:`ANSWERED_LATER`, or with a ``Deferred`` of one of the first two.
    """

    method: str
    template: str
    role: RequiredRole
    handle: Callable[[AdminQuery], Any]


class Api:
    """Handlers, and the table that leads to them.

    :ivar pages: for browsers.
    """

    def __init__(self, managed: ManagedGateway, access: AccessControl) -> None:
        self.managed = managed
        self.access = access
        self.audit = Audit(managed.now)
        self.pages = Page(PageData(managed, self.memory), managed.now)
        self.live = LiveFeed(managed, self.pages.forget)
        anybody, reader, operator = RequiredRole.ANYBODY, RequiredRole.READER, RequiredRole.OPERATOR
        routes: list[tuple[str, str, RequiredRole, Callable[[AdminQuery], Any]]] = [
            ("GET", "/", anybody, lambda _: see_other("/status")),
            ("GET", "/livez", anybody, lambda _: {"status": "alive"}),
            ("GET", "/readyz", anybody, self._readyz),
            ("GET", "/openapi.json", anybody, lambda _: AdminResponse(200, DESCRIPTION)),
            ("GET", "/login", anybody, lambda _: self.login_page(200, None)),
            ("POST", "/login", anybody, self._log_in),
            ("POST", "/logout", anybody, self._log_out),
            ("GET", "/status", reader, self._status),
            ("GET", "/status/accounts", reader, lambda _: managed.view("accounts")),
            ("GET", "/status/conversations", reader, self._conversations),
            ("GET", "/status/conversations/{id}/why", reader, self._why),
            ("GET", "/status/turns", reader, self._turns),
            ("GET", "/status/keys", reader, lambda _: managed.view("keys")),
            ("GET", "/status/memory", reader, lambda _: self.memory()),
            ("GET", "/status/config", reader, lambda _: managed.view("configuration")),
            ("GET", "/status/audit", reader, lambda _: self.audit.shown()),
            ("GET", "/status/recordings", reader, self._recordings),
            ("GET", "/status/recordings/{file}", operator, self._recording),
            ("GET", "/events", reader, self._events),
            ("GET", "/metrics", reader, self._scrape),
            ("POST", "/admin/accounts/{name}/{action}", operator, self._account),
            ("POST", "/admin/conversations/{id}/{action}", operator, self._conversation),
            ("POST", "/admin/log-level", operator, self._log_level),
            ("POST", "/admin/drain", operator, self._drain),
            ("POST", "/admin/resume", operator, self._resume),
            ("POST", "/admin/reload", operator, self._reload),
            ("POST", "/admin/record", operator, self._record),
            ("POST", "/admin/record/stop", operator, self._stop_recording),
            ("POST", "/admin/route-dry-run", operator, self._dry_run),
        ]
        self.routes = tuple(AdminRoute(*route) for route in routes)
        table: dict[str, dict[str, AdminRoute]] = {}
        for route in self.routes:
            table.setdefault(route.template, {})[route.method] = route
        self.table = RouteTable(table)

    def memory(self) -> Any:
        """The bounded structures, with those of the admin side itself."""
        access = self.access
        own = (
            ("admin audit", len(self.audit), MAX_ACTIONS, "actions"),
            ("admin logins", len(access.logins), MAX_LOGINS, "logins"),
            ("admin event listeners", len(self.live), MAX_LISTENERS, "connections"),
            ("admin wrong logins", len(access.forms), MAX_ADDRESSES, "addresses"),
            ("admin wrong tokens", len(access.bearers), MAX_ADDRESSES, "addresses"),
        )
        shown = [BoundedStructure(*each)._asdict() for each in own]
        return when_known(
            self.managed.view("memory"),
            lambda found: {**found, "registers": [*found["registers"], *shown]},
        )

    def login_page(self, status: int, wrong: str | None) -> AdminResponse:
        """The login form, with the error of the last try."""
        return AdminResponse(status, login_page(wrong), HTML)

    # --- reading -----------------------------------------------------------------------

    def _readyz(self, query: AdminQuery) -> Any:
        return when_known(self.managed.view("readiness"), _readiness)

    def _status(self, query: AdminQuery) -> Any:
        vary = {"vary": "accept, cookie"}
        if not wants_html(query.request):
            return when_known(
                self.managed.view("overview"),
                lambda found: AdminResponse(200, found, headers=vary),
            )
        raw = query.request.http.query_string.encode("latin-1")
        arguments = parse_qs(raw, keep_blank_values=True)
        login = query.caller.login
        said = None if login is None else login.said(self.managed.now())
        viewer = Viewer(query.caller.why_not, login is not None, self.access.has_token, said)
        return when_known(
            self.pages.render(arguments, viewer),
            lambda page: AdminResponse(200, page, HTML, vary),
        )

    def _conversations(self, query: AdminQuery) -> Any:
        limit = query.number("limit", 100, _MAX_LISTED)
        q = (query.text("q") or "").strip()[:300]
        return self.managed.view("conversations", q=q, limit=limit)

    def _why(self, query: AdminQuery) -> Any:
        return when_known(self.managed.view("why", identity=query.names["id"]), _known)

    def _turns(self, query: AdminQuery) -> Any:
        return self.managed.view(
            "turns",
            account=query.text("account"),
            key=query.text("key"),
            status=query.text("status"),
            conversation=query.text("conversation"),
            limit=query.number("limit", _MAX_LISTED, _MAX_LISTED),
        )

    def _dry_run(self, query: AdminQuery) -> Any:
        return self.managed.view("dry_run", body=query.body)

    def _recordings(self, query: AdminQuery) -> Any:
        may_act, as_html = query.caller.why_not is None, wants_html(query.request)
        return when_known(
            self.managed.view("recordings"),
            lambda found: _html(recordings_page(found, may_act)) if as_html else found,
        )

    def _recording(self, query: AdminQuery) -> Any:
        """What one turn said; the audit log notes who reads it."""
        name, start = query.names["file"], query.number("from", 0, _FURTHEST)
        caller, as_html = query.caller, wants_html(query.request)

        def shown(found: dict[str, Any] | None) -> Any:
            if found is None:
                raise not_found("this recording is not there any more")
            who = caller.name or "nobody known"
            if start == 0 or not self.audit.is_last(who, caller.address, _READ, name):
                self.audit.note(who, caller.address, _READ, name, True, "done")
            return _html(timeline_page(found)) if as_html else found

        return when_known(self.managed.view("recording", name=name, start=start), shown)

    def _events(self, query: AdminQuery) -> Any:
        if query.request.http.is_head:
            return AdminResponse(200, b"", "text/event-stream")
        self.live.listen(query.request.http, lambda: self.access.lasts(query.caller))
        return ANSWERED_LATER

    def _scrape(self, query: AdminQuery) -> Any:
        return when_known(
            self.managed.metrics(accepted(query.request)),
            lambda found: AdminResponse(200, found[1], found[0]),
        )

    # --- logging in and out --------------------------------------------------------------

    def _log_in(self, query: AdminQuery) -> AdminResponse:
        token = query.body.get("token")
        if not isinstance(token, str):
            raise bad_request("token: expected the admin token")
        address = query.caller.address
        try:
            session_id, login = self.access.log_in(query.request, token)
        except AdminError as error:
            if error.status == 401:
                self.audit.note("nobody known", address, "log in", None, False, error.sentence)
            if query.by_form:
                return self.login_page(error.status, error.sentence)._replace(headers=error.headers)
            raise
        self.audit.note(login.name, address, "log in", None, True, "done")
        headers = {"set-cookie": cookie(session_id, query.request.is_secure)}
        if query.by_form:
            return see_other("/status", headers)
        return AdminResponse(200, {"result": "logged in", "login": login.name}, headers=headers)

    def _log_out(self, query: AdminQuery) -> AdminResponse:
        if query.caller.login is not None:
            name, address = query.caller.login.name, query.caller.address
            self.audit.note(name, address, "log out", None, True, "done")
        self.access.log_out(query.request)
        headers = {"set-cookie": cookie("", query.request.is_secure)}
        if query.by_form:
            return see_other("/login", headers)
        return AdminResponse(200, {"result": "logged out"}, headers=headers)

    # --- acting --------------------------------------------------------------------------

    def _account(self, query: AdminQuery) -> Any:
        name, action = query.names["name"], query.names["action"]
        act = lambda: self.managed.act("account", name=name, action=action)  # noqa: E731
        return self._act(query, action, name, "accounts", act)

    def _conversation(self, query: AdminQuery) -> Any:
        identity, action = query.names["id"], query.names["action"]
        act = lambda: self.managed.act("conversation", identity=identity, action=action)  # noqa: E731
        return self._act(query, action, identity, "conversations", act)

    def _log_level(self, query: AdminQuery) -> Any:
        level = query.body.get("level")
        act = lambda: self.managed.act("log_level", level=level)  # noqa: E731
        return self._act(query, "set the log level", str(level), "configuration", act)

    def _drain(self, query: AdminQuery) -> Any:
        return self._act(query, "drain", None, "configuration", lambda: self.managed.act("drain"))

    def _resume(self, query: AdminQuery) -> Any:
        return self._act(query, "resume", None, "configuration", lambda: self.managed.act("resume"))

    def _record(self, query: AdminQuery) -> Any:
        act = lambda: self.managed.act("record", asked=query.body)  # noqa: E731
        return self._act(query, "record", _recorded(query.body), "recordings", act)

    def _stop_recording(self, query: AdminQuery) -> Any:
        act = lambda: self.managed.act("stop_recording", asked=query.body)  # noqa: E731
        return self._act(query, "stop recording", _recorded(query.body), "recordings", act)

    def _reload(self, query: AdminQuery) -> Any:
        return self._act(query, "reload", None, "configuration", lambda: self.managed.act("reload"))

    def _act(
        self,
        query: AdminQuery,
        action: str,
        target: str | None,
        section: str,
        act: Callable[[], Any],
    ) -> Any:
        """Do it, note it in the audit log, and answer.

        A browser that sent a form is redirected to the section of its button, and the page shows
        the result there.
        """
        caller = query.caller
        browser = caller.login if query.by_form else None
        name = caller.name or "nobody known"

        def note(done: bool, result: str) -> None:
            self.audit.note(name, caller.address, action, target, done, result)

        def answer(result: str, value: Any) -> Any:
            if browser is None:
                return value
            browser.tell(result, self.managed.now())
            return see_other(f"/status#{section}")

        def did(done: dict[str, Any]) -> Any:
            note(True, done["result"])
            self.pages.forget()
            return answer(done["result"], done)

        def refused(error: AdminError) -> Any:
            note(False, error.sentence)
            if browser is None:
                raise error
            return answer(error.sentence, None)

        def failed(failure: Failure) -> Any:
            if isinstance(failure.value, AdminError):
                return refused(failure.value)
            note(False, "the gateway failed; the log says why")
            return failure

        try:
            done = act()
        except AdminError as error:
            return refused(error)
        except Exception:
            note(False, "the gateway failed; the log says why")
            raise
        if isinstance(done, Deferred):
            return done.addCallbacks(did, failed)
        return did(done)


def _readiness(found: Mapping[str, Any]) -> AdminResponse:
    if found["why_not"] is None:
        return AdminResponse(200, {"status": "ready"})
    return AdminResponse(503, {"status": found["why_not"]})


def _known(found: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if found is None:
        raise not_found("nothing is known of this conversation")
    return found


def _recorded(asked: Mapping[str, Any]) -> str:
    """What is to be recorded, for the audit log."""
    return " ".join(f"{what} {asked[what]}" for what in RECORDED if asked.get(what))


def _html(page: bytes) -> AdminResponse:
    return AdminResponse(200, page, HTML, {"vary": "accept, cookie"})
