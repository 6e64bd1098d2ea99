"""The operator's page: HTML made on the server, complete without scripts and live with them."""

from __future__ import annotations

from gateway.admin.page.mounted import BrowserPages
from gateway.admin.page.page import Page
from gateway.admin.page.source import PageQuery, PageSource, Viewer

__all__ = ["BrowserPages", "Page", "PageQuery", "PageSource", "Viewer"]
