"""The page's style and scripts, read once: a request's path never reaches the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files

from gateway.admin.requests import AdminRequest
from gateway.admin.responses import AdminResponse

_TYPES = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_TEXT = "text/plain; charset=utf-8"
_folder = files(__package__) / "static"
_FILES = {name: (_folder / name).read_bytes() for name in _TYPES}
_DIGESTS = {name: hashlib.sha256(body).hexdigest()[:16] for name, body in _FILES.items()}


def address(name: str) -> str:
    """The address of a file, which changes with its content, so that browsers may keep it."""
    return f"/static/{name}?{_DIGESTS[name]}"


def static_file(request: AdminRequest, parts: Sequence[str]) -> AdminResponse:
    """A file of the page; 304 when the browser has it already.

    :param parts: of the path below ``/static``.
    """
    name = parts[0] if len(parts) == 1 else ""
    if name not in _FILES:
        return AdminResponse(404, b"nothing is here\n", _TEXT)
    if request.http.method != "GET":
        return AdminResponse(405, b"this can only be read\n", _TEXT, {"allow": "GET, HEAD"})
    tag = f'"{_DIGESTS[name]}"'
    lasting = request.http.query_string == _DIGESTS[name]
    headers = {
        "cache-control": "max-age=31536000, immutable" if lasting else "no-cache",
        "etag": tag,
    }
    known = {each.strip() for each in request.header("if-none-match").split(",")}
    status = 304 if known & {tag, "*"} else 200
    return AdminResponse(status, _FILES[name], _TYPES[name], headers)
