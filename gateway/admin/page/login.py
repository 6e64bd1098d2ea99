"""The form an operator signs in with."""

from __future__ import annotations

from gateway.admin.page.layout import document
from gateway.admin.page.rendering import tag


def render_login(wrong: str | None = None) -> bytes:
    """The login page.

    :param wrong: why the last try failed.
    """
    field = tag(
        "input",
        id="token",
        name="token",
        type="password",
        autocomplete="current-password",
        required=True,
        autofocus=True,
        aria_describedby="wrong" if wrong else "hint",
        aria_invalid="true" if wrong else None,
    )
    form = tag(
        "form",
        # password managers want to know whose password it is
        tag(
            "input",
            name="username",
            value="admin",
            autocomplete="username",
            hidden=True,
            readonly=True,
        ),
        tag("label", "Admin token", for_="token"),
        field,
        tag("p", wrong, id="wrong", class_="wrong", role="alert") if wrong else None,
        tag(
            "p",
            "It stands in the configuration as ",
            tag("code", "admin.token"),
            ".",
            id="hint",
            class_="hint",
        ),
        tag("button", "Sign in", class_="main"),
        method="post",
        action="/login",
    )
    return document(
        "Sign in · responses-gateway",
        tag(
            "main",
            tag("h1", "responses-gateway"),
            form,
            tag("p", tag("a", "Status", href="/status")),
            class_="login",
        ),
        live=False,
    )
