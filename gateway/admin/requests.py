"""A request to the admin side, read: its path, its query, its body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from twisted.web.http import Request

from gateway.admin.auth import Visitor
from gateway.admin.errors import AdminError, bad_request
from gateway.admin.heads import header_values
from gateway.protocol.errors import UNREADABLE

#: A form sends what a page's own buttons send; everything else is JSON.
FORM = "application/x-www-form-urlencoded"

_MAX_FIELDS = 50
_LONGEST_SEGMENT = 500


class AdminQuery(NamedTuple):
    """What a handler gets.

    :ivar names: the parts of the path that its template leaves open.
    :ivar by_form: whether a form was posted, by a browser that shows the answer.
    """

    request: Request
    visitor: Visitor
    names: Mapping[str, str]
    query: Mapping[str, str]
    body: Mapping[str, Any]
    by_form: bool = False

    def text(self, name: str) -> str | None:
        """A value of the query; None when it is missing or empty."""
        return self.query.get(name) or None

    def number(self, name: str, default: int, most: int) -> int:
        """A number of the query.

        :raises AdminError: 400 when it is none.
        """
        value = self.query.get(name)
        if not value:
            return default
        if not (value.isascii() and value.isdigit() and len(value) < 8 and int(value) > 0):
            raise bad_request(f"{name}: expected a number above 0")
        return min(int(value), most)


def segments(request: Request) -> list[str] | None:
    """The decoded parts of the path between its slashes; None when there can be no such place.

    They are decoded once, after they were split, and are never put together again.
    """
    path = bytes(request.path)
    if not path.startswith(b"/"):
        return None
    found = []
    for raw in path[1:].split(b"/"):
        try:
            segment = unquote_to_bytes(raw).decode()
        except UnicodeDecodeError:
            return None
        if len(segment) > _LONGEST_SEGMENT or not segment.isprintable() or segment in (".", ".."):
            return None
        found.append(segment)
    return found


def read_query(request: Request) -> dict[str, str]:
    """The query, the last value of each name."""
    return _pairs(request.uri.partition(b"?")[2])


def read_body(request: Request, own_page: bool) -> tuple[dict[str, Any], bool]:
    """The body of a POST, and whether it is a form.

    :param own_page: whether a page of our own sent it.
    :raises AdminError: 400, 403 or 415.
    """
    content: Any = request.content
    raw = content.read()
    kind = "".join(header_values(request, b"content-type")[:1]).partition(";")[0].strip().lower()
    if kind == FORM:
        if not own_page:
            raise AdminError(403, "forms are taken from our own pages only; send JSON")
        return dict(_pairs(raw)), True
    if not raw and not kind:
        return {}, False
    if kind != "application/json":
        raise AdminError(415, "send application/json")
    try:
        body = msgspec.json.decode(raw or b"{}")
    except UNREADABLE:
        raise bad_request("the body is not JSON") from None
    if not isinstance(body, dict):
        raise bad_request("the body is not a JSON object")
    return body, False


def _pairs(raw: bytes) -> dict[str, str]:
    try:
        return dict(
            parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
        )
    except ValueError:
        raise bad_request("the query or the form cannot be read") from None
