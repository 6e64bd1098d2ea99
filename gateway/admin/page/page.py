"""The status page: its query, its parts, and the data that each part shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple
from urllib.parse import urlencode

from markupsafe import Markup

from gateway.admin.actions import LEVELS
from gateway.admin.managed_gateway import ManagedGateway, all_known, when_known
from gateway.admin.page.charts import ChainPicture, Json
from gateway.admin.page.rendering import render

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
    _Section("recordings", "Recordings", "recordings"),
    _Section("memory", "Memory", "memory"),
    _Section("configuration", "Configuration", "configuration"),
)

#: The parts that the script asks for by ``?part=``, in their order.
PARTS = tuple(section.part for section in _SECTIONS)


class PageData:
    """The data of the page, as the API answers it; each is read only where it is shown.

    It is a value, or a ``Deferred`` of one.

    :param memory: ``GET /status/memory``.
    """

    def __init__(self, managed: ManagedGateway, memory: Callable[[], Any]) -> None:
        self._managed = managed
        self.memory = memory

    def status(self) -> Any:
        """``GET /status``, with accounts, keys and history."""
        return self._managed.view("overview")

    def conversations(self, query: str, limit: int) -> Any:
        """``GET /status/conversations``."""
        return self._managed.view("conversations", q=query, limit=limit)

    def why(self, name: str) -> Any:
        """``GET /status/conversations/<name>/why``; None when nothing is known of ``name``."""
        return self._managed.view("why", identity=name)

    def turns(self, account: str, key: str, status: str, limit: int) -> Any:
        """``GET /status/turns``, the newest last; empty strings ask for any."""
        return self._managed.view(
            "turns",
            account=account or None,
            key=key or None,
            status=status or None,
            limit=limit,
        )

    def recordings(self) -> Any:
        """``GET /status/recordings`` without the files."""
        return self._managed.view("recorded")

    def configuration(self) -> Any:
        """``GET /status/config``."""
        return self._managed.view("configuration")


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

    def render(self, arguments: Mapping[bytes, Sequence[bytes]], viewer: Viewer) -> Any:
        """The page, or the part that the query asks for; or a ``Deferred`` of it.

        :param arguments: a request's ``args``.
        """
        query = PageQuery.of(arguments)
        part = (arguments.get(b"part") or [b""])[0].decode("ascii", "replace")
        if part not in PARTS:
            part = ""

        def make(found: Json) -> bytes:
            body = (
                self._part(part, query, viewer, found)
                if part
                else self._whole(query, viewer, found)
            )
            return body.encode("utf-8", "replace")

        return self._shared(
            (part, query, viewer),
            lambda: when_known(self._found(part, query), make),
        )

    def forget(self) -> None:
        """Render anew, because the state has changed, or browsers were told a newer one."""
        self._kept_until = 0.0

    def _found(self, part: str, query: PageQuery) -> Any:
        """The data that the parts show, by their names; and the status, which all show."""
        needed = {part: _DATA.get(part)} if part else _DATA
        found = {name: of(self._data, query) for name, of in needed.items() if of is not None}
        return all_known({"status": self._shared("status", self._data.status), **found})

    def _whole(self, query: PageQuery, viewer: Viewer, found: Json) -> Markup:
        return render(
            "page",
            state=found["status"]["state"],
            sections=_SECTIONS,
            bodies={each.name: self._part(each.part, query, viewer, found) for each in _SECTIONS},
            viewer=viewer,
            now=self._now(),
        )

    def _part(self, name: str, query: PageQuery, viewer: Viewer, found: Json) -> Markup:
        status = found["status"]
        names = [account["name"] for account in status["accounts"]]
        return render(
            name,
            query=query,
            viewer=viewer,
            now=self._now(),
            status=status,
            colours={each: f"c{number % _COLOURS}" for number, each in enumerate(names)},
            **getattr(self, f"_{name}")(found.get(name), status),
        )

    def _top(self, found: Json, status: Json) -> Json:
        return {}

    def _accounts(self, found: Json, status: Json) -> Json:
        return {"accounts": status["accounts"]}

    def _conversations(self, found: Json, status: Json) -> Json:
        why = found["why"]
        return {
            "conversations": found["conversations"],
            "why": why,
            "chain": None if why is None else ChainPicture(why["chain"]["nodes"]),
        }

    def _turns(self, found: Json, status: Json) -> Json:
        return {
            "turns": found["turns"][::-1],
            "accounts": [account["name"] for account in status["accounts"]],
            "keys": [key["name"] for key in status["keys"]],
            "statuses": list(status["turns"]),
        }

    def _keys(self, found: Json, status: Json) -> Json:
        return {"keys": status["keys"]}

    def _recordings(self, found: Json, status: Json) -> Json:
        names = {
            "key": [key["name"] for key in status["keys"]],
            "account": [account["name"] for account in status["accounts"]],
        }
        return {"recordings": found, "names": names}

    def _memory(self, found: Json, status: Json) -> Json:
        return {"registers": found["registers"]}

    def _configuration(self, found: Json, status: Json) -> Json:
        """The settings change only with their generation; there are thousands, so they are kept."""
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

    def _shared(self, what: Any, make: Callable[[], Any]) -> Any:
        """The value of the last second unless it was to be forgotten, or a new one."""
        now = self._now()
        if now >= self._kept_until or now < self._kept_until - _KEPT_SECONDS:
            self._kept = {}
            self._kept_until = now + _KEPT_SECONDS
        kept = self._kept
        if what in kept:
            return kept[what]

        def keep(new: Any) -> Any:
            if len(kept) < _MOST_KEPT:
                kept[what] = new
            return new

        return when_known(make(), keep)


def _conversation_data(data: PageData, query: PageQuery) -> Any:
    why = data.why(query.why) if query.why else None
    found = data.conversations(query.q, _CONVERSATIONS)
    return when_known(
        all_known({"why": why, "found": found}),
        lambda known: {"why": known["why"], **known["found"]},
    )


#: What parts show besides the status.
_DATA: Mapping[str, Callable[[PageData, PageQuery], Any]] = {
    "conversations": _conversation_data,
    "turns": lambda data, query: data.turns(query.account, query.key, query.status, query.limit),
    "recordings": lambda data, _: data.recordings(),
    "memory": lambda data, _: data.memory(),
    "configuration": lambda data, _: data.configuration(),
}


def login_page(wrong: str | None = None) -> bytes:
    """The form that posts ``token`` to ``/login``.

    :param wrong: why the last try failed.
    """
    return render("login", wrong=wrong).encode("utf-8", "replace")


def recordings_page(found: Json, may_act: bool) -> bytes:
    """The files of request logs.

    :param found: ``GET /status/recordings``.
    """
    return render("files", found=found, may_act=may_act).encode("utf-8", "replace")


def timeline_page(found: Json) -> bytes:
    """One turn as a timeline.

    :param found: ``GET /status/recordings/<file>``.
    """
    return render("timeline", found=found).encode("utf-8", "replace")


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
