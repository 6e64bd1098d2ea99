"""What the API accepts: strict checks of requests and conversations, and its refusals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from simulator.items import CALL_TYPES, CALLS_ANSWERED_BY, Item, type_of

STRING, BOOLEAN, INTEGER = "a string", "a boolean", "an integer"
NUMBER, OBJECT, ARRAY = "a decimal", "an object", "an array"
STRING_OR_ARRAY = "one of a string or array of objects"
STRING_OR_OBJECT = "one of a string or object"

#: The types of parameters, as the API's messages name them.
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    STRING: (str,),
    BOOLEAN: (bool,),
    INTEGER: (int,),
    NUMBER: (int, float),
    OBJECT: (dict,),
    ARRAY: (list,),
    STRING_OR_ARRAY: (str, list),
    STRING_OR_OBJECT: (str, dict),
}


def typed(names: Mapping[str, str]) -> dict[str, str]:
    """The type of each parameter.

    :param names: the names of the parameters of each type, separated by spaces.
    """
    return {name: kind for kind, listed in names.items() for name in listed.split()}


_PARAMETERS = typed(
    {
        STRING: "instructions model personality previous_response_id prompt_cache_key "
        "prompt_cache_retention safety_identifier service_tier truncation user",
        BOOLEAN: "background parallel_tool_calls store stream",
        INTEGER: "max_output_tokens max_tool_calls top_logprobs",
        NUMBER: "frequency_penalty presence_penalty temperature top_p",
        OBJECT: "access_programs background_options client_metadata image metadata moderation "
        "prompt prompt_cache_options reasoning stream_options text",
        ARRAY: "context_management include tools",
        STRING_OR_ARRAY: "input",
        STRING_OR_OBJECT: "conversation tool_choice",
    }
)
_ALL = frozenset(_PARAMETERS) - {"personality"}
_COUNTED_WORDS = (
    "conversation input instructions model parallel_tool_calls personality previous_response_id "
    "reasoning text tool_choice tools truncation"
)
#: The parameters of ``input_tokens``.
COUNTED = frozenset(_COUNTED_WORDS.split())
_COMPACTED_WORDS = (
    "image input instructions model parallel_tool_calls previous_response_id prompt_cache_key "
    "prompt_cache_options prompt_cache_retention reasoning service_tier text tools"
)
#: The parameters of ``compact``: the documented ones, and those that Codex sends as well.
COMPACTED = frozenset(_COMPACTED_WORDS.split())
INCLUDABLE = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
)
#: Items that must have a call id; of other calls a server may keep it to itself.
_NAMING_A_CALL = frozenset(
    {"function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"}
)

FindItem = Callable[[str], Item | None]


# --- refusals ------------------------------------------------------------------------------


class Refusal(Exception):
    """The request is answered with an error instead of a response.

    :param status: the HTTP status.
    :param message: for people.
    :param code: for programs.
    :param param: the parameter that is wrong.
    :param kind: the ``type`` of the error.
    :param headers: headers for the answer.
    :ivar error: the API's error object.
    """

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
        """The JSON of the answer."""
        return {"error": self.error}


def bad_request(message: str, param: str | None, code: str | None = None) -> Refusal:
    """A refusal with status 400."""
    return Refusal(400, message, param=param, code=code)


def missing_parameter(param: str) -> Refusal:
    """A required parameter is not given."""
    message = f"Missing required parameter: '{param}'."
    return bad_request(message, param, "missing_required_parameter")


def invalid_type(param: str, expected: str, got: object) -> Refusal:
    """A value has another type than expected, named as the API does."""
    message = f"Invalid type for '{param}': expected {expected}, but got {_json_type(got)} instead."
    return bad_request(message, param, "invalid_type")


def invalid_value(param: str, got: str, allowed: Sequence[str]) -> Refusal:
    """A value is none of those allowed."""
    supported = " and ".join(f"'{each}'" for each in allowed)
    message = f"Invalid value: '{got}'. Supported values are: {supported}."
    return bad_request(message, param, "invalid_value")


def unsupported_parameter(param: str) -> Refusal:
    """The parameter is known, but not accepted here."""
    return bad_request(f"Unsupported parameter: '{param}'.", param, "unsupported_parameter")


def item_not_found(item_id: str) -> Refusal:
    """No stored item has this id."""
    message = (
        f"Item with id '{item_id}' not found. Items are not persisted when `store` is set to"
        " false. Try again with `store` set to true, or remove this item from your input."
    )
    return Refusal(404, message, param="input")


def _json_type(value: object) -> str:
    """How the API names the type of a JSON value in its messages."""
    names = {bool: "a boolean", int: "an integer", float: "a decimal", str: "a string"}
    if value is None:
        return "null"
    return names.get(type(value), "an array" if isinstance(value, list) else "an object")


# --- requests ------------------------------------------------------------------------------


def check_types(body: object, parameters: Mapping[str, str]) -> dict[str, Any]:
    """Check that a body is an object of known parameters, each null or of its type.

    :param parameters: the type of each parameter.
    :return: the body.
    :raises Refusal: when it is not.
    """
    if not isinstance(body, dict):
        raise invalid_type("body", OBJECT, body)
    for name, value in body.items():
        expected = parameters.get(name)
        if expected is None:
            raise bad_request(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
        types = _PYTHON_TYPES[expected]
        is_number_by_accident = isinstance(value, bool) and bool not in types
        if value is not None and (is_number_by_accident or not isinstance(value, types)):
            raise invalid_type(name, expected, value)
    return body


def check_parameters(
    body: object,
    allowed: Collection[str] = _ALL,
    required: Sequence[str] = ("model",),
) -> dict[str, Any]:
    """Check the top level of a request over HTTP: known names, right types, required members.

    :param allowed: the endpoint's parameters.
    :param required: those that must be given.
    :return: the request.
    :raises Refusal: when the endpoint does not accept it.
    """
    if isinstance(body, dict) and "generate" in body:  # the WebSocket transport's own
        raise unsupported_parameter("generate")
    body = check_types(body, {name: _PARAMETERS[name] for name in allowed})
    for name in required:
        if body.get(name) in (None, ""):
            raise missing_parameter(name)
    _check_sources(body)
    _check_input(body.get("input"))
    _check_tools(body.get("tools"))
    _check_strings("include", body.get("include"))
    _check_client_metadata(body.get("client_metadata"))
    return body


def _check_sources(body: dict[str, Any]) -> None:
    sources = ("input", "previous_response_id", "prompt", "conversation")
    if all(body.get(source) is None for source in sources):
        message = (
            "One of 'input' or 'previous_response_id' or 'prompt' or 'conversation'"
            " must be provided."
        )
        raise bad_request(message, "input", "missing_required_parameter")
    if body.get("previous_response_id") is not None and body.get("conversation") is not None:
        message = (
            "Mutually exclusive parameters: you cannot send both"
            " 'previous_response_id' and 'conversation'."
        )
        raise bad_request(message, None, "mutually_exclusive_parameters")


def _check_input(items: object) -> None:
    """Each item is an object with a type or a role; most types are not checked further."""
    for index, item in enumerate(items if isinstance(items, list) else ()):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise invalid_type(where, OBJECT, item)
        if "type" not in item and "role" not in item:
            raise missing_parameter(f"{where}.type")
        if "type" in item and not isinstance(item["type"], str):
            raise invalid_type(f"{where}.type", STRING, item["type"])
        if item.get("type") in _NAMING_A_CALL and not isinstance(item.get("call_id"), str):
            raise missing_parameter(f"{where}.call_id")


def _check_tools(tools: Sequence[object] | None) -> None:
    for index, tool in enumerate(tools or ()):
        where = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise invalid_type(where, OBJECT, tool)
        if not isinstance(tool.get("type"), str):
            raise missing_parameter(f"{where}.type")
        if tool["type"] in ("function", "custom") and not isinstance(tool.get("name"), str):
            raise missing_parameter(f"{where}.name")


def _check_strings(name: str, values: Sequence[object] | None) -> None:
    for index, value in enumerate(values or ()):
        if not isinstance(value, str):
            raise invalid_type(f"{name}[{index}]", STRING, value)


def _check_client_metadata(metadata: dict[str, object] | None) -> None:
    for name, value in (metadata or {}).items():
        if not isinstance(value, str):
            raise invalid_type(f"client_metadata.{name}", STRING, value)


def expand_references(items: Sequence[Item], find: FindItem) -> list[Item]:
    """The items with each ``item_reference`` replaced by the stored item of its id.

    :raises Refusal: when there is no such item.
    """
    expanded: list[Item] = []
    for item in items:
        if type_of(item) == "item_reference":
            found = find(str(item.get("id")))
            if found is None:
                raise item_not_found(str(item.get("id")))
            expanded.append(found)
        else:
            expanded.append(item)
    return expanded


def check_new_items(items: Sequence[Item], find: FindItem, issued: Callable[[str], bool]) -> None:
    """Check the items of this request: stored reasoning, and encrypted content of this account.

    :param find: finds a stored item by its id.
    :param issued: whether this account issued an encrypted content.
    :raises Refusal: when an item is not accepted.
    """
    for item in items:
        content = item.get("encrypted_content")
        if isinstance(content, str) and content:
            if not issued(content):
                shown = content if len(content) <= 8 else f"{content[:4]}...{content[-4:]}"
                message = f"The encrypted content {shown} could not be verified."
                raise bad_request(message, None, "invalid_encrypted_content")
        elif type_of(item) == "reasoning":
            item_id = item.get("id")
            if isinstance(item_id, str) and find(item_id) is None:
                raise item_not_found(item_id)
        elif type_of(item) == "compaction":
            raise missing_parameter("input.encrypted_content")


def check_context(context: Sequence[Item]) -> None:
    """Check a whole conversation: unique ids, calls and outputs in pairs.

    :raises Refusal: when the model could not go on with it.
    """
    _check_duplicates(context)
    _check_outputs(context)
    _check_calls(context)
    _check_compaction_trigger(context)


def _check_duplicates(context: Sequence[Item]) -> None:
    seen: set[str] = set()
    for item in context:
        item_id = item.get("id")
        if not isinstance(item_id, str) or not item_id:
            continue
        if item_id in seen:
            message = (
                f"Duplicate item found with id {item_id}."
                " Remove duplicate items from your input and try again."
            )
            raise bad_request(message, "input")
        seen.add(item_id)


def _check_outputs(context: Sequence[Item]) -> None:
    """Every tool output comes after a call of its kind with its call id."""
    called: set[tuple[str, str]] = set()
    for item in context:
        kind, call_id = type_of(item), item.get("call_id")
        if not isinstance(call_id, str):
            continue
        if kind in CALL_TYPES:
            called.add((kind, call_id))
        calls = CALLS_ANSWERED_BY.get(kind)
        if calls and not any((call, call_id) in called for call in calls):
            message = f"No tool call found for {kind.replace('_', ' ')} with call_id {call_id}."
            raise bad_request(message, "input")


def _check_calls(context: Sequence[Item]) -> None:
    """Every call has its output."""
    outputs = [item.get("call_id") for item in context if type_of(item) in CALLS_ANSWERED_BY]
    answered = {call_id for call_id in outputs if isinstance(call_id, str)}
    for item in context:
        kind, call_id = type_of(item), item.get("call_id")
        if kind in CALL_TYPES and isinstance(call_id, str) and call_id not in answered:
            message = f"No tool output found for {kind.replace('_', ' ')} {call_id}."
            raise bad_request(message, "input")


def _check_compaction_trigger(context: Sequence[Item]) -> None:
    for item in context[:-1]:
        if type_of(item) == "compaction_trigger":
            message = "The 'compaction_trigger' item must be the last input item."
            raise bad_request(message, "input")
