"""The one error type for clients, and its one shape on the wire (protocol.md §5.1-§5.4).

A constructor stands for each code that the gateway itself uses;
:mod:`~gateway.protocol.error_parsing` reads the errors that upstreams send.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

#: What reading JSON raises when it is broken, no UTF-8, of another shape or nested too deeply.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

#: Codes: the gateway is at fault; the egress proxy failed before the upstream was reached; no
#: connection to the upstream; an answer that is not the API's (mostly a page of a load balancer).
GATEWAY_FAILED = "gateway_failed"
PROXY_ERROR = "egress_proxy_error"
UNREACHABLE = "upstream_unreachable"
NOT_THE_API = "upstream_not_the_api"

#: Codes of WebSockets to upstreams, which say nothing about the account: one was lost while it was
#: used; a request that WebSocket cannot carry there, and HTTP can.
SOCKET_LOST = "upstream_websocket_lost"
SOCKET_UNSUITED = "upstream_websocket_unsuited"


class ApiError(Exception):
    """An error in the API's terms: raised by readers, passed as a value everywhere else.

    :param status: HTTP status, 400-599.
    :param type: the API's ``error.type``.
    :param message: one sentence for the person who reads it; never a secret.
    :param code: the API's ``error.code``, or None.
    :param param: the request member at fault, or None.
    :param headers: headers the client should see (``retry-after``).
    :param details: further members of the error object (``resets_at``).
    :param hints: the upstream's headers about its limits, names in lower case; for
        :mod:`gateway.protocol.rate_limits` alone, clients never see them.
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
        """Its name in logs and counters: its code, else its type."""
        return self.code or self.type

    def body(self) -> dict[str, Any]:
        """The ``error`` object, ready for JSON."""
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
        """400: this client never got a response of that id, or it was forgotten."""
        return cls.invalid_request(
            f"Previous response with id '{response_id[:100]}' not found.",
            "previous_response_id",
            "previous_response_not_found",
        )

    @classmethod
    def connection_limit_reached(cls, message: str) -> ApiError:
        """400: makes every client open a new connection and send its full input."""
        return cls.invalid_request(message, None, "websocket_connection_limit_reached")

    @classmethod
    def forgotten(cls) -> ApiError:
        """400: a response that this connection gave out cannot be continued any more."""
        return cls.connection_limit_reached(
            "The gateway no longer remembers this conversation; send it in full."
        )

    @classmethod
    def gateway_failed(cls) -> ApiError:
        """500: the gateway itself is at fault; another account would not help."""
        return cls(500, "server_error", "The gateway failed.", GATEWAY_FAILED)

    @classmethod
    def gateway_restarts(cls) -> ApiError:
        """502: the gateway stops; clients retry and reach another or a restarted one."""
        return cls.bad_gateway("The gateway is restarting.", "gateway_restart")

    @classmethod
    def bad_gateway(cls, message: str, code: str = "upstream_error") -> ApiError:
        """502: an upstream could not be used; every client retries this."""
        return cls(502, "server_error", message, code)


def error_event(error: ApiError) -> bytes:
    """The WebSocket form of an error: nested, with an integer status."""
    event: dict[str, Any] = {"type": "error", "status": error.status, "error": error.body()}
    if error.headers:
        event["headers"] = error.headers
    return msgspec.json.encode(event)
