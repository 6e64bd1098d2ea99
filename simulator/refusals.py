"""The API's refusals: a status and an error object, raised before anything is generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Refusal(Exception):
    """The request is answered with this status and error instead of a response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.error: dict[str, Any] = {
            "message": message,
            "type": kind,
            "param": param,
            "code": code,
        }

    @property
    def body(self) -> Any:
        """What the API answers."""
        return {"error": self.error}


def bad_request(message: str, param: str | None, code: str | None = None) -> Refusal:
    return Refusal(400, message, param=param, code=code)


def missing_parameter(param: str) -> Refusal:
    message = f"Missing required parameter: '{param}'."
    return bad_request(message, param, "missing_required_parameter")


def invalid_type(param: str, expected: str, got: object) -> Refusal:
    message = f"Invalid type for '{param}': expected {expected}, but got {json_type(got)} instead."
    return bad_request(message, param, "invalid_type")


def invalid_value(param: str, got: str, allowed: Sequence[str]) -> Refusal:
    supported = " and ".join(f"'{each}'" for each in allowed)
    message = f"Invalid value: '{got}'. Supported values are: {supported}."
    return bad_request(message, param, "invalid_value")


def unknown_parameter(param: str) -> Refusal:
    return bad_request(f"Unknown parameter: '{param}'.", param, "unknown_parameter")


def unsupported_parameter(param: str) -> Refusal:
    return bad_request(f"Unsupported parameter: '{param}'.", param, "unsupported_parameter")


def invalid_url(method: str, path: str) -> Refusal:
    return Refusal(404, f"Invalid URL ({method} {path})")


def method_not_supported(method: str, path: str, allowed: Sequence[str]) -> Refusal:
    message = f"Not allowed to {method} on {path}."
    headers = {"allow": ", ".join(allowed)}
    return Refusal(405, message, code="method_not_supported", headers=headers)


def invalid_api_key() -> Refusal:
    message = "Incorrect API key provided. Use the key of one of the simulated accounts."
    return Refusal(401, message, code="invalid_api_key")


def previous_response_not_found(response_id: str) -> Refusal:
    message = f"Previous response with id '{response_id}' not found."
    return bad_request(message, "previous_response_id", "previous_response_not_found")


def response_not_found(response_id: str) -> Refusal:
    return Refusal(404, f"Response with id '{response_id}' not found.")


def invalid_response_id(given: str) -> Refusal:
    message = f"Invalid 'response_id': '{given}'. Expected an ID that begins with 'resp'."
    return bad_request(message, "response_id", "invalid_value")


def zero_data_retention() -> Refusal:
    message = "Previous response cannot be used for this organization due to Zero Data Retention."
    return bad_request(message, "previous_response_id", "unsupported_parameter")


def item_not_found(item_id: str) -> Refusal:
    message = (
        f"Item with id '{item_id}' not found. Items are not persisted when `store` is set to"
        " false. Try again with `store` set to true, or remove this item from your input."
    )
    return Refusal(404, message, param="input")


def invalid_encrypted_content(content: str) -> Refusal:
    shown = content if len(content) <= 8 else f"{content[:4]}...{content[-4:]}"
    message = f"The encrypted content {shown} could not be verified."
    return bad_request(message, None, "invalid_encrypted_content")


def model_not_found(model: str) -> Refusal:
    message = f"The requested model '{model}' does not exist."
    return bad_request(message, "model", "model_not_found")


def json_type(value: object) -> str:
    """How the API names the type of a JSON value in its messages."""
    names = {bool: "a boolean", int: "an integer", float: "a decimal", str: "a string"}
    if value is None:
        return "null"
    return names.get(type(value), "an array" if isinstance(value, list) else "an object")
