"""The operator's page: HTML made on the server, complete without scripts and live with them."""

from __future__ import annotations

from .mounted import BrowserPages
from .page import Page
from .source import Asked, PageSource, Viewer

__all__ = ["Asked", "BrowserPages", "Page", "PageSource", "Viewer"]
