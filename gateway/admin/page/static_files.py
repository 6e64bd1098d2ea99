"""The page's style and scripts, read once; no path of a request ever reaches the disk."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from twisted.web.http import CACHED, Request
from twisted.web.resource import Resource

_TYPES = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_folder = files(__package__) / "static"
_FILES = {name: (_folder / name).read_bytes() for name in _TYPES}
_DIGESTS = {name: hashlib.sha256(body).hexdigest()[:16] for name, body in _FILES.items()}


def address(name: str) -> str:
    """Where a browser finds a file; another address for each content, so that it may keep it."""
    return f"/static/{name}?{_DIGESTS[name]}"


class StaticFiles(Resource):
    """Serves the files of the page under ``/static``."""

    def __init__(self) -> None:
        super().__init__()
        for name in _FILES:
            self.putChild(name.encode(), _File(name))

    def render(self, request: Request) -> bytes:
        """There is no list of them."""
        return _refuse(request, 404, b"nothing is here\n")

    def getChild(self, path: bytes, request: Request) -> Resource:
        """What was not put here is not here."""
        return _Nothing()


class _Nothing(Resource):
    isLeaf = True

    def render(self, request: Request) -> bytes:
        return _refuse(request, 404, b"nothing is here\n")


class _File(Resource):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def getChild(self, path: bytes, request: Request) -> Resource:
        return _Nothing()

    def render(self, request: Request) -> bytes:
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader("allow", "GET, HEAD")
            return _refuse(request, 405, b"this can only be read\n")
        name = self._name
        lasting = request.uri.partition(b"?")[2] == _DIGESTS[name].encode()
        request.setHeader("content-type", _TYPES[name])
        request.setHeader("x-content-type-options", "nosniff")
        request.setHeader("cache-control", "max-age=31536000, immutable" if lasting else "no-cache")
        if request.setETag(f'"{_DIGESTS[name]}"'.encode()) is CACHED:
            return b""
        return _FILES[name]


def _refuse(request: Request, status: int, why: bytes) -> bytes:
    request.setResponseCode(status)
    request.setHeader("content-type", "text/plain; charset=utf-8")
    return why
