"""An error as an HTTP answer, the same from every door (protocol.md §5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from gateway.protocol.errors import ApiError


def refusal_headers(error: ApiError) -> dict[str, str]:
    """The headers of the answer; names in lower case."""
    headers = {name.lower(): value for name, value in error.headers.items()}
    headers["content-type"] = "application/json"
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers.setdefault("www-authenticate", "Bearer")  # RFC 9110 §15.5.2
    return headers


def refusal_body(error: ApiError) -> bytes:
    """``{"error": {…}}``."""
    return msgspec.json.encode({"error": error.body()})


def refusal(error: ApiError, more_headers: Mapping[str, str] | None = None) -> bytes:
    """The whole answer, for a connection that ends with it."""
    body = refusal_body(error)
    headers = {
        **refusal_headers(error),
        **(more_headers or {}),
        "content-length": str(len(body)),
        "connection": "close",
    }
    lines = [f"HTTP/1.1 {error.status} {phrase_of(error.status)}"]
    lines += [f"{name}: {_one_line(value)}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def headers_too_long() -> ApiError:
    """431 (RFC 6585 §5)."""
    return ApiError(
        431, "invalid_request_error", "The request's headers are too long.", "headers_too_long"
    )


def phrase_of(status: int) -> str:
    """The reason phrase of a status; Twisted knows none of the newer ones."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"


def _one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ")
