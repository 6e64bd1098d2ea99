"""A request to the admin side: its connection, path, query and body; and its errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from gateway.protocol.errors import UNREADABLE
from gateway.server.http_request import ClientRequest

#: A form sends what a page's own buttons send; everything else is JSON.
FORM = "application/x-www-form-urlencoded"

_MAX_FIELDS = 50
_LONGEST_SEGMENT = 500


class AdminError(Exception):
    """An HTTP status, and a sentence for the operator.

    :param headers: that the answer carries besides.
    """

    def __init__(
        self, status: int, sentence: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = dict(headers or {})


def not_found(what: str = "nothing is here; see /status") -> AdminError:
    """404 with a sentence."""
    return AdminError(404, what)


def bad_request(sentence: str) -> AdminError:
    """400 with a sentence."""
    return AdminError(400, sentence)


class AdminRequest(NamedTuple):
    """A request, and the connection that it came by.

    :ivar http: the request itself, to be answered.
    :ivar local: the IP address that the client connected to; empty for a UNIX socket.
    :ivar peer: where it comes from, for logs.
    :ivar is_secure: whether the connection is TLS.
    """

    http: ClientRequest
    local: str
    peer: str
    is_secure: bool

    def header(self, name: str) -> str:
        """A header; several of that name are joined by commas, and none is empty."""
        return self.http.headers.get(name, "")


def segments(path: str) -> list[str] | None:
    """The decoded parts of a path between its slashes; None when no route can match.

    They are decoded once, after they were split, and are never joined again.
    """
    found = []
    for raw in path[1:].split("/"):
        try:
            segment = unquote_to_bytes(raw.encode("latin-1")).decode()
        except UnicodeDecodeError:
            return None
        if len(segment) > _LONGEST_SEGMENT or not segment.isprintable() or segment in (".", ".."):
            return None
        found.append(segment)
    return found


def read_query(request: AdminRequest) -> dict[str, str]:
    """The query, the last value of each name."""
    return _pairs(request.http.query_string.encode("latin-1"))


def read_body(request: AdminRequest, own_page: bool) -> tuple[dict[str, Any], bool]:
    """The body of a POST, and whether it is a form.

    :param own_page: whether a page of the gateway sent it.
    :raises AdminError: 400, 403 or 415.
    """
    raw = request.http.body
    kind = request.header("content-type").partition(";")[0].strip().lower()
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
