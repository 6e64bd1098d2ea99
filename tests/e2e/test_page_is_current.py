"""What the page shows is how it stands, whatever becomes of single drawings of its parts."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.browser import Visit
from tests.support.gateway import Gateway, account
from tests.support.upstream import Upstream

pytestmark = pytest.mark.e2e

TOKEN = "operators-token"

#: What the page asks for when an account changes.
DRAWING = "**/status?part=accounts"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    upstream = Upstream()
    started = Gateway(
        tmp_path, {"accounts": [account("north", upstream)], "admin": {"token": TOKEN}}
    )
    try:
        yield started
    finally:
        started.stop()
        upstream.stop()


@pytest.fixture
def visit(browser: Any, gateway: Gateway) -> Iterator[Visit]:
    opened = Visit(browser, f"http://127.0.0.1:{gateway.admin_port}")
    yield opened
    opened.finish()


def act(gateway: Gateway, action: str) -> None:
    """Pause or resume the account, without the page."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{gateway.admin_port}/admin/accounts/north/{action}",
        headers={"authorization": f"Bearer {TOKEN}"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def drawn(visit: Visit, state: str) -> bool:
    """Whether the row was drawn in this state; the script writes single cells only."""
    return visit.page.locator(f'tr[data-account="north"][data-state="{state}"]').count() == 1


def test_a_change_before_the_first_event_is_shown(gateway: Gateway, visit: Visit) -> None:
    waiting: list[Any] = []
    visit.page.route("**/events", lambda route: waiting.append(route))
    visit.sign_in(TOKEN)
    visit.wait_until(lambda: bool(waiting), "the page asks for events")
    assert drawn(visit, "ready")
    act(gateway, "pause")
    waiting.pop().continue_()
    visit.wait_until(lambda: drawn(visit, "disabled"), "the page tells of the pause")


@pytest.mark.parametrize("status", [500, None], ids=["fails", "is cut off"])
def test_a_drawing_that_is_lost_is_asked_for_again(
    gateway: Gateway, visit: Visit, status: int | None
) -> None:
    visit.sign_in(TOKEN)
    visit.wait_until(lambda: visit.page.locator("#link").inner_text() == "live", "it is live")
    paused = False
    lost = 0

    def answer(route: Any) -> None:
        nonlocal lost
        if not paused or lost == 2:
            route.continue_()
            return
        lost += 1
        if status is None:
            route.abort()
        else:
            route.fulfill(status=status)

    visit.page.route(DRAWING, answer)
    act(gateway, "pause")
    paused = True
    visit.wait_until(lambda: drawn(visit, "disabled"), "the page tells of the pause")
    assert lost == 2
    visit.problems = [each for each in visit.problems if "Failed to load" not in each]


def test_a_drawing_that_was_overtaken_is_not_shown(gateway: Gateway, visit: Visit) -> None:
    visit.sign_in(TOKEN)
    visit.wait_until(lambda: visit.page.locator("#link").inner_text() == "live", "it is live")
    paused = False
    late: list[tuple[Any, Any]] = []

    def answer(route: Any) -> None:
        if paused and not late:
            late.append((route, route.fetch()))
        else:
            route.continue_()

    visit.page.route(DRAWING, answer)
    act(gateway, "pause")
    paused = True
    visit.wait_until(lambda: bool(late), "the page asks for a drawing")
    route, old = late[0]
    assert 'data-state="disabled"' in old.text()
    act(gateway, "resume")
    act(gateway, "drain")
    visit.wait_until(lambda: drawn(visit, "draining"), "the page tells of the drain")
    route.fulfill(response=old)
    visit.page.wait_for_timeout(1000)
    assert drawn(visit, "draining"), "the page went back to an older state"
