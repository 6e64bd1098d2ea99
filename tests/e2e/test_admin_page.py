"""The operator's page in a real Chromium, while real conversations go through the gateway."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gateway.admin.page.formatting import FORMS
from tests.e2e.browser import Visit
from tests.e2e.codex import NEWEST, CodexClient, CodexRun, run_codex
from tests.e2e.conftest import CLIENT_KEY, Scene
from tests.e2e.scripted_model import success_text, task_prompt
from tests.support.events import Json, user
from tests.support.gateway import Gateway, account
from tests.support.ports import free_port
from tests.support.strict import Mode, Strict
from tests.support.websocket_upstream import WebSocketUpstream

TOKEN = "token-of-the-operator"
CODEX = CodexClient(NEWEST, "gpt-5.5")
ROUNDS = 8
PHONE = {"viewport": {"width": 360, "height": 740}}

Open = Callable[..., Visit]


@pytest.fixture
def upstreams(scene: Scene) -> list[Strict]:
    return [scene.upstream(Mode.STATEFUL, name) for name in ("north", "south")]


@pytest.fixture
def gateway(scene: Scene, upstreams: list[Strict]) -> Iterator[Gateway]:
    """A gateway with two accounts and an admin token."""
    with running(scene, [account(each.name, each.server) for each in upstreams]) as started:
        yield started


@contextmanager
def running(scene: Scene, accounts: list[Json]) -> Iterator[Gateway]:
    admin_port = free_port()
    started = Gateway(
        scene.directory,
        {
            "accounts": accounts,
            "admin": {"listen": f"tcp:{admin_port}:interface=127.0.0.1", "token": TOKEN},
        },
    )
    started.admin_port = admin_port
    scene.logs["the gateway's log"] = started.log
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture
def visit(browser: Any, gateway: Gateway) -> Iterator[Open]:
    """Opens the page, signed in unless told otherwise; at the end nobody complained."""
    visits = []

    def open_page(signed_in: bool = True, **profile: Any) -> Visit:
        opened = Visit(browser, f"http://127.0.0.1:{gateway.admin_port}", **profile)
        visits.append(opened)
        if signed_in:
            opened.sign_in(TOKEN)
        return opened

    yield open_page
    for opened in visits:
        opened.finish()


def converse(gateway: Gateway, *texts: str, **fields: Any) -> list[str]:
    """Turns of one conversation, each chained to the one before; their response ids."""
    client = gateway.connect()
    ids: list[str] = []
    for text in texts:
        previous = ids[-1] if ids else fields.get("previous_response_id")
        events = client.turn(input=[user(text)], store=True, previous_response_id=previous)
        assert events[-1]["type"] == "response.completed", f"the turn ended with {events[-1]}"
        ids.append(events[-1]["response"]["id"])
    return ids


# --- live ----------------------------------------------------------------------------------------


def test_numbers_move_without_a_reload_while_codex_runs_a_tool_loop(
    scene: Scene, upstreams: list[Strict], gateway: Gateway, visit: Open
) -> None:
    if CODEX.binary() is None:
        scene.unavailable(f"{CODEX} is not installed (make clients)")
    for upstream in upstreams:
        upstream.brain = _slowly(upstream.brain)
    opened = visit()
    page = opened.page
    loads = len(opened.loads)
    runs: list[CodexRun] = []
    codex = threading.Thread(target=lambda: runs.append(_codex(scene, gateway)))

    def turns() -> int:
        return sum(int(opened.cell(name, "turns")) for name in ("north", "south"))

    assert turns() == 0, "nobody has asked anything yet"
    codex.start()
    seen = {0}
    try:
        while codex.is_alive():
            seen.add(turns())
            page.wait_for_timeout(50)
    finally:
        codex.join()
    scene.logs["codex"] = runs[0].report
    assert runs[0].messages == [success_text(ROUNDS)], "the tool loop did not come to its end"
    opened.wait_until(lambda: turns() == ROUNDS + 1, f"the page shows {ROUNDS + 1} turns")
    opened.wait_until(
        lambda: page.locator("table.turns tbody tr").count() >= ROUNDS + 1, "each turn is a row"
    )
    assert page.locator("table.turns td.status.completed").count() >= ROUNDS + 1
    assert page.locator("table.turns .phases svg").first.get_attribute("aria-label") is not None
    assert page.locator("#link").inner_text() == "live"
    assert len(opened.loads) == loads, "the page was loaded anew"
    assert len(seen) > 2, f"the numbers did not move while Codex ran: {seen}"
    print(f"the page's count of turns while Codex ran: {sorted(seen)}")


def _slowly(brain: Any) -> Any:
    """A model that takes its time, as models do, so that there is something to watch."""

    def think(*arguments: Any) -> Any:
        time.sleep(0.5)
        return brain(*arguments)

    return think


def _codex(scene: Scene, gateway: Gateway) -> CodexRun:
    return run_codex(
        CODEX,
        base_url=f"http://127.0.0.1:{gateway.port}/v1",
        key=CLIENT_KEY,
        prompt=task_prompt(ROUNDS, scene.directory / "ran.txt"),
        directory=scene.directory / "codex",
        proxy=scene.proxy.url,
    )


@pytest.fixture
def west() -> Iterator[WebSocketUpstream]:
    upstream = WebSocketUpstream()
    yield upstream
    upstream.stop()


def test_the_page_shows_what_goes_over_websocket(
    browser: Any, scene: Scene, west: WebSocketUpstream
) -> None:
    with running(scene, [account("west", west, transport="auto")]) as gateway:
        opened = Visit(browser, f"http://127.0.0.1:{gateway.admin_port}")
        opened.sign_in(TOKEN)
        page = opened.page
        loads = len(opened.loads)
        assert opened.cell("west", "websockets.idle") == "0"
        converse(gateway, "one", "two")
        opened.wait_until(lambda: opened.cell("west", "websockets.idle") == "1", "it is kept")
        assert opened.cell("west", "websockets.opened") == "1"
        row = page.locator("table.transports tr[data-key=websocket]")
        opened.wait_until(
            lambda: row.locator('[data-v$="chained_share_of_all"]').inner_text() == "50\u00a0%",
            "the second turn was chained",
        )
        ways = page.locator("table.turns tbody tr td .under", has_text="websocket")
        opened.wait_until(lambda: ways.count() == 2, "both turns tell their transport")
        west.sockets[0].drop()
        gone = page.locator('tr[data-account="west"] .count', has_text="closed 1006")
        opened.wait_until(lambda: gone.count() == 1, "the lost socket is told with its reason")
        assert len(opened.loads) == loads, "the page was loaded anew"
        assert opened.violations() == []
        opened.finish()


def test_what_is_typed_focused_and_scrolled_stays_while_turns_come(
    gateway: Gateway, visit: Open
) -> None:
    opened = visit(viewport={"width": 1000, "height": 500})
    page = opened.page
    page.get_by_role("searchbox").scroll_into_view_if_needed()
    page.get_by_role("searchbox").click()
    page.keyboard.type("resp_half")
    before = page.evaluate("scrollY")
    converse(gateway, "one", "two", "three")
    opened.wait_until(lambda: page.locator("table.turns tbody tr").count() == 3, "turns are rows")
    opened.wait_until(lambda: page.locator("table.conversations").count() == 1, "one is listed")
    page.keyboard.type("_way")
    assert page.get_by_role("searchbox").input_value() == "resp_half_way"
    assert page.evaluate("scrollY") == before, "the page scrolled by itself"


def test_a_table_that_somebody_reads_is_left_alone(gateway: Gateway, visit: Open) -> None:
    converse(gateway, "one", "two")
    opened = visit()
    page = opened.page
    rows = page.locator("table.turns tbody tr")
    opened.wait_until(lambda: rows.count() == 2, "turns are rows")
    first = rows.first.locator("a").first
    first.focus()
    name = first.inner_text()
    converse(gateway, "three")
    held = page.locator('[data-held="turns"]')
    opened.wait_until(lambda: "held" in held.inner_text(), "the page says so")
    assert (rows.count(), rows.first.locator("a").first.inner_text()) == (2, name)
    page.keyboard.press("Escape")
    opened.wait_until(lambda: rows.count() == 3, "it goes on")
    assert held.inner_text() == ""


def test_no_row_slips_away_under_the_pointer(gateway: Gateway, visit: Open) -> None:
    converse(gateway, "one")
    opened = visit()
    page = opened.page
    rows = page.locator("table.conversations tbody tr")
    opened.wait_until(lambda: rows.count() == 1, "it is listed")
    page.get_by_role("button", name="Drop").first.hover()
    name = rows.first.get_attribute("data-key")
    converse(gateway, "another")
    held = page.locator('[data-held="conversations"]')
    opened.wait_until(lambda: "held" in held.inner_text(), "the page says so")
    assert rows.first.get_attribute("data-key") == name
    page.get_by_role("heading", name="Memory", exact=True).hover()
    opened.wait_until(lambda: rows.count() == 2, "it goes on")


def test_the_script_writes_figures_as_the_server_does(visit: Open) -> None:
    opened = visit()
    figures = [0, 0.04, 0.25, 1, 1.25, 2.5, 9.96, 10, 99.5, 999, 999.6, 1000, 1499, 1500.5, 65_535]
    figures += [123_456, 999_949, 1_000_000, 312_400_000, 1_073_741_824, 5e12, 61, 3600, 90_061]
    cases = [[form, value] for form in FORMS for value in [None, *figures]]
    written = opened.page.evaluate(
        "cases => cases.map(([form, value]) => written(form, value))", cases
    )
    for (form, value), said in zip(cases, written, strict=True):
        assert said == FORMS[form](value), f"{value} as {form}"


def test_an_event_that_says_nothing_new_changes_nothing(gateway: Gateway, visit: Open) -> None:
    converse(gateway, "hello")
    opened = visit()
    opened.page.wait_for_timeout(2000)
    changed = opened.page.evaluate(
        """() => new Promise((resolve) => {
            const seen = [];
            new MutationObserver((changes) => {
              for (const { target } of changes) {
                const cell = target.nodeType === Node.TEXT_NODE ? target.parentElement : target;
                if (!cell.closest("[data-ago],[data-ahead]")) seen.push(cell.outerHTML);
              }
            }).observe(document.getElementById("accounts"),
                       {subtree: true, childList: true, characterData: true, attributes: true});
            setTimeout(() => resolve(seen), 3500);
        })"""
    )
    assert changed == [], "cells were written that had not changed"


def test_a_gateway_that_hangs_is_not_called_live(gateway: Gateway, visit: Open) -> None:
    opened = visit()
    page = opened.page
    link = page.locator("#link")
    opened.wait_until(lambda: link.inner_text() == "live", "the page is live")
    gateway.process.send_signal(signal.SIGSTOP)
    try:
        opened.wait_until(lambda: link.inner_text() == "no answer", "the page tells of it")
        assert "not connected" in page.title()
        opened.wait_until(
            lambda: page.locator("#age").inner_text().startswith("all this is"), "how old it is"
        )
        assert opened.violations() == []
        # Longer than the page waits before it connects anew.
        page.wait_for_timeout(17_000)
        assert link.inner_text() in ("no answer", "not connected")
    finally:
        gateway.process.send_signal(signal.SIGCONT)
    opened.wait_until(lambda: link.inner_text() == "live", "the page is live again")
    assert page.locator("#age").inner_text() == ""
    assert "not connected" not in page.title()
    converse(gateway, "hello")
    opened.wait_until(lambda: page.locator("table.turns tbody tr").count() == 1, "it goes on")


def test_who_is_signed_out_is_told_so_and_led_back(gateway: Gateway, visit: Open) -> None:
    opened = visit()
    page = opened.page
    opened.wait_until(lambda: page.locator("#link").inner_text() == "live", "the page is live")
    opened.context.request.post("/logout", headers={"origin": page.url.rpartition("/")[0]})
    opened.wait_until(lambda: page.locator("#link a").count() == 1, "the page tells of it")
    page.wait_for_timeout(1500)
    page.locator("#link a").click()
    assert page.get_by_label("Admin token").is_visible()
    opened.problems = [each for each in opened.problems if "status of 401" not in each]


def test_the_configuration_that_is_shown_is_the_one_in_force(gateway: Gateway, visit: Open) -> None:
    opened = visit()
    page = opened.page
    group = page.locator('details[data-key="routing"]')
    group.locator("summary").click()
    assert "routing.queue_seconds 1.0 file" in " ".join(group.inner_text().split())
    file = gateway.log_path.with_suffix(".yaml")
    written = file.read_text(encoding="utf-8")
    file.write_text(written.replace("queue_seconds: 1", "queue_seconds: 2"), encoding="utf-8")
    gateway.process.send_signal(signal.SIGHUP)
    opened.wait_until(
        lambda: "routing.queue_seconds 2.0 file" in " ".join(group.inner_text().split()),
        "the new value is shown",
    )
    assert group.get_attribute("open") is not None, "what was open is closed"


# --- actions ---------------------------------------------------------------------------------


def test_an_account_is_paused_and_resumed_by_clicking(gateway: Gateway, visit: Open) -> None:
    opened = visit()
    page = opened.page
    loads = len(opened.loads)
    page.get_by_role("button", name="Pause north").click()
    opened.wait_until(lambda: opened.cell("north", "state") == "disabled", "north is disabled")
    assert "north is paused" in page.locator("#said").inner_text()
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "Resume north", "the focus went from the button that is gone to nowhere"
    converse(gateway, "where does it go?")
    opened.wait_until(lambda: opened.cell("south", "turns") == "1", "the other account serves")
    assert opened.cell("north", "turns") == "0", "a paused account was given a turn"
    page.get_by_role("button", name="Resume north").click()
    opened.wait_until(lambda: opened.cell("north", "state") == "ready", "north is ready again")
    assert len(opened.loads) == loads, "the page was loaded anew"


def test_without_scripts_all_is_shown_and_all_can_be_done(gateway: Gateway, visit: Open) -> None:
    (response,) = converse(gateway, "hello")
    opened = visit(java_script_enabled=False)
    page = opened.page
    names = ["Accounts", "Conversations", "Turns", "Keys", "Memory", "Configuration"]
    for name in names:
        assert page.get_by_role("heading", name=name, exact=True).is_visible(), f"no {name}"
    assert "completed" in page.locator("table.turns tbody").inner_text()
    page.get_by_role("button", name="Pause south").click()
    page.wait_for_url("**/status#accounts")
    assert opened.cell("south", "state") == "disabled", "the page is not what it was made to be"
    assert "south is paused" in page.locator("#said").inner_text()
    page.get_by_label("Response, thread").fill(response)
    page.get_by_role("button", name="Search").click()
    assert page.locator("table.conversations tbody tr").count() == 1, "one conversation has it"
    page.get_by_role("link", name="why here").click()
    shown = page.locator(f'#why code[title="{response}"]')
    assert shown.is_visible(), "its response is not in the chain"


def test_the_log_level_and_the_drain(gateway: Gateway, visit: Open) -> None:
    opened = visit()
    page = opened.page
    page.get_by_label("Log level", exact=True).select_option("debug")
    page.get_by_role("button", name="Set the log level").click()
    opened.wait_until(
        lambda: "level is debug" in page.locator("#said").inner_text(), "the level is set"
    )
    page.get_by_text("Drain the gateway").click()
    page.get_by_role("button", name="Drain now").click()
    opened.wait_until(
        lambda: "draining; 0 clients are left" in page.locator("#said").inner_text(),
        "the answer is not overwritten",
    )
    opened.wait_until(
        lambda: page.locator("#banner .word").inner_text().lower() == "draining", "it drains"
    )
    opened.wait_until(
        lambda: page.get_by_text("The gateway is draining.").is_visible(), "it says what is left"
    )
    if not page.get_by_role("button", name="Resume", exact=True).is_visible():
        page.get_by_text("Drain the gateway").click()
    page.get_by_role("button", name="Resume", exact=True).click()
    opened.wait_until(
        lambda: page.locator("#banner .word").inner_text().lower() == "ready", "it serves again"
    )


# --- recordings --------------------------------------------------------------------------------


@pytest.mark.parametrize("scripts", [True, False])
def test_a_key_is_recorded_read_and_stopped_by_clicking(
    gateway: Gateway, visit: Open, scripts: bool
) -> None:
    opened = visit(java_script_enabled=scripts)
    page = opened.page
    recordings = page.locator("#recordings")
    assert "No turn is recorded" in recordings.inner_text()
    page.get_by_role("button", name="Record laptop").click()
    opened.wait_until(lambda: "key laptop" in recordings.inner_text(), "it is recorded")
    assert re.search(r"in (9|10)\smin", recordings.inner_text()), "it does not say until when"
    converse(gateway, "a word that <b>only</b> the operator sees")
    page.reload()
    assert "a word that" not in page.locator("main").inner_text()
    link = page.get_by_role("link", name="what turn")
    opened.wait_until(
        lambda: (scripts or page.reload() is not None) and link.count() == 1,
        "the turn leads to its recording",
    )
    link.click()
    page.wait_for_url("**/status/recordings/*")
    steps = page.locator(".timeline .step")
    opened.wait_until(lambda: page.reload() is not None and steps.count() > 5, "all is written")
    assert steps.first.locator("summary").inner_text().startswith("request")
    steps.first.locator("summary").click()
    assert "a word that <b>only</b> the operator sees" in steps.first.locator("pre").inner_text()
    assert "key-laptop" not in page.content()
    if scripts:
        assert opened.violations() == []
    page.goto("/status")
    page.get_by_role("button", name="Stop recording the key laptop").click()
    opened.wait_until(
        lambda: "No turn is recorded" in recordings.inner_text(), "it is no longer recorded"
    )
    page.goto("/status/recordings")
    assert page.locator(".files a").count() == 1
    page.context.clear_cookies()
    answer = page.request.get("/status/recordings")
    assert answer.status == 401


# --- the chain -------------------------------------------------------------------------------


def test_the_chain_of_a_forked_conversation_is_drawn(gateway: Gateway, visit: Open) -> None:
    first, second, third = converse(gateway, "one", "two", "three")
    (fork,) = converse(gateway, "another way", previous_response_id=second)
    opened = visit()
    page = opened.page
    page.goto(f"/status?why={fork}#why")
    why = page.locator("#why")
    shown = why.inner_text()
    assert "4 responses, 1 root, 1 fork" in shown
    assert "forks in 2" in shown
    for response in (first, second, third, fork):
        assert why.locator(f'code[title="{response}"]').count() == 1, f"{response} is missing"
    assert why.locator("circle.node").count() == 4, "a dot for each response"
    xs = [node.get_attribute("cx") for node in why.locator("circle.node").all()]
    assert len(set(xs)) == 2, f"a fork opens a column of its own: {xs}"
    assert why.locator("path.edge.chained").count() >= 3, "edges that chain"
    wanted = why.locator("tr.wanted code").get_attribute("title")
    assert wanted == fork, "the one asked for is not marked"


# --- who may -----------------------------------------------------------------------------------


def test_a_clients_words_stay_words_in_the_browser(gateway: Gateway, visit: Open) -> None:
    opened = visit()
    attack = "<img src=x onerror='document.title=`taken`'><script>document.title=`taken`</script>"
    client = gateway.connect(headers=[("session_id", attack), ("user-agent", attack)])
    client.turn(input=[user("hi")], model=attack, prompt_cache_key=attack)
    rows = opened.page.locator("table.turns tbody tr")
    opened.wait_until(lambda: rows.count() == 1, "the turn is a row")
    assert attack in rows.first.inner_text(), "the model's name is not shown as it is"
    opened.page.get_by_label("Response, thread").fill(attack)
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_url("**/status?q=**")
    assert opened.page.get_by_role("searchbox").input_value() == attack
    assert "taken" not in opened.page.title()
    assert opened.page.locator("main img, main script").count() == 0


def test_login_and_logout(gateway: Gateway, visit: Open) -> None:
    opened = visit(signed_in=False)
    page = opened.page
    page.goto("/status")
    assert page.get_by_label("Admin token").is_visible(), "a stranger was shown the status"
    page.get_by_label("Admin token").fill("a wrong one")
    page.get_by_role("button", name="Sign in").click()
    assert "not the admin token" in page.get_by_role("alert").inner_text()
    # Who guessed wrong has to wait, for a second the first time.
    page.wait_for_timeout(1200)
    page.get_by_label("Admin token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_url("**/status")
    assert page.get_by_role("button", name="Pause north").is_visible()
    cookies = opened.context.cookies()
    assert [(each["httpOnly"], each["sameSite"]) for each in cookies] == [(True, "Strict")]
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login")
    page.goto("/status")
    assert page.get_by_label("Admin token").is_visible(), "who signed out can still look"
    # The console tells of each answer that refuses somebody.
    opened.problems = [each for each in opened.problems if "status of 401" not in each]


# --- for everybody -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("profile", [{}, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing(
    gateway: Gateway, visit: Open, scheme: str, profile: dict[str, Any]
) -> None:
    first, _ = converse(gateway, "one", "two")
    opened = visit(color_scheme=scheme, **profile)
    page = opened.page
    page.get_by_role("button", name="Pause south").click()
    opened.wait_until(lambda: opened.cell("south", "state") == "disabled", "south is disabled")
    page.goto(f"/status?why={first}")
    page.locator("summary").last.click()
    assert opened.violations() == []
    page.goto("/login")
    assert opened.violations() == []


def test_dark_and_light_are_chosen_and_remembered(visit: Open) -> None:
    opened = visit(color_scheme="light")
    page = opened.page

    def ground() -> int:
        """How light the page is, of 255."""
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(colour.partition("(")[2].partition(",")[0])

    assert ground() > 200, "the browser prefers light"
    toggle = page.locator("#theme")
    toggle.click()
    assert (toggle.inner_text(), ground() > 200) == ("Theme: light", True)
    toggle.click()
    assert (toggle.inner_text(), ground() < 60) == ("Theme: dark", True)
    page.reload()
    assert ground() < 60, "the choice is forgotten"
    page.locator("#theme").click()
    assert ground() > 200, "automatic again, and the browser prefers light"
    page.emulate_media(color_scheme="dark")
    assert ground() < 60, "automatic follows the browser"


def test_on_a_phone_only_tables_scroll_sideways(gateway: Gateway, visit: Open) -> None:
    first, _ = converse(gateway, "one", "two")
    opened = visit(**PHONE)
    page = opened.page
    page.goto(f"/status?why={first}")
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360, "the page scrolls sideways"
    box = page.get_by_role("region", name="Accounts: a table that scrolls")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth"), "nothing to scroll to"
    box.focus()
    page.keyboard.press("ArrowRight")
    opened.wait_until(lambda: box.evaluate("box => box.scrollLeft") > 0, "keys scroll the table")


def test_a_long_name_leaves_room_for_the_rest(scene: Scene, browser: Any) -> None:
    admin_port = free_port()
    name = "an-account-whose-name-was-made-by-a-program-for-a-project-in-a-region-0001"
    started = Gateway(
        scene.directory,
        {
            "accounts": [account(name, scene.upstream(Mode.STATEFUL).server)],
            "admin": {"listen": f"tcp:{admin_port}:interface=127.0.0.1", "token": TOKEN},
        },
    )
    try:
        opened = Visit(browser, f"http://127.0.0.1:{admin_port}", **PHONE)
        opened.sign_in(TOKEN)
        head = opened.page.locator("table.accounts tbody th").bounding_box()
        assert 100 < head["width"] < 180, "the column that stays in place leaves room on a phone"
        assert head["height"] < 160, "the name is squeezed into a narrow column"
        opened.finish()
    finally:
        started.stop()


def test_everything_can_be_done_with_the_keyboard(gateway: Gateway, visit: Open) -> None:
    opened = visit()
    page = opened.page
    focused = "document.activeElement"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focused}.textContent") == "Skip to the status"
    assert page.locator(".skip").bounding_box()["y"] >= 0, "the skip link is not to be seen"
    page.keyboard.press("Enter")
    assert page.evaluate(f"{focused}.id") == "main", "the skip link leads nowhere"
    order = []
    for _ in range(40):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(f"{focused}.getAttribute('aria-label') || {focused}.textContent")
        )
        outline = page.evaluate(f"getComputedStyle({focused}).outlineStyle")
        assert outline != "none", f"the focus on {order[-1]!r} cannot be seen"
        if order[-1] == "Drain north":
            break
    assert order[-2:] == ["Pause north", "Drain north"], f"an odd order: {order}"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    opened.wait_until(lambda: opened.cell("north", "state") == "disabled", "north is disabled")
    opened.wait_until(
        lambda: page.evaluate(f"{focused}.getAttribute('aria-label')") == "Resume north",
        "the focus goes on to the button in its place",
    )
    page.keyboard.press("Space")
    opened.wait_until(lambda: opened.cell("north", "state") == "ready", "north is ready again")


def test_who_wants_no_motion_gets_none(visit: Open) -> None:
    opened = visit(reduced_motion="reduce")
    behaviour = opened.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior")
    assert behaviour == "auto"
