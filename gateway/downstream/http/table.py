"""The API's endpoints; each is one line here and one handler in a module of its own."""

from __future__ import annotations

from .responses import Responses
from .routes import Table


def endpoints(responses: Responses) -> Table:
    """What is served, without prefixes."""
    return {
        "/responses": {"POST": responses.create},
    }
