"""The page of the running gateway, as the admin side mounts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twisted.web.resource import Resource

from gateway.admin.auth import Access, Visitor
from gateway.admin.page.login import render_login
from gateway.admin.page.page import Page
from gateway.admin.page.source import Json, Viewer
from gateway.admin.page.static_files import StaticFiles
from gateway.admin.running import Running
from gateway.admin.views.configuration import configuration
from gateway.admin.views.conversations import conversations
from gateway.admin.views.overview import overview
from gateway.admin.views.turns import turns
from gateway.admin.views.why import why


class BrowserPages:
    """Makes HTML of what the API shows.

    :param registers: gives the memory register.
    :ivar static: the files that pages load, mounted at ``/static``.
    """

    def __init__(self, running: Running, access: Access, registers: Callable[[], Json]) -> None:
        self.static: Resource = StaticFiles()
        self._access = access
        self._now = running.now
        self._page = Page(_Source(running, registers), running.now)

    def status(self, arguments: Mapping[bytes, Sequence[bytes]], visitor: Visitor) -> bytes:
        """The page of ``/status``.

        :param arguments: a request's ``args``.
        """
        login = visitor.login
        said = None if login is None else login.said(self._now())
        viewer = Viewer(visitor.why_not, login is not None, self._access.has_token, said)
        return self._page.render(arguments, viewer)

    def login(self, wrong: str | None) -> bytes:
        """The form that posts ``token`` to ``/login``.

        :param wrong: why the last try failed.
        """
        return render_login(wrong)

    def forget(self) -> None:
        """Somebody acted: show what is so now."""
        self._page.forget()


class _Source:
    """See :class:`~gateway.admin.page.source.PageSource`."""

    def __init__(self, running: Running, registers: Callable[[], Json]) -> None:
        self._running = running
        self._registers = registers

    def status(self) -> Json:
        return overview(self._running)

    def conversations(self, query: str, limit: int) -> Json:
        return conversations(self._running, query, limit)

    def why(self, name: str) -> Json | None:
        return why(self._running, name)

    def turns(self, account: str, key: str, status: str, limit: int) -> Json:
        return turns(
            self._running,
            account or None,
            key or None,
            status or None,
            conversation=None,
            limit=limit,
        )

    def memory(self) -> Json:
        return self._registers()

    def configuration(self) -> Json:
        return configuration(self._running)
