"""What upstreams say went wrong, in every shape seen in the wild (protocol.md §5.1).

As an HTTP answer, as an event, as a bare object in a stream, or in a failed response; nested or
flat, from services and from the wrappers before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from gateway.protocol import error_messages as wording
from gateway.protocol.errors import NOT_THE_API, UNREADABLE, ApiError
from gateway.protocol.headers import may_pass

#: Statuses of an ``error`` event that clients understand (protocol.md §5.1).
_STATUS_RANGE = range(400, 600)

#: Statuses that say what is wrong without the API's words, whoever answers with them.
_CLEAR_STATUSES = frozenset({400, 401, 402, 413, 422, 429, 431})

#: What may open a JSON text that was cut off.
_JSON_BEGINS = (b"{", b"[", b'"')

#: How much of an answer that is not JSON is told, in characters.
_MAX_TEXT = 300

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
    "model_not_found": 404,
    "billing_hard_limit_reached": 429,
    "credit_balance_exhausted": 429,
    "insufficient_quota": 429,
    "organization_spend_limit_exceeded": 429,
    "project_spend_limit_exceeded": 429,
    "rate_limit_exceeded": 429,
    "usage_limit_reached": 429,
    "usage_not_included": 429,
    "engine_overloaded": 503,
    "overloaded": 503,
    "server_is_overloaded": 503,
    "server_overloaded": 503,
    "slow_down": 503,
}

_STATUS_OF_TYPE = {
    "BadRequestError": 400,
    "ContextWindowExceededError": 400,
    "UnprocessableEntityError": 422,
    "bad_request_error": 400,
    "image_generation_user_error": 400,
    "invalid_request": 400,
    "invalid_request_error": 400,
    "validation_error": 422,
    "AuthenticationError": 401,
    "authentication_error": 401,
    "PermissionDeniedError": 403,
    "permission_error": 403,
    "NotFoundError": 404,
    "not_found_error": 404,
    "RateLimitError": 429,
    "insufficient_quota": 429,
    "rate_limit_error": 429,
    "usage_limit_reached": 429,
    "usage_not_included": 429,
    "ServiceUnavailableError": 503,
    "overloaded_error": 503,
}

#: The type that some services give to errors of every kind: beside a status it says nothing.
_ANY_TYPE = "invalid_request_error"

#: Members that hold a status as a number, or as a number's digits.
_STATUS_MEMBERS = ("code", "status", "status_code", "statusCode", "http_status")

#: Members that hold an error, or several.
_WRAPPERS = ("error", "errors", "detail")

#: How answers open that are errors and nothing else, and how many bytes of one tell.
_OPENINGS = (b'{"error', b'{"detail"', b'{"type":"error"', b'{"object":"error"')
_OPENING = 64

#: Members that hold what an error says to people, the likeliest first.
_MESSAGE_MEMBERS = ("message", "detail", "msg", "error_message", "error_msg", "title")

#: Depth to which a message is looked for within a message.
_MAX_DEPTH = 4

#: Errors of a list that are told.
_MAX_SAID = 20


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
        if status not in _CLEAR_STATUSES and _is_no_json(body):
            return _not_the_api(status, headers, body)
    fields = _error_object(decoded)
    if status not in _STATUS_RANGE:
        told = _settled(None, fields)
        what = ", but with neither events nor a response" if status < 300 else ""
        fields.setdefault("message", f"The upstream answered with the status {status}{what}.")
        return _build(502 if told == 500 else told, fields, headers, headers)
    return _build(_settled(status, fields), fields, headers, headers)


def from_answer(status: int, headers: Mapping[str, str], body: bytes) -> ApiError | None:
    """Read an answer that was to be what was asked for, and may be an error all the same.

    :param status: one of success.
    :param headers: its response headers, names in lower case.
    :param body: all of it.
    :return: None for anything but an error.
    """
    try:
        decoded = msgspec.json.decode(body)
    except UNREADABLE:
        return None
    return from_http(status, headers, body) if _is_bare_error(decoded) else None


def from_event(data: bytes) -> ApiError | None:
    """Read an upstream's ``error`` event, whatever it holds (§5.1).

    :param data: the event's data: JSON, flat or nested, or a text.
    :return: None for an event that says nothing (§10.57).
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
    status = _settled(_number(outer.get("status")) or _number(outer.get("status_code")), fields)
    return _build(status, fields, headers or fields.get("headers"), headers)


def from_untyped(data: bytes) -> ApiError | None:
    """Read an event that does not say what it is: services end streams with a bare error.

    :param data: the event's data.
    :return: None for anything but an error.
    """
    try:
        decoded = msgspec.json.decode(data)
    except UNREADABLE:
        return None
    return from_event(data) if _is_bare_error(decoded) else None


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
    """Read ``response.error`` of a ``response.failed`` event (§5.4)."""
    fields = _error_object({"error": error})
    fields.setdefault("message", "The upstream failed the response.")
    return _build(_settled(None, fields), fields, fields.get("headers"), None)


def _named_status(code: object, type: object) -> int | None:
    of_code = _STATUS_OF_CODE.get(code) if isinstance(code, str) else None
    of_type = _STATUS_OF_TYPE.get(type) if isinstance(type, str) else None
    return of_code or of_type


def names_a_member(param: str | None) -> bool:
    """Whether an error's ``param`` says which of the request's own members is at fault."""
    return param not in (None, "model", "previous_response_id")


def _settled(status: int | None, fields: Mapping[str, Any]) -> int:
    """The status by which an error is judged.

    Wrappers answer 500 or 502 for all that went wrong behind them, and 400 for the limits of
    others: there the error's own numbers, code, type and words know better.

    :param status: that it came with, or None.
    """
    if status is not None and status != 400 and status < 500:
        return status
    if status is not None and fields.get("type") == _ANY_TYPE:
        fields = {**fields, "type": None}
    meant = _meant(fields)
    if status == 400:
        speaks_of_the_account = meant is not None and (meant in (401, 402, 429) or meant >= 500)
        return meant if meant is not None and speaks_of_the_account else 400
    return meant or status or 500


def _meant(fields: Mapping[str, Any]) -> int | None:
    numbers = [_number(fields.get(name)) for name in _STATUS_MEMBERS]
    said = next((number for number in numbers if number is not None), None)
    if said is not None and said < 500:
        return said
    named = _named_status(_code(fields), fields.get("type"))
    if named is not None and named != 400:
        return named
    message = fields.get("message") or ""
    if names_a_member(_param(fields.get("param"))) or wording.about_the_request(message):
        return 400
    if wording.overloaded(message):
        return 503
    if wording.spent(message) or wording.rate_limited(message):
        return 429
    return named or said


def _code(fields: Mapping[str, Any]) -> str | None:
    """The code of an error: a member of its own, or a known one before what it says."""
    code = fields.get("code")
    if code is not None and _number(code) is None:
        return str(code)
    said = wording.leading_code(fields.get("message") or "")
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


def _is_no_json(body: bytes) -> bool:
    """Whether an answer was never meant as JSON; one that was cut off was."""
    text = body.lstrip(b"\xef\xbb\xbf \t\r\n")
    return bool(text) and not text.startswith(_JSON_BEGINS)


def _not_the_api(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """What a CDN, a load balancer or a captive portal says in place of the API.

    It speaks of nothing that the API knows: no account, no model, no request is refused by it.
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
    inner = next((decoded[name] for name in _WRAPPERS if decoded.get(name)), None)
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
    message = _said(inner) or _said(decoded)
    if message:
        fields["message"] = message
    else:
        fields.pop("message", None)
    return fields


def _said(value: object, depth: int = 0) -> str:
    """What of an error, or of a list of them, is for people; empty where nothing is."""
    if isinstance(value, str):
        return value
    if depth >= _MAX_DEPTH:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_said(each, depth + 1) for each in value[:_MAX_SAID])))
    if not isinstance(value, dict):
        return ""
    said = next(filter(None, (_said(value.get(name), depth + 1) for name in _MESSAGE_MEMBERS)), "")
    return said if not any(_validated(value)) else _with_place(value, said)


def _validated(inner: object) -> Iterator[dict[str, Any]]:
    """What a validator found: each has the place (``loc``) where it did."""
    for each in inner if isinstance(inner, list) else (inner,):
        if isinstance(each, dict) and isinstance(each.get("loc"), list):
            yield each


def _place(found: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in found["loc"][:_MAX_SAID]).removeprefix("body.")


def _with_place(found: Mapping[str, Any], said: str) -> str:
    """What a validator says, after the place: ``input.0: Not a text (string_type)``."""
    place, kind = _place(found), found.get("type")
    told = f"{said} ({kind})" if isinstance(kind, str) else said
    return f"{place}: {told}" if told and place else told or place


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
