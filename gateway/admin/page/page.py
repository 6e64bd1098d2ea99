"""The status page: its query, its parts, and the data that each part shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

from markupsafe import Markup

from gateway.admin.actions import LEVELS
from gateway.admin.page.charts import ChainPicture, Json
from gateway.admin.page.rendering import render
from gateway.admin.running_gateway import RunningGateway
from gateway.admin.views.conversations import conversations, turns, why
from gateway.admin.views.overview import configuration, overview

#: Seconds for which what was rendered is shared, so that ten open pages cost as much as one.
_KEPT_SECONDS = 1.0
_MOST_KEPT = 32

#: Turns on the page unless the browser asks for others, and the most it gets.
_TURNS = 50
_MOST_TURNS = 500

#: Longest value of the page's query that is read.
_LONGEST = 300

#: Conversations on the page.
_CONVERSATIONS = 50

#: As many colours tell accounts apart.
_COLOURS = 8

T = TypeVar("T")


class Viewer(NamedTuple):
    """The rights of the person at the browser.

    :ivar why_not: why nothing can be done here; None where buttons are offered.
    :ivar signed_in: whether there is a login to end.
    :ivar can_sign_in: whether a token is configured to sign in with.
    :ivar said: what came of an action just now, for browsers without scripts.
    """

    why_not: str | None = None
    signed_in: bool = False
    can_sign_in: bool = False
    said: str | None = None

    @property
    def may_act(self) -> bool:
        """Whether buttons are offered."""
        return self.why_not is None


class PageQuery(NamedTuple):
    """The query of the page's address: searches, filters, and one response to explain."""

    q: str = ""
    why: str = ""
    account: str = ""
    key: str = ""
    status: str = ""
    limit: int = _TURNS

    @classmethod
    def of(cls, arguments: Mapping[bytes, Sequence[bytes]]) -> PageQuery:
        """Read a request's ``args``; what makes no sense is left out."""

        def first(name: bytes) -> str:
            values = arguments.get(name) or [b""]
            return values[0].decode("utf-8", "replace").strip()[:_LONGEST]

        limit = first(b"limit")
        number = int(limit) if limit.isascii() and limit.isdigit() and len(limit) < 5 else _TURNS
        return cls(
            first(b"q"),
            first(b"why"),
            first(b"account"),
            first(b"key"),
            first(b"status"),
            min(max(number, 1), _MOST_TURNS),
        )

    def filters(self) -> dict[str, str]:
        """Those of the turns, for an address."""
        wanted = {"account": self.account, "key": self.key, "status": self.status}
        chosen = {name: value for name, value in wanted.items() if value}
        if self.limit != _TURNS:
            chosen["limit"] = str(self.limit)
        return chosen

    def address(self, path: str, **more: str) -> str:
        """``path`` with the filters and ``more``."""
        query = urlencode({**self.filters(), **more}, errors="replace")
        return f"{path}?{query}" if query else path


class _Section(NamedTuple):
    """A part of the page that one can go to.

    :ivar part: the template and the ``?part=`` of its body.
    :ivar moves: whether its rows move when something happens.
    """

    name: str
    title: str
    part: str
    moves: bool = False


_SECTIONS = (
    _Section("now", "Now", "top"),
    _Section("accounts", "Accounts", "accounts"),
    _Section("conversations", "Conversations", "conversations", moves=True),
    _Section("turns", "Turns", "turns", moves=True),
    _Section("keys", "Keys", "keys"),
    _Section("memory", "Memory", "memory"),
    _Section("configuration", "Configuration", "configuration"),
)

#: The parts that the script asks for by ``?part=``, in their order.
PARTS = tuple(section.part for section in _SECTIONS)


class PageData:
    """The data of the page, as the API answers it; each is read only where it is shown.

    :param memory: ``GET /status/memory``.
    """

    def __init__(self, running: RunningGateway, memory: Callable[[], Json]) -> None:
        self._running = running
        self.memory = memory

    def status(self) -> Json:
        """``GET /status``, with accounts, keys and history."""
        return overview(self._running)

    def conversations(self, query: str, limit: int) -> Json:
        """``GET /status/conversations``."""
        return conversations(self._running, query, limit)

    def why(self, name: str) -> Json | None:
        """``GET /status/conversations/<name>/why``; None when nothing is known of ``name``."""
        return why(self._running, name)

    def turns(self, account: str, key: str, status: str, limit: int) -> Json:
        """``GET /status/turns``, the newest last; empty strings ask for any."""
        return turns(self._running, account or None, key or None, status or None, limit=limit)

    def configuration(self) -> Json:
        """``GET /status/config``."""
        return configuration(self._running)


class Page:
    """Makes the page, whole or in parts.

    :param now: unix seconds.
    """

    def __init__(self, data: PageData, now: Callable[[], float]) -> None:
        self._data = data
        self._now = now
        self._kept: dict[Any, Any] = {}
        self._kept_until = 0.0
        self._settings: tuple[Any, Markup] | None = None

    def render(self, arguments: Mapping[bytes, Sequence[bytes]], viewer: Viewer) -> bytes:
        """The page, or the part that the query asks for.

        :param arguments: a request's ``args``.
        """
        query = PageQuery.of(arguments)
        part = (arguments.get(b"part") or [b""])[0].decode("ascii", "replace")
        if part not in PARTS:
            part = ""
        make = self._part if part else self._whole
        return self._shared(
            (part, query, viewer), lambda: make(part, query, viewer).encode("utf-8", "replace")
        )

    def forget(self) -> None:
        """Render anew, because an action changed the state."""
        self._kept_until = 0.0

    def _whole(self, _: str, query: PageQuery, viewer: Viewer) -> Markup:
        return render(
            "page",
            state=self._status()["state"],
            sections=_SECTIONS,
            bodies={each.name: self._part(each.part, query, viewer) for each in _SECTIONS},
            viewer=viewer,
            now=self._now(),
        )

    def _part(self, name: str, query: PageQuery, viewer: Viewer) -> Markup:
        status = self._status()
        names = [account["name"] for account in status["accounts"]]
        return render(
            name,
            query=query,
            viewer=viewer,
            now=self._now(),
            status=status,
            colours={each: f"c{number % _COLOURS}" for number, each in enumerate(names)},
            **getattr(self, f"_{name}")(query, status),
        )

    def _top(self, query: PageQuery, status: Json) -> Json:
        return {}

    def _accounts(self, query: PageQuery, status: Json) -> Json:
        return {"accounts": status["accounts"]}

    def _conversations(self, query: PageQuery, status: Json) -> Json:
        found = self._data.why(query.why) if query.why else None
        return {
            "conversations": self._data.conversations(query.q, _CONVERSATIONS)["conversations"],
            "why": found,
            "chain": None if found is None else ChainPicture(found["chain"]["nodes"]),
        }

    def _turns(self, query: PageQuery, status: Json) -> Json:
        found = self._data.turns(query.account, query.key, query.status, query.limit)
        return {
            "turns": found["turns"][::-1],
            "accounts": [account["name"] for account in status["accounts"]],
            "keys": [key["name"] for key in status["keys"]],
            "statuses": list(status["turns"]),
        }

    def _keys(self, query: PageQuery, status: Json) -> Json:
        return {"keys": status["keys"]}

    def _memory(self, query: PageQuery, status: Json) -> Json:
        return {"registers": self._data.memory()["registers"]}

    def _configuration(self, query: PageQuery, status: Json) -> Json:
        """The settings change only with their generation; there are thousands, so they are kept."""
        found = self._data.configuration()
        generation = (found["generation"], found["source"])
        if self._settings is None or self._settings[0] != generation:
            groups = [_setting_group(name, list(each)) for name, each in _by_section(found)]
            tables = render("settings", source=found["source"], groups=groups)
            self._settings = (generation, tables)
        return {
            "log_level": found["log_level"],
            "levels": LEVELS,
            "can_reload": found["can_reload"],
            "settings": self._settings[1],
        }

    def _status(self) -> Json:
        return self._shared("status", self._data.status)

    def _shared(self, what: Any, make: Callable[[], T]) -> T:
        """The value of the last second, or a new one."""
        now = self._now()
        if now >= self._kept_until or now < self._kept_until - _KEPT_SECONDS:
            self._kept.clear()
            self._kept_until = now + _KEPT_SECONDS
        if what not in self._kept:
            new = make()
            if len(self._kept) >= _MOST_KEPT:
                return new
            self._kept[what] = new
        found: T = self._kept[what]
        return found


def login_page(wrong: str | None = None) -> bytes:
    """The form that posts ``token`` to ``/login``.

    :param wrong: why the last try failed.
    """
    return render("login", wrong=wrong).encode("utf-8", "replace")


def _by_section(found: Json) -> Any:
    """Accounts and keys one by one, other settings by section."""
    return groupby(found["settings"], key=lambda setting: setting["path"].partition(".")[0])


def _setting_group(name: str, settings: Sequence[Json]) -> Json:
    named = (each["value"] for each in settings if each["path"] == f"{name}.name")
    return {
        "name": name,
        "title": next(named, None),
        "changed": sum(each["origin"] != "default" for each in settings),
        "settings": settings,
    }
