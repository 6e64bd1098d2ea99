"""Header fields as text, whatever their bytes are."""

from __future__ import annotations

from twisted.web.http import Request


def header_values(request: Request, name: bytes) -> list[str]:
    """Every value of a field, in order.  Twisted itself would decode UTF-8, or fail."""
    return [value.decode("latin-1") for value in request.requestHeaders.getRawHeaders(name) or ()]
