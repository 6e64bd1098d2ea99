"""The types of request parameters, as the API's messages name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.refusals import invalid_type, unknown_parameter

STRING, BOOLEAN, INTEGER = "a string", "a boolean", "an integer"
NUMBER, OBJECT, ARRAY = "a decimal", "an object", "an array"
STRING_OR_ARRAY = "one of a string or array of objects"
STRING_OR_OBJECT = "one of a string or object"

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


def check_types(body: object, parameters: Mapping[str, str]) -> dict[str, Any]:
    """The body, if it is an object of known parameters (or nulls) of their types."""
    if not isinstance(body, dict):
        raise invalid_type("body", OBJECT, body)
    for name, value in body.items():
        expected = parameters.get(name)
        if expected is None:
            raise unknown_parameter(name)
        types = _PYTHON_TYPES[expected]
        is_number_by_accident = isinstance(value, bool) and bool not in types
        if value is not None and (is_number_by_accident or not isinstance(value, types)):
            raise invalid_type(name, expected, value)
    return body
