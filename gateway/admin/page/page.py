"""The page: its sections in order, and what is kept of them for a moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from gateway.admin.page.accounts import accounts_table
from gateway.admin.page.banner import banner
from gateway.admin.page.configuration import controls, settings_tables
from gateway.admin.page.conversations import conversations_table, explanation, search_form
from gateway.admin.page.keys import keys_table
from gateway.admin.page.layout import document, section
from gateway.admin.page.memory import memory_table
from gateway.admin.page.now import now_tiles
from gateway.admin.page.rendering import Html, tag
from gateway.admin.page.source import Json, PageQuery, PageSource, Viewer
from gateway.admin.page.turns import turns_filters, turns_table

#: For so long, in seconds, everybody is shown the same: ten open pages cost as much as one.
_KEPT_SECONDS = 1.0
_MOST_KEPT = 32
_SECTIONS = (
    ("now", "Now"),
    ("accounts", "Accounts"),
    ("conversations", "Conversations"),
    ("turns", "Turns"),
    ("keys", "Keys"),
    ("memory", "Memory"),
    ("configuration", "Configuration"),
)

#: Their rows move when something happens.
_MOVING = ("conversations", "turns")

T = TypeVar("T")


class Page:
    """Makes the page, whole or in parts.

    :param source: what it shows.
    :param now: unix seconds.
    """

    def __init__(self, source: PageSource, now: Callable[[], float]) -> None:
        self._source = source
        self._now = now
        self._kept: dict[Any, Any] = {}
        self._kept_until = 0.0
        self._settings: tuple[Any, Html] | None = None

    def render(self, arguments: Mapping[bytes, Sequence[bytes]], viewer: Viewer) -> bytes:
        """The page, or the part that the query asks for.

        :param arguments: a request's ``args``.
        """
        asked = PageQuery.of(arguments)
        part = (arguments.get(b"part") or [b""])[0].decode("ascii", "replace")
        if part in PARTS:
            return self._shared(
                (part, asked, viewer), lambda: _encoded(self._part(part, asked, viewer))
            )
        return self._shared(("", asked, viewer), lambda: self._whole(asked, viewer))

    def _whole(self, asked: PageQuery, viewer: Viewer) -> bytes:
        bodies: dict[str, Any] = {name: self._part(name, asked, viewer) for name in PARTS}
        bodies["now"] = bodies.pop("top")
        state = str(self._status().get("state", "ready"))
        return document(
            f"{state} · responses-gateway",
            tag("a", "Skip to the status", href="#main", class_="skip"),
            _head(viewer),
            tag(
                "main",
                tag("p", viewer.said, id="said", role="status", class_="said"),
                [
                    section(name, title, bodies[name], aside=_aside(name))
                    for name, title in _SECTIONS
                ],
                id="main",
                tabindex="-1",
                data_now=f"{self._now():.3f}",
            ),
            live=True,
        )

    def _part(self, name: str, asked: PageQuery, viewer: Viewer) -> Html:
        return tag("div", PARTS[name](self, asked, viewer), data_part=name)

    def _top(self, asked: PageQuery, viewer: Viewer) -> list[Html]:
        status = self._status()
        return [banner(status, self._now()), now_tiles(status)]

    def _accounts(self, asked: PageQuery, viewer: Viewer) -> Html:
        return accounts_table(self._status().get("accounts") or [], viewer, self._now())

    def _conversations(self, asked: PageQuery, viewer: Viewer) -> list[Html | None]:
        found = self._source.conversations(asked.q, 50).get("conversations") or []
        why = self._source.why(asked.why) if asked.why else None
        names, now = self._names(), self._now()
        return [
            search_form(asked),
            conversations_table(found, names, asked, viewer, now),
            explanation(asked, why, names, now),
        ]

    def _turns(self, asked: PageQuery, viewer: Viewer) -> list[Html]:
        status = self._status()
        found = self._source.turns(asked.account, asked.key, asked.status, asked.limit)
        keys = [str(each.get("name")) for each in status.get("keys") or ()]
        return [
            turns_filters(asked, self._names(), keys, list(status.get("turns") or ())),
            turns_table(found.get("turns", [])[::-1], self._names(), asked, self._now()),
        ]

    def _keys(self, asked: PageQuery, viewer: Viewer) -> Html:
        return keys_table(self._status().get("keys") or [], self._now())

    def _memory(self, asked: PageQuery, viewer: Viewer) -> Html:
        return memory_table(self._source.memory().get("registers") or [])

    def _configuration(self, asked: PageQuery, viewer: Viewer) -> list[Html]:
        """Its values change with its generation alone; there are thousands."""
        found = self._source.configuration()
        generation = (found.get("generation"), found.get("source"))
        if self._settings is None or self._settings[0] != generation:
            self._settings = (generation, settings_tables(found))
        can_reload = found.get("can_reload", True)
        return [
            controls(self._status(), found.get("log_level"), can_reload, viewer),
            self._settings[1],
        ]

    def _status(self) -> Json:
        return self._shared("status", self._source.status)

    def _names(self) -> list[str]:
        return [str(each["name"]) for each in self._status().get("accounts") or ()]

    def _shared(self, what: Any, make: Callable[[], T]) -> T:
        """What was made in the last second, or made now."""
        now = self._now()
        if now >= self._kept_until or now < self._kept_until - _KEPT_SECONDS:
            self._kept.clear()
            self._kept_until = now + _KEPT_SECONDS
        if what not in self._kept:
            made = make()
            if len(self._kept) >= _MOST_KEPT:
                return made
            self._kept[what] = made
        found: T = self._kept[what]
        return found

    def forget(self) -> None:
        """Show what is so now: somebody acted."""
        self._kept_until = 0.0


#: The parts that the script asks for by ``?part=``, in their order.
PARTS: dict[str, Callable[[Page, PageQuery, Viewer], Any]] = {
    "top": Page._top,
    "accounts": Page._accounts,
    "conversations": Page._conversations,
    "turns": Page._turns,
    "keys": Page._keys,
    "memory": Page._memory,
    "configuration": Page._configuration,
}


def _aside(name: str) -> Html | None:
    """Where the script says that it leaves a table alone whose rows would move."""
    return tag("span", data_held=name, class_="muted") if name in _MOVING else None


def _head(viewer: Viewer) -> Html:
    """The name, the way to each section, and who is signed in."""
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title in _SECTIONS]
    if viewer.signed_in:
        door: Html | None = tag(
            "form", tag("button", "Sign out"), method="post", action="/logout", class_="door"
        )
    elif viewer.can_sign_in:
        door = tag("a", "Sign in to act", href="/login", class_="door")
    else:
        door = None
    return tag(
        "header",
        tag("h1", "responses-gateway"),
        tag("nav", tag("ul", links, role="list"), aria_label="Sections"),
        tag("span", "", id="link", class_="link", role="status"),
        tag("span", "", id="age", class_="age", aria_hidden="true"),
        tag("button", "Theme: auto", id="theme", type="button", hidden=True),
        door,
    )


def _encoded(part: Html) -> bytes:
    return part.encode("utf-8", "replace")
