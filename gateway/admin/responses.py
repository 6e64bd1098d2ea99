"""Responses of the admin side: JSON or HTML, and the headers that keep browsers strict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from gateway.admin.requests import AdminRequest

HTML = "text/html; charset=utf-8"
JSON = "application/json"

_CONTENT_SECURITY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ]
)

#: Go with every answer, unless it brings its own.  With ``no-referrer`` browsers would send
#: ``Origin: null`` with our own forms (Fetch §3.2).
SECURITY_HEADERS = {
    "content-security-policy": _CONTENT_SECURITY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}


class AdminResponse(NamedTuple):
    """A response.

    :ivar body: bytes as they are, or anything else to become JSON.
    """

    status: int
    body: Any
    content_type: str = JSON
    headers: Mapping[str, str] = {}


def see_other(place: str, headers: Mapping[str, str] | None = None) -> AdminResponse:
    """303: the browser goes to ``place`` after a form."""
    return AdminResponse(303, b"", HTML, {"location": place, **(headers or {})})


def write(request: AdminRequest, reply: AdminResponse) -> None:
    """Send the response; a client that has gone gets nothing."""
    http = request.http
    headers = {"content-type": reply.content_type, **reply.headers}
    if reply.status == 304:
        http.start(304, headers)
        http.finish()
    else:
        body = reply.body if isinstance(reply.body, bytes) else as_json(reply.body)
        http.answer(reply.status, body, headers)


def as_json(value: Any) -> bytes:
    """JSON that is harmless in HTML, too: its strings contain no ``<``, ``>`` or ``&``.

    Infinite and undefined numbers become null.
    """
    encoded = msgspec.json.encode(value)
    for character, escaped in ((b"<", b"\\u003c"), (b">", b"\\u003e"), (b"&", b"\\u0026")):
        encoded = encoded.replace(character, escaped)
    return encoded


def wants_html(request: AdminRequest) -> bool:
    """Whether the client prefers HTML to JSON (RFC 9110 §12.5.1)."""
    said = accepted(request)
    return _quality(said, "text/html") > _quality(said, JSON)


def accepted(request: AdminRequest) -> str:
    """The ``Accept`` header, bounded in length."""
    return request.header("accept")[:1000]


def _quality(accepted: str, wanted: str) -> float:
    """The quality of a media type; the most specific range counts."""
    best, quality = -1, 0.0
    for each in accepted.lower().split(","):
        media, *parameters = (part.strip() for part in each.split(";"))
        ranges = ("*/*", wanted.partition("/")[0] + "/*", wanted)
        if media in ranges and ranges.index(media) > best:
            best, quality = ranges.index(media), _weight(parameters)
    return quality


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0
