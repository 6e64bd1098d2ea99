"""One error type for everything a client may be told, and its one shape on the wire.

Shapes and codes: protocol.md §5.1-§5.4.  A constructor stands for each code that the
gateway itself uses; :func:`from_http` and :func:`from_event` read what upstreams send.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from .headers import may_pass

#: What reading JSON raises when it is broken, no UTF-8, of another shape or nested too deeply.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

#: The code of what is the gateway's own fault.
GATEWAY_FAILED = "gateway_failed"

#: The code of what went wrong before the upstream was reached, by the proxy's own fault.
PROXY_ERROR = "egress_proxy_error"

#: The code of an upstream that no connection could be made to.
UNREACHABLE = "upstream_unreachable"

#: Statuses of an ``error`` event that clients understand (protocol.md §5.1).
_STATUS_RANGE = range(400, 600)

#: Members of an upstream's error object that clients read beside the usual four.
_DETAIL_MEMBERS = ("plan_type", "resets_at", "resets_in_seconds")

#: Response headers that may travel in an ``error`` event; everything else stays here.  In an
#: event they are JSON: what is no header would break an HTTP answer.  An upstream's turn state
#: is for the gateway alone (§4.6).
_CLIENT_HEADERS = re.compile(
    r"retry-after(-ms)?|x-request-id|x-codex-(?!turn-state$)[a-z0-9_-]+", re.IGNORECASE
)

#: Response headers that speak of an account's limits (§7): for health, never for clients.
_HINTS = re.compile(
    r"retry-after(-ms)?|x-ratelimit-.*|x-codex-.*|x-.*-(primary|secondary)-(used|window|reset)-.*"
)
_MAX_HINTS = 64
_MAX_HINT_LENGTH = 200

#: The status that goes with an error code in an event that carries none (§5.3, §5.4).
_STATUS_OF_CODE = {
    "context_length_exceeded": 400,
    "cyber_policy": 400,
    "invalid_encrypted_content": 400,
    "invalid_prompt": 400,
    "previous_response_not_found": 400,
    "unsupported_parameter": 400,
    "invalid_api_key": 401,
    "credit_balance_exhausted": 429,
    "insufficient_quota": 429,
    "organization_spend_limit_exceeded": 429,
    "project_spend_limit_exceeded": 429,
    "rate_limit_exceeded": 429,
    "usage_limit_reached": 429,
    "usage_not_included": 429,
    "server_is_overloaded": 503,
    "slow_down": 503,
}

_STATUS_OF_TYPE = {
    "authentication_error": 401,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "permission_error": 403,
    "usage_limit_reached": 429,
    "usage_not_included": 429,
}


class ApiError(Exception):
    """A refusal in the API's terms: raised by readers, passed as a value everywhere else.

    :param status: HTTP status, 400-599.
    :param type: the API's ``error.type``.
    :param message: one sentence for the person who reads it; never a secret.
    :param code: the API's ``error.code``, or None.
    :param param: the request member at fault, or None.
    :param headers: headers the client should see (``retry-after``).
    :param details: further members of the error object (``resets_at``).
    :param hints: what the upstream's headers said of its limits, names in lower case; for
        :mod:`gateway.protocol.limits` alone, clients never see it.
    """

    def __init__(
        self,
        status: int,
        type: str,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
        hints: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.details = dict(details or {})
        self.hints = dict(hints or {})

    def __str__(self) -> str:
        return f"{self.status} {self.code or self.type}: {self.message}"

    @property
    def label(self) -> str:
        """What logs and counters call this error: its code, else its type."""
        return self.code or self.type

    def body(self) -> dict[str, Any]:
        """The ``error`` object of §5.1, ready for JSON."""
        return {
            "type": self.type,
            "code": self.code,
            "message": self.message,
            "param": self.param,
            **self.details,
        }

    @classmethod
    def invalid_request(
        cls, message: str, param: str | None = None, code: str | None = None
    ) -> ApiError:
        """400: the request itself is wrong."""
        return cls(400, "invalid_request_error", message, code, param)

    @classmethod
    def previous_response_not_found(cls, response_id: str) -> ApiError:
        """400: this client never got a response of that id, or it was forgotten (§10.58)."""
        return cls.invalid_request(
            f"Previous response with id '{response_id[:100]}' not found.",
            "previous_response_id",
            "previous_response_not_found",
        )

    @classmethod
    def connection_limit_reached(cls, message: str) -> ApiError:
        """400: makes every client open a new connection and send its full input (§5.3)."""
        return cls.invalid_request(message, None, "websocket_connection_limit_reached")

    @classmethod
    def forgotten(cls) -> ApiError:
        """400: a response that this connection gave out cannot be continued any more (§6.2)."""
        return cls.connection_limit_reached(
            "The gateway no longer remembers this conversation; send it in full."
        )

    @classmethod
    def gateway_failed(cls) -> ApiError:
        """500: the gateway itself is at fault; another account would fare no better."""
        return cls(500, "server_error", "The gateway failed.", GATEWAY_FAILED)

    @classmethod
    def gateway_restarts(cls) -> ApiError:
        """502: the gateway stops; clients come again, and find another one or a new one."""
        return cls.bad_gateway("The gateway is restarting.", "gateway_restart")

    @classmethod
    def bad_gateway(cls, message: str, code: str = "upstream_error") -> ApiError:
        """502: an upstream could not be used; every client retries this (§5.2)."""
        return cls(502, "server_error", message, code)


def error_event(error: ApiError) -> bytes:
    """The WebSocket form of an error: nested, with an integer status (§5.1, §10.52-55)."""
    event: dict[str, Any] = {"type": "error", "status": error.status, "error": error.body()}
    if error.headers:
        event["headers"] = error.headers
    return msgspec.json.encode(event)


def from_http(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """Read an upstream's HTTP error answer.

    :param headers: its response headers, names in lower case.
    :param body: as much of its body as was read; ``{"error": {…}}``, ``{"detail": "…"}``
        or anything else.
    """
    try:
        decoded = msgspec.json.decode(body)
    except UNREADABLE:
        decoded = None
    fields = _error_object(decoded)
    if status not in _STATUS_RANGE:
        fields.setdefault("message", f"The upstream answered with the status {status}.")
        status = 502
    return _build(status, fields, headers, headers)


def from_event(data: bytes) -> ApiError | None:
    """Read an upstream's ``error`` event, flat or nested (§5.1).

    :param data: the event's JSON.
    :return: None for an event that says nothing (§10.57).
    """
    try:
        decoded = msgspec.json.decode(data)
    except UNREADABLE:
        return None
    fields = _error_object(decoded)
    if not any(fields.get(name) for name in ("code", "type", "message")):
        return None
    status = decoded.get("status") or decoded.get("status_code")
    if not isinstance(status, int) or status not in _STATUS_RANGE:
        status = status_of(fields.get("code"), fields.get("type"))
    headers = decoded.get("headers")
    return _build(status, fields, headers or fields.get("headers"), headers)


def from_failed_response(error: object) -> ApiError:
    """Read ``response.error`` of a ``response.failed`` event (§5.4)."""
    fields = dict(error) if isinstance(error, dict) else {}
    fields.setdefault("message", "The upstream failed the response.")
    status = status_of(fields.get("code"), fields.get("type"))
    return _build(status, fields, fields.get("headers"), None)


def status_of(code: object, type: object = None) -> int:
    """The HTTP status that belongs to an error code and type; 500 for unknown ones."""
    if isinstance(code, str) and code in _STATUS_OF_CODE:
        return _STATUS_OF_CODE[code]
    return _STATUS_OF_TYPE.get(type, 500) if isinstance(type, str) else 500


def _error_object(decoded: object) -> dict[str, Any]:
    """The members of an error in any of the shapes seen in the wild."""
    if not isinstance(decoded, dict):
        return {}
    inner = decoded.get("error")
    if isinstance(inner, dict):
        return dict(inner)
    if isinstance(inner, str):
        return {"message": inner}
    if "detail" in decoded:
        detail = decoded["detail"]
        return {"message": detail if isinstance(detail, str) else str(detail)}
    flat = {name: decoded.get(name) for name in ("code", "message", "param", *_DETAIL_MEMBERS)}
    return {name: value for name, value in flat.items() if value is not None}


def _build(
    status: int, fields: dict[str, Any], for_clients: object, outer_headers: object
) -> ApiError:
    """The error of ``fields``, with the headers that came with it or within it."""
    code = fields.get("code")
    type_ = fields.get("type")
    param = fields.get("param")
    message = fields.get("message")
    default_type = "server_error" if status >= 500 else "invalid_request_error"
    return ApiError(
        status,
        type_ if isinstance(type_, str) and type_ else default_type,
        message
        if isinstance(message, str) and message
        else f"The upstream answered with the status {status} and no message.",
        str(code) if code is not None else None,
        param if isinstance(param, str) else None,
        _kept_headers(for_clients),
        {name: fields[name] for name in _DETAIL_MEMBERS if fields.get(name) is not None},
        _hints(fields, outer_headers),
    )


def _kept_headers(headers: object) -> dict[str, str]:
    """What of an upstream's headers concerns the client; the rest may be about the account."""
    if not isinstance(headers, Mapping):
        return {}
    return {
        name: str(value)
        for name, value in headers.items()
        if isinstance(value, (str, int, float))
        and _CLIENT_HEADERS.fullmatch(name)
        and may_pass(name, str(value))
    }


def _hints(fields: dict[str, Any], outer_headers: object) -> dict[str, str]:
    """What all headers of an error say of limits: its answer's or event's own, and those
    that services put into the error (``headers``; OpenRouter: ``metadata.headers``)."""
    metadata = fields.get("metadata")
    within = metadata.get("headers") if isinstance(metadata, dict) else None
    hints: dict[str, str] = {}
    for headers in (outer_headers, fields.get("headers"), within):
        if isinstance(headers, Mapping):
            for name, value in _limit_headers(headers):
                if len(hints) < _MAX_HINTS:
                    hints.setdefault(name, value)
    return hints


def _limit_headers(headers: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    for name, value in headers.items():
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(name, str) and isinstance(first, (str, int, float)):
            text = str(first)
            if len(text) <= _MAX_HINT_LENGTH and _HINTS.fullmatch(name.lower()):
                yield name.lower(), text
