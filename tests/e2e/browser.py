"""Drives a real Chromium, and watches what it does besides: its console, its requests.

The browser is Debian's `chromium` (or whatever CHROMIUM names); Playwright, from the test extra,
steers it. Nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 30_000  # milliseconds


def executable() -> str | None:
    """Where the browser is, or None."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium(path: str) -> Iterator[Browser]:
    """One browser for many tests; each gets a profile of its own from it."""
    from playwright.sync_api import sync_playwright

    # Root, as which containers run their tests, gets no sandbox from Chromium.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page in a profile of its own.

    `problems` is what the console and the page's scripts complained about, `strangers` every
    request that left for another host than `base_url`'s, `loads` the documents it loaded.
    """

    def __init__(self, browser: Browser, base_url: str, **profile: Any) -> None:
        profile.setdefault("viewport", {"width": 1280, "height": 800})
        self.context: BrowserContext = browser.new_context(base_url=base_url, **profile)
        self.context.set_default_timeout(PATIENCE)
        self.problems: list[str] = []
        self.strangers: list[str] = []
        self.loads: list[str] = []
        self._host = urlsplit(base_url).netloc
        self.context.on("request", self._requested)
        self.page: Page = self.context.new_page()
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def sign_in(self, token: str) -> None:
        self.page.goto("/login")
        self.page.get_by_label("Admin token").fill(token)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url("**/status")

    def cell(self, account: str, path: str) -> str:
        """What stands in a live cell of an account's row."""
        return self.page.locator(f'tr[data-account="{account}"] [data-v="{path}"]').inner_text()

    def wait_until(self, truth: Callable[[], bool], what: str) -> None:
        """Let the page go on until something is so."""
        waited = 0
        while not truth():
            assert waited < PATIENCE, f"in {PATIENCE / 1000:.0f} s it never came that {what}"
            self.page.wait_for_timeout(100)
            waited += 100

    def violations(self) -> list[str]:
        """What axe-core finds wrong with the page as it stands, by rule and element."""
        script = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
        self.page.evaluate(script)
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{each['id']}: {each['help']}: {node['html'][:200]}"
            for each in found["violations"]
            for node in each["nodes"]
        ]

    def finish(self) -> None:
        """Close, and see that nothing was complained about and nobody else was asked."""
        self.context.close()
        assert self.problems == [], "the browser's console shows errors"
        assert self.strangers == [], "the page asked another host"

    def _requested(self, request: Any) -> None:
        if urlsplit(request.url).netloc != self._host:
            self.strangers.append(request.url)
        if request.resource_type == "document":
            self.loads.append(request.url)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)
