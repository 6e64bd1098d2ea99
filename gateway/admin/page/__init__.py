"""The operator's page: HTML made on the server, complete without scripts and live with them."""

from __future__ import annotations

from gateway.admin.page.page import (
    Page,
    PageData,
    PageQuery,
    Viewer,
    login_page,
    recordings_page,
    timeline_page,
)

__all__ = [
    "Page",
    "PageData",
    "PageQuery",
    "Viewer",
    "login_page",
    "recordings_page",
    "timeline_page",
]
