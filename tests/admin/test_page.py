"""The operator's page: whole without scripts, and safe whatever stands in what it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element

import html5lib
import pytest
from jinja2 import UndefinedError

import gateway.admin
from gateway.admin.page import Page, PageQuery, Viewer, login_page
from gateway.admin.page.page import PARTS
from gateway.admin.page.rendering import render
from tests.admin.shown import NOW, Shown

OPERATOR = Viewer(None, signed_in=True, can_sign_in=True)
READER = Viewer("log in, or send 'Authorization: Bearer <token>'", can_sign_in=True)
ATTACKS = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</td></table></svg><iframe src=//evil.example>",
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "&lt;script&gt; &amp;#39; \x00\x08\x1b[31m",
    "\u202egnp.exe\u2066\ud800",
]
SECTIONS = [
    *("now", "accounts", "conversations", "turns", "keys", "recordings", "memory"),
    "configuration",
]


def rendered(shown: Shown, viewer: Viewer = OPERATOR, **asked: str) -> bytes:
    arguments = {name.encode(): [value.encode("utf-8", "replace")] for name, value in asked.items()}
    return Page(shown, lambda: NOW).render(arguments, viewer)


def parsed(page: bytes) -> Element:
    """The page as a browser reads it, which must find nothing to forgive."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    root: Element = parser.parse(page, transport_encoding="utf-8")
    return root


def elements(page: bytes) -> Iterator[Element]:
    return parsed(page).iter()


def text(element: Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def kind(element: Element) -> str:
    """The element's name; those of pictures come with a namespace."""
    return str(element.tag).rpartition("}")[2]


def find(page: bytes, name: str) -> Element:
    found = [each for each in elements(page) if each.get("id") == name]
    assert len(found) == 1, f"expected one element with the id {name!r}, not {len(found)}"
    return found[0]


def assert_harmless(page: bytes, root: Element) -> None:
    for element in root.iter():
        for name, value in element.attrib.items():
            name = str(name).lower()
            assert not name.startswith("on"), f"an event handler: {name}={value!r}"
            assert name != "style", f"an inline style: {value!r}"
            if name in ("href", "src", "action", "formaction"):
                where = urlsplit(value)
                assert not where.scheme, f"{name} leaves the gateway: {value!r}"
                assert not where.netloc, f"{name} leaves the gateway: {value!r}"
        if kind(element) == "script":
            assert element.get("src"), "a script that stands in the page"
            assert not text(element), "a script that stands in the page"
        assert kind(element) not in ("style", "iframe", "img", "object", "embed", "base")


# --- what is on it -------------------------------------------------------------------------


def test_every_section_of_the_page_is_there_in_order() -> None:
    page = rendered(Shown())
    headings = [each for each in elements(page) if kind(each) == "h2"]
    assert [str(each.get("id")).partition("-")[0] for each in headings] == SECTIONS
    assert len([each for each in elements(page) if kind(each) == "h1"]) == 1
    assert {kind(each) for each in elements(page)} >= {"header", "nav", "main"}


def test_ids_are_given_once() -> None:
    ids = [each.get("id") for each in elements(rendered(Shown(), why="resp_05"))]
    given = [each for each in ids if each is not None]
    assert len(given) == len(set(given)), "an id stands twice in the page"


def test_the_banner_tells_the_state_and_what_to_act_on() -> None:
    shown = text(find(rendered(Shown()), "banner"))
    for expected in ("degraded", "0.1.0", "3 d 4 h", "2.4 ms", "312 MB of 1 GB", "4,213 of 65,536"):
        assert expected in shown, f"the banner does not say {expected!r}: {shown}"
    assert "Act: ohio is unauthorized" in shown
    assert "replace its key" in shown, "what helps is not said"
    assert "should end in 3 d 22 h" in shown


def test_an_account_is_a_row_with_its_reason_and_its_countdown() -> None:
    page = rendered(Shown())
    rows = [each for each in elements(page) if each.get("data-account") == "azure-west"]
    assert len(rows) == 1, "expected one row for the account"
    shown = text(rows[0])
    for expected in ("cooling", "429 rate_limit_exceeded", "in 4 min 5 s", "97 %", "33", "812 ms"):
        assert expected in shown, f"the row does not say {expected!r}: {shown}"


def row_of(name: str) -> str:
    """The text of an account's row."""
    (row,) = (each for each in elements(rendered(Shown())) if each.get("data-account") == name)
    return text(row)


def test_a_used_up_account_says_when_its_limit_resets() -> None:
    shown = row_of("team-a")
    assert "in 4 min 5 s" in shown, "when it is tried again"
    assert "its limit resets in 4 d" in shown


def test_a_model_that_rests_is_told_beside_the_state() -> None:
    shown = row_of("south")
    for expected in ("ready", "1 model rests", "gpt-5 in 12 s : 429"):
        assert expected in shown, f"the row does not say {expected!r}: {shown}"


def test_an_account_shows_its_websockets_and_why_there_are_none() -> None:
    assert "4 in use, 12 idle" in row_of("north")
    assert "1 being opened, 340 in all" in row_of("north")
    assert "age 300 closed 1006 7" in row_of("north")
    assert "HTTP for now" not in row_of("north")
    told = "HTTP for now : the service answered the upgrade with 426; tried again in 9 min"
    assert told in row_of("team-a").replace("\u00a0", " ")
    told = "replays : responses were forgotten; continued again in 1 h"
    assert told in row_of("team-a").replace("\u00a0", " ")
    assert "in use" not in row_of("south"), "it is reached over HTTP"


def test_transports_are_compared_where_there_are_several() -> None:
    page = rendered(Shown())
    rows = [
        text(row) for row in find(page, "now").findall(".//table[@class='transports']/tbody/tr")
    ]
    shown = [row.replace("\u00a0", " ") for row in rows]
    assert shown == ["WebSocket 3,000 97 % 73 % 500 B 96 %", "HTTP 1,000 10 % 3 % 90 kB 25 %"]
    alone = OverHttp()
    assert b'class="transports"' not in rendered(alone)


class OverHttp(Shown):
    """A pool without WebSockets."""

    def status(self) -> dict[str, Any]:
        shown = super().status()
        shown["accounts"] = [{**each, "websockets": None} for each in shown["accounts"]]
        shown["transports"]["websocket"]["turns"] = 0
        return shown


def test_accounts_that_do_not_serve_are_named_above_the_table_and_lead_to_their_rows() -> None:
    page = rendered(Shown(accounts=8))
    links = {text(each): str(each.get("href")) for each in elements(page) if kind(each) == "a"}
    for name in ("azure-west", "team-a", "ohio", "spare", "chatgpt"):
        assert find(page, links[name].removeprefix("#")).get("data-account") == name
    assert "north" not in links, "those that serve need nobody"


def test_a_turn_shows_its_phases() -> None:
    page = rendered(Shown(turns=1))
    labels = [str(each.get("aria-label")) for each in elements(page) if kind(each) == "svg"]
    expected = "queue 0.1 ms, choose 0.4 ms, connect 18 ms, first byte 622 ms, stream 760 ms"
    assert expected in [label.replace("\u00a0", " ") for label in labels]


def test_a_turn_over_websocket_says_so_below_its_route() -> None:
    rows = find(rendered(Shown(turns=3)), "turns").findall(".//tbody/tr")
    replayed, chained, _ = (text(row.findall("td")[5]) for row in rows)
    assert chained.split() == ["chained", "websocket"]
    assert replayed == "replayed", "the usual way needs no word"


def test_a_turn_that_got_no_answer_waited_for_one() -> None:
    page = rendered(Shown(turns=4))
    labels = [str(each.get("aria-label")) for each in elements(page) if kind(each) == "svg"]
    failed = next((label for label in labels if label.startswith("queue")), "")
    assert "first byte" in failed, "a turn without a byte waited for the first one"
    assert "stream" not in failed, "nothing was streamed"


def test_turns_are_shown_the_newest_first_and_lead_to_their_json() -> None:
    page = rendered(Shown(turns=3), account="north")
    links = [each.get("href") for each in elements(page) if text(each) == "as JSON"]
    assert links == ["/status/turns?account=north"]
    everything = rendered(Shown(turns=3)).decode()
    assert everything.index('data-key="c2.6"') < everything.index('data-key="c0.4"')


def test_a_conversation_is_explained_in_words_and_drawn_with_its_forks() -> None:
    why = find(rendered(Shown(), why="resp_05"), "why")
    said = text(why)
    assert "It is at home at north" in said
    assert "14 responses, 2 roots, 3 forks" in said
    assert "replayed after resp_02 · forks in 2" in said
    edges = [str(each.get("class")) for each in why.iter() if kind(each) == "path"]
    assert any("edge chained c0" in each for each in edges), "chained edges have their account's"
    assert any("edge replayed" in each for each in edges), "replayed edges look different"


def test_nothing_is_known_of_an_unknown_conversation() -> None:
    assert "Nothing is known" in text(find(rendered(Shown(), why="unknown"), "why"))


def test_the_configuration_has_each_value_with_its_origin() -> None:
    shown = text(find(rendered(Shown()), "configuration"))
    assert "accounts[0].key *** environment OPENAI_KEY" in shown
    assert "routing.strategy least-in-flight file" in shown


def test_who_may_not_act_gets_no_buttons_and_the_reason() -> None:
    page = rendered(Shown(), READER)
    posts = [each for each in elements(page) if each.get("method") == "post"]
    assert posts == [], "a reader was offered an action"
    assert "Only to look at: log in" in text(find(page, "accounts"))
    assert [each.get("href") for each in elements(page) if text(each) == "Sign in to act"] == [
        "/login"
    ]


def test_buttons_are_named_after_what_they_act_on() -> None:
    page = rendered(Shown())
    buttons = {
        str(each.get("formaction")): each for each in elements(page) if each.get("formaction")
    }
    pause = buttons["/admin/accounts/north/pause"]
    assert pause.get("aria-label") == "Pause north"
    assert buttons["/admin/accounts/north/resume"].get("hidden") is not None, "it is not paused"
    assert "/admin/drain" in buttons
    forms = [
        each for each in elements(page) if kind(each) == "form" and each.get("class") == "acts"
    ]
    assert {each.get("method") for each in forms} == {"post"}, "a GET must never act"


def test_what_is_recorded_is_shown_until_when_and_can_be_stopped() -> None:
    page = rendered(Shown())
    said = text(find(page, "recordings"))
    assert "key laptop in 5 min 40 s 3 Stop" in said
    assert "by the configuration until a reload 12" in said
    assert "Nothing is written: No space left on device." in said
    (stop,) = [each for each in elements(page) if each.get("formaction") == "/admin/record/stop"]
    assert (stop.get("name"), stop.get("value")) == ("key", "laptop")
    buttons = [each for each in elements(page) if each.get("formaction") == "/admin/record"]
    named = {(each.get("name"), each.get("value")) for each in buttons}
    assert {("key", "laptop"), ("account", "north"), (None, None)} <= named


def test_a_recorded_turn_leads_to_its_timeline_for_those_who_may_act() -> None:
    link = "/status/recordings/v1-responses-0.log"
    assert link in [each.get("href") for each in elements(rendered(Shown()))]
    page = rendered(Shown(), READER)
    assert link not in [each.get("href") for each in elements(page)]
    assert "recorded" in text(find(page, "turns"))


def test_every_field_has_a_label() -> None:
    page = rendered(Shown(), why="resp_05")
    labelled = {each.get("for") for each in elements(page) if kind(each) == "label"}
    fields = [each for each in elements(page) if kind(each) in ("input", "select")]
    assert fields
    for field in fields:
        assert field.get("id") in labelled, f"no label for {field.attrib}"


def test_a_key_at_its_limit_says_when_it_may_go_on() -> None:
    shown = text(find(rendered(Shown()), "keys"))
    assert shown.count("free in 1 h 30 min") == 2, shown
    assert shown.count("free ") == 2, "only a limit that is reached says so"


def test_a_part_is_a_part() -> None:
    whole, part = rendered(Shown()).decode(), rendered(Shown(), part="keys").decode()
    assert part.startswith('<div data-part="keys">')
    assert part in whole, "the part differs from what stands in the page"
    assert rendered(Shown(), part="nonsense").decode() == whole


# --- what it makes of bad words ------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("part", ["", *PARTS])
def test_no_word_that_comes_from_elsewhere_becomes_markup(attack: str, part: str) -> None:
    asked = {"q": attack, "account": attack, "key": attack, "status": attack, "why": attack}
    page = rendered(Shown(words=attack), part=part, **asked)
    root = parsed(page if not part else b"<!DOCTYPE html><title>x</title>" + page)
    assert_harmless(page, root)
    counted = [kind(each) for each in root.iter()]
    harmless = rendered(Shown(words="x"), part=part, **dict.fromkeys(asked, "x"))
    calm = parsed(harmless if not part else b"<!DOCTYPE html><title>x</title>" + harmless)
    assert counted == [kind(each) for each in calm.iter()], "words changed what the page is made of"


def test_bad_words_are_still_shown() -> None:
    attack = ATTACKS[0]
    page = rendered(Shown(words=attack))
    assert f"north{attack}" in text(find(page, "accounts")), "the account's name is not shown"


@pytest.mark.parametrize("viewer", [OPERATOR, READER, Viewer("no token")], ids=str)
def test_nothing_inline_and_nothing_from_elsewhere(viewer: Viewer) -> None:
    page = rendered(Shown(), viewer, why="resp_01")
    assert_harmless(page, parsed(page))
    assert not re.search(rb"https?://(?!www\.w3\.org)", page.replace(b"https://api.example", b""))


@pytest.mark.parametrize("wrong", [None, *ATTACKS])
def test_the_login_is_as_careful(wrong: str | None) -> None:
    page = login_page(wrong)
    assert_harmless(page, parsed(page))
    fields = {each.get("name"): each for each in elements(page) if kind(each) == "input"}
    assert fields["token"].get("type") == "password"
    alerts = [each for each in elements(page) if each.get("role") == "alert"]
    assert len(alerts) == (0 if wrong is None else 1)


TEMPLATES = sorted((Path(gateway.admin.__file__).parent / "templates").glob("*.html"))

#: What a link of a template may begin with: a place of the gateway, never a value alone.
OWN_PLACES = re.compile(
    r"(?:#|/[a-z]|\{\{ static\(\"|\{\{ query\.address\(\"/status|\{\{ path \}\}(?:/|$))"
)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_templates_have_no_inline_script_or_style_and_escape_everything(template: Path) -> None:
    source = template.read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", source)
    for script in re.findall(r"<script[^>]*>", source):
        assert ' src="' in script
    assert not re.search(r"\|\s*safe\b|autoescape|Markup|\|\s*e\b", source)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_links_of_templates_lead_nowhere_else(template: Path) -> None:
    source = template.read_text()
    for name, link in re.findall(
        r'(?<![\w-])(href|src|action|formaction)="(.*?)"(?=\s|/?>)', source
    ):
        assert OWN_PLACES.match(link), f"{name} may lead elsewhere: {link}"
    for path in re.findall(r"\{% set path = (.*?) %\}", source):
        assert path.startswith('"/admin/'), f"a button may lead elsewhere: {path}"
    for call in re.findall(r"\{\{ button\((.*?)\) \}\}", source):
        path = call.split(", ")[1]
        assert path.startswith(('"/admin/', 'path ~ "/')), f"a button may lead elsewhere: {path}"


def test_text_is_escaped_once_and_a_missing_name_is_an_error() -> None:
    shown = login_page("<&'\"").decode()
    assert 'role="alert">&lt;&amp;&#39;&#34;</p>' in shown
    with pytest.raises(UndefinedError):
        render("login")


# --- what it asks for, and what it keeps ------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ("", 50),
        ("7", 7),
        ("0", 1),
        ("9999", 500),
        ("-1", 50),
        ("1e3", 50),
        ("٣", 50),
        ("9" * 99, 50),
    ],
)
def test_a_limit_is_bounded(given: str, limit: int) -> None:
    assert PageQuery.of({b"limit": [given.encode()]}).limit == limit


class Counting(Shown):
    """Counts how often it was asked."""

    asked = 0

    def status(self) -> dict[str, Any]:
        self.asked += 1
        return super().status()


def test_ten_pages_cost_as_much_as_one() -> None:
    shown, now = Counting(), [NOW]
    page = Page(shown, lambda: now[0])
    answers = {page.render({}, OPERATOR) for _ in range(10)}
    assert (shown.asked, len(answers)) == (1, 1), "what is the same was computed again"
    now[0] += 1.1
    page.render({}, OPERATOR)
    assert shown.asked == 2, "an old page was shown"
    page.forget()
    page.render({}, OPERATOR)
    assert shown.asked == 3, "after an action an old page was shown"


def test_a_reader_is_never_shown_what_was_made_for_an_operator() -> None:
    page = Page(Shown(), lambda: NOW)
    assert b"Pause" in page.render({}, OPERATOR)
    assert b"Pause" not in page.render({}, READER)


def test_what_is_kept_is_bounded() -> None:
    page = Page(Shown(), lambda: NOW)
    for number in range(100):
        page.render({b"q": [str(number).encode()]}, OPERATOR)
    assert len(page._kept) <= 32
