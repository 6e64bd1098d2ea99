"""The page on the admin side: who gets it, what it is made of, and how soon it shows an action."""

from __future__ import annotations

import re

import pytest

from tests.admin.stage import BEARER, OWN, TOKEN, Admin
from tests.support.events import text_item, turn_events, user

BROWSER = "accept: text/html,application/xhtml+xml,*/*;q=0.8"
FORM = "content-type: application/x-www-form-urlencoded"


@pytest.fixture
def admin() -> Admin:
    return Admin(TOKEN)


def test_browsers_get_the_page_and_programs_the_json(admin: Admin) -> None:
    page = admin.ask("/status", BEARER, BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.body.startswith(b"<!DOCTYPE html>")
    assert admin.ask("/status", BEARER).headers["content-type"] == "application/json"
    assert "accept" in page.headers["vary"], "a cache would mix them up"


def test_a_stranger_gets_the_login(admin: Admin) -> None:
    answer = admin.ask("/status", BROWSER)
    assert answer.status == 401
    assert b'name="token"' in answer.body
    assert b"Accounts" not in answer.body


def test_a_turn_is_on_the_page_with_its_chain(admin: Admin) -> None:
    admin.world.completed([user("hi")], turn_events([text_item()], "resp_1"))
    admin.clock.advance(2)
    page = admin.ask("/status?why=resp_1", BEARER, BROWSER).body.decode()
    assert 'class="status completed"' in page
    assert "Why here: <code>resp_1</code>" in page


def test_an_action_without_scripts_shows_at_once(admin: Admin) -> None:
    login = admin.ask("/login", FORM, OWN, BROWSER, method="POST", body=f"token={TOKEN}".encode())
    assert (login.status, login.headers["location"]) == (303, "/status")
    before = admin.ask("/status", login.cookie, BROWSER).body.decode()
    assert 'data-account="a" data-state="ready"' in before
    done = admin.ask("/admin/accounts/a/pause", FORM, OWN, BROWSER, login.cookie, method="POST")
    assert (done.status, done.headers["location"]) == (303, "/status#accounts")
    after = admin.ask("/status", login.cookie, BROWSER).body.decode()
    assert 'data-account="a" data-state="disabled"' in after, "the page was an old one"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/admin/accounts/a/pause", "a is paused until it is resumed"),
        ("/admin/reload", "there is no configuration file that could be read anew"),
        ("/admin/accounts/nobody/pause", "no account is named &#39;nobody&#39;"),
    ],
)
def test_an_action_without_scripts_says_what_came_of_it(admin: Admin, path: str, said: str) -> None:
    mine, other = (admin.log_in(BROWSER) for _ in range(2))
    done = admin.ask(path, FORM, OWN, BROWSER, mine.cookie, method="POST")
    assert done.status == 303, "a browser was left with what programs get"
    shown = f'class="said">{said}'
    assert shown in admin.ask("/status", mine.cookie, BROWSER).body.decode()
    assert shown not in admin.ask("/status", other.cookie, BROWSER).body.decode()
    admin.clock.advance(20)
    assert shown not in admin.ask("/status", mine.cookie, BROWSER).body.decode(), "it is old"


def test_a_program_that_posts_a_form_gets_the_error(admin: Admin) -> None:
    assert admin.ask("/admin/reload", FORM, OWN, BEARER, method="POST").status == 409


def test_the_page_loads_what_there_is_and_may_keep_it(admin: Admin) -> None:
    page = admin.ask("/status", BEARER, BROWSER).body.decode()
    addresses = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    assert len(addresses) == 4, f"two scripts, a style and an icon: {addresses}"
    for address in addresses:
        answer = admin.ask(address)
        assert answer.status == 200, f"{address} answered {answer.status}"
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    bare = admin.ask("/static/page.js")
    assert bare.headers["content-type"] == "text/javascript; charset=utf-8"
    assert bare.headers["cache-control"] == "no-cache", "its content may change under this name"


def test_a_file_is_not_sent_again_to_who_has_it(admin: Admin) -> None:
    tag = admin.ask("/static/page.css").headers["etag"]
    again = admin.ask("/static/page.css", f"if-none-match: {tag}")
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("name", ["", "/", "/nothing.js", "/page.js/more", "/page.css%2f.."])
def test_there_are_no_other_files(admin: Admin, name: str) -> None:
    assert admin.ask(f"/static{name}").status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_files_can_only_be_read(admin: Admin, method: str) -> None:
    assert admin.ask("/static/page.js", OWN, method=method).status in (404, 405)
