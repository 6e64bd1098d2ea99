"""Parses errors of upstreams, in every shape seen in the wild (protocol.md §5.1).

Errors come as an HTTP answer, an event, a bare object in a stream, or a failed response; nested or
flat; from services and from wrappers around them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from gateway.protocol import error_messages as messages
from gateway.protocol.errors import NOT_THE_API, UNREADABLE, ApiError
from gateway.protocol.events import value_of
from gateway.protocol.headers import may_pass

#: Statuses of an ``error`` event that clients understand (protocol.md §5.1).
_STATUS_RANGE = range(400, 600)

#: Statuses that say what is wrong without the API's words, whoever answers with them.
_CLEAR_STATUSES = frozenset({400, 401, 402, 413, 422, 429, 431})

#: What may open a JSON text that was cut off.
_JSON_BEGINS = (b"{", b"[", b'"')

#: How much of an answer that is not JSON is quoted, in characters.
_MAX_TEXT = 300

#: Members of an error object that clients read beside the usual four.
_DETAIL_MEMBERS = ("plan_type", "resets_at", "resets_in_seconds")

#: Response headers that may travel in an ``error`` event.  An upstream's turn state is for the
#: gateway alone.
_CLIENT_HEADERS = re.compile(
    r"retry-after(-ms)?|x-request-id|x-codex-(?!turn-state$)[a-z0-9_-]+", re.IGNORECASE
)

#: Response headers that speak of an account's limits: for its health, never for clients.
_HINTS = re.compile(
    r"retry-after(-ms)?|x-ratelimit-.*|x-codex-.*|x-.*-(primary|secondary)-(used|window|reset)-.*"
)
_MAX_HINTS = 64
_MAX_HINT_LENGTH = 200


def _by_name(names_of_status: Mapping[int, str]) -> dict[str, int]:
    return {name: status for status, names in names_of_status.items() for name in names.split()}


#: The status that goes with an error's code where it comes with none.
_STATUS_OF_CODE = _by_name(
    {
        400: "context_length_exceeded cyber_policy invalid_encrypted_content invalid_prompt"
        " previous_response_not_found unsupported_parameter",
        401: "invalid_api_key",
        404: "model_not_found",
        429: "billing_hard_limit_reached credit_balance_exhausted insufficient_quota"
        " organization_spend_limit_exceeded project_spend_limit_exceeded rate_limit_exceeded"
        " usage_limit_reached usage_not_included",
        503: "engine_overloaded overloaded server_is_overloaded server_overloaded slow_down",
    }
)

#: The same for an error's type.
_STATUS_OF_TYPE = _by_name(
    {
        400: "BadRequestError ContextWindowExceededError bad_request_error"
        " image_generation_user_error invalid_request invalid_request_error",
        401: "AuthenticationError authentication_error",
        403: "PermissionDeniedError permission_error",
        404: "NotFoundError not_found_error",
        422: "UnprocessableEntityError validation_error",
        429: "RateLimitError insufficient_quota rate_limit_error usage_limit_reached"
        " usage_not_included",
        503: "ServiceUnavailableError overloaded_error",
    }
)

#: The type that some services give to errors of every kind: beside a status it says nothing.
_ANY_TYPE = "invalid_request_error"

#: Members that hold a status as a number, or as a number's digits.
_STATUS_MEMBERS = ("code", "status", "status_code", "statusCode", "http_status")

#: Members that hold an error, or several.
_WRAPPERS = ("error", "errors", "detail")

#: A member of an ``error`` event in which relays put the answer that they got.
_BODY = "body"

#: How answers open that are errors and nothing else, and how many bytes of one decide.
_OPENINGS = (b'{"error', b'{"detail"', b'{"type":"error"', b'{"object":"error"')
_OPENING = 64

#: Members that hold what an error says to people, the likeliest first.
_MESSAGE_MEMBERS = ("message", "detail", "msg", "error_message", "error_msg", "title")

#: Depth to which a message is looked for within a message.
_MAX_DEPTH = 4

#: Errors of a list that are quoted.
_MAX_ERRORS = 20


def from_http(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """Read an upstream's HTTP error answer, in any of the shapes seen in the wild.

    :param status: of the answer; one that is none of an error says nothing.
    :param headers: its response headers, names in lower case.
    :param body: as much of its body as was read.
    """
    try:
        decoded = msgspec.json.decode(body.lstrip(b"\xef\xbb\xbf"))
    except UNREADABLE:
        decoded = None
        text = body.lstrip(b"\xef\xbb\xbf \t\r\n")
        was_json = not text or text.startswith(_JSON_BEGINS)  # and was cut off
        if status not in _CLEAR_STATUSES and not was_json:
            return _not_the_api(status, headers, body)
    fields = _error_object(decoded)
    if status in _STATUS_RANGE:
        return _build(_effective_status(status, fields), fields, headers, headers)
    within = _effective_status(None, fields)
    what = ", but with neither events nor a response" if status < 300 else ""
    fields.setdefault("message", f"The upstream answered with the status {status}{what}.")
    return _build(502 if within == 500 else within, fields, headers, headers)


def from_answer(status: int, headers: Mapping[str, str], body: bytes) -> ApiError | None:
    """Read an answer with a status of success, which may be an error all the same.

    :param headers: its response headers, names in lower case.
    :param body: all of it.
    :return: None for anything but an error.
    """
    return from_http(status, headers, body) if _is_bare_error(value_of(body)) else None


def from_event(data: bytes) -> ApiError | None:
    """Read an upstream's ``error`` event, whatever it holds.

    :param data: the event's data: JSON, flat or nested, or a text.
    :return: None for an event that says nothing.
    """
    try:
        decoded = msgspec.json.decode(data)
    except UNREADABLE:
        decoded = None if data.lstrip()[:1] in _JSON_BEGINS else _text(data)
    fields = _error_object(decoded)
    if not any(fields.get(name) for name in ("code", "type", "message")):
        return None
    outer = decoded if isinstance(decoded, dict) else {}
    headers = outer.get("headers")
    given = _number(outer.get("status")) or _number(outer.get("status_code"))
    status = _effective_status(given, fields)
    return _build(status, fields, headers or fields.get("headers"), headers)


def from_untyped(data: bytes) -> ApiError | None:
    """Read the data of an event without a type: services end streams with a bare error.

    :return: None for anything but an error.
    """
    return from_event(data) if _is_bare_error(value_of(data)) else None


def may_be_bare_error(begins: bytes | bytearray) -> bool:
    """Whether an answer that begins so may be an error and nothing else."""
    opening = bytes(begins[:_OPENING]).translate(None, b" \t\r\n")
    return any(each.startswith(opening) or opening.startswith(each) for each in _OPENINGS)


def _is_bare_error(decoded: object) -> bool:
    """Whether it is an error and nothing else: objects of the API have one as a member, too."""
    if not isinstance(decoded, dict) or decoded.get("object") not in (None, "error"):
        return False
    return decoded.get("object") == "error" or any(map(decoded.get, _WRAPPERS))


def from_failed_response(error: object) -> ApiError:
    """Read ``response.error`` of a ``response.failed`` event."""
    fields = _error_object({"error": error})
    fields.setdefault("message", "The upstream failed the response.")
    return _build(_effective_status(None, fields), fields, fields.get("headers"), None)


def names_a_member(param: str | None) -> bool:
    """Whether an error's ``param`` names a member of the request itself."""
    return param not in (None, "model", "previous_response_id")


def _effective_status(status: int | None, fields: Mapping[str, Any]) -> int:
    """The status by which an error is judged.

    Wrappers answer 500 or 502 for all that went wrong behind them, and 400 for the limits of
    others: there the error's own numbers, code, type and words know better.

    :param status: that it came with, or None.
    """
    if status is not None and status != 400 and status < 500:
        return status
    if status is not None and fields.get("type") == _ANY_TYPE:
        fields = {**fields, "type": None}
    within = _status_within(fields)
    if status == 400:
        is_of_account = within is not None and (within in (401, 402, 429) or within >= 500)
        return within if within is not None and is_of_account else 400
    return within or status or 500


def _status_within(fields: Mapping[str, Any]) -> int | None:
    numbers = [_number(fields.get(name)) for name in _STATUS_MEMBERS]
    said = next((number for number in numbers if number is not None), None)
    if said is not None and said < 500:
        return said
    kind = fields.get("type")
    of_type = _STATUS_OF_TYPE.get(kind) if isinstance(kind, str) else None
    named = _STATUS_OF_CODE.get(_code(fields) or "") or of_type
    if named is not None and named != 400:
        return named
    message = fields.get("message") or ""
    if names_a_member(_param(fields.get("param"))) or messages.about_the_request(message):
        return 400
    if messages.overloaded(message):
        return 503
    if messages.spent(message) or messages.rate_limited(message):
        return 429
    return named or said


def _code(fields: Mapping[str, Any]) -> str | None:
    """The code of an error: its member, or a known code before its message."""
    code = fields.get("code")
    if code is not None and _number(code) is None:
        return str(code)
    said = messages.leading_code(fields.get("message") or "")
    return said if said in _STATUS_OF_CODE else None


def _param(param: object) -> str | None:
    """Some wrappers write their language's word for null."""
    return param if isinstance(param, str) and param not in ("", "None", "null") else None


def _number(value: object) -> int | None:
    """A status, given as a number or its digits."""
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value in _STATUS_RANGE:
        return value
    return None


def _not_the_api(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """The error for an answer of a CDN, a load balancer or a captive portal.

    It is not a refusal of an account, a model or a request.
    """
    text = _text(body).lstrip("\ufeff \t\r\n")
    if text.startswith("<"):
        what = "a page of HTML, not the API's answer."
    elif text:
        what = f"a text, not the API's answer: {' '.join(text.split())[:_MAX_TEXT]}"
    else:
        what = "no text, so it is not the API's answer."
    message = f"The upstream answered with the status {status} and {what}"
    retried = status if status >= 500 and status in _STATUS_RANGE and status != 501 else 502
    fields = {"message": message, "code": NOT_THE_API, "type": "server_error"}
    return _build(retried, fields, headers, headers)


def _text(data: bytes) -> str:
    """``data`` as text; empty where it is none, or ends within a letter."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ""


def _error_object(decoded: object) -> dict[str, Any]:
    """The members of an error: its ``message`` is a text, if there is any."""
    if isinstance(decoded, list):
        decoded = next((each for each in decoded if isinstance(each, (dict, str))), None)
    if isinstance(decoded, str):
        return {"message": decoded}
    if not isinstance(decoded, dict):
        return {}
    wrappers = (*_WRAPPERS, _BODY) if decoded.get("type") == "error" else _WRAPPERS
    inner = next((decoded[name] for name in wrappers if decoded.get(name)), None)
    if isinstance(inner, dict) and "error" in inner and "message" not in inner:
        inner = inner["error"]
    if isinstance(inner, list) and len(inner) == 1 and isinstance(inner[0], dict):
        inner = inner[0]
    flat = {
        name: decoded[name]
        for name in (*_STATUS_MEMBERS, "param", "headers", *_DETAIL_MEMBERS)
        if decoded.get(name) is not None
    }
    type_ = decoded.get("type")
    if isinstance(type_, str) and type_ in _STATUS_OF_TYPE:  # an event's own type says nothing
        flat["type"] = type_
    if isinstance(inner, dict):
        fields = dict(inner)
        fields.setdefault("code", flat.get("code"))
    else:
        fields = flat
    place = next(map(_place, _validated(inner)), None)
    if place:
        fields.setdefault("param", place)
    message = _message(inner) or _message(decoded)
    if message:
        fields["message"] = message
    else:
        fields.pop("message", None)
    return fields


def _message(value: object, depth: int = 0) -> str:
    """The message of an error, or of a list of them; empty where there is none."""
    if isinstance(value, str):
        return value
    if depth >= _MAX_DEPTH:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_message(each, depth + 1) for each in value[:_MAX_ERRORS])))
    if not isinstance(value, dict):
        return ""
    said = next(
        filter(None, (_message(value.get(name), depth + 1) for name in _MESSAGE_MEMBERS)), ""
    )
    return said if not any(_validated(value)) else _place_and_message(value, said)


def _validated(inner: object) -> Iterator[dict[str, Any]]:
    """A validator's errors: each has the place (``loc``) of what it refuses."""
    for each in inner if isinstance(inner, list) else (inner,):
        if isinstance(each, dict) and isinstance(each.get("loc"), list):
            yield each


def _place(found: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in found["loc"][:_MAX_ERRORS]).removeprefix("body.")


def _place_and_message(found: Mapping[str, Any], said: str) -> str:
    """A validator's message after the place: ``input.0: Not a text (string_type)``."""
    place, kind = _place(found), found.get("type")
    text = f"{said} ({kind})" if isinstance(kind, str) else said
    return f"{place}: {text}" if text and place else text or place


def _build(
    status: int, fields: dict[str, Any], for_clients: object, outer_headers: object
) -> ApiError:
    """The error of ``fields``, with the headers that came with it or within it."""
    type_ = fields.get("type")
    message = fields.get("message")
    default_type = "server_error" if status >= 500 else "invalid_request_error"
    return ApiError(
        status,
        type_ if isinstance(type_, str) and type_ else default_type,
        message
        if isinstance(message, str) and message
        else f"The upstream answered with the status {status} and no message.",
        _code(fields),
        _param(fields.get("param")),
        _kept_headers(for_clients),
        {name: fields[name] for name in _DETAIL_MEMBERS if fields.get(name) is not None},
        _hints(fields, outer_headers),
    )


def _kept_headers(headers: object) -> dict[str, str]:
    """The upstream's headers for the client; the others may be about the account."""
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
    """The headers about limits: of the answer or event, and those within the error.

    Services put them into its ``headers``; OpenRouter into ``metadata.headers``.
    """
    metadata = fields.get("metadata")
    within = metadata.get("headers") if isinstance(metadata, dict) else None
    hints: dict[str, str] = {}
    for headers in (outer_headers, fields.get("headers"), within):
        for name, value in headers.items() if isinstance(headers, Mapping) else ():
            first = value[0] if isinstance(value, list) and value else value
            if not isinstance(name, str) or not isinstance(first, (str, int, float)):
                continue
            name, text = name.lower(), str(first)
            is_hint = len(text) <= _MAX_HINT_LENGTH and _HINTS.fullmatch(name)
            if is_hint and len(hints) < _MAX_HINTS:
                hints.setdefault(name, text)
    return hints
