"""Arguments without quotes: their types are those of the schema, not what the text looks like."""

import json
from typing import Any

import pytest

from edgelm.runtime.text.answers.calls.tagged_calls import read_function_tags, read_key_value_tags

OPTIONAL: Any = {"anyOf": [{"type": "string"}, {"type": "null"}]}  # pydantic's `str | None`
CHOICE: Any = {"$ref": "#/$defs/Size"}
CASES: dict[str, tuple[Any, str, Any]] = {
    "text": ({"type": "string"}, "12345", "12345"),
    "text in quotes": ({"type": "string"}, '"a"', '"a"'),
    "text or null": ({"type": ["string", "null"]}, "12345", "12345"),
    "optional text": (OPTIONAL, "true", "true"),
    "optional text, as a grammar writes it": (OPTIONAL, '"12345"', "12345"),
    "null of an optional text": (OPTIONAL, "null", None),
    "Python's null of an optional text": (OPTIONAL, "None", None),
    "a word": (OPTIONAL, "Paris, 3", "Paris, 3"),
    "choice of digits": ({"enum": ["1", "2"]}, "1", "1"),
    "reference to a choice": (CHOICE, "2", "2"),
    "reference to a choice, in quotes": (CHOICE, '"2"', "2"),
    "optional reference": ({"anyOf": [CHOICE, {"type": "null"}]}, "2", "2"),
    "one reference": ({"allOf": [CHOICE], "default": "1"}, "2", "2"),
    "constant": ({"const": "7"}, '"7"', "7"),
    "number": ({"type": "integer"}, "5", 5),
    "optional number": ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "5", 5),
    "text or number": ({"type": ["string", "integer"]}, "5", 5),
    "Python's constant": ({"type": "boolean"}, "True", True),
    "list": ({"type": "array"}, "[1]", [1]),
    "unknown": (None, "5", 5),
    "reference to nothing": ({"$ref": "#/$defs/None"}, "5", 5),
    "reference to itself": ({"$ref": "#/$defs/Loop"}, "5", 5),
}
DEFINITIONS: Any = {"Size": {"type": "string", "enum": ["1", "2"]}, "Loop": {}}
DEFINITIONS["Loop"] = {"$ref": "#/$defs/Loop"}


@pytest.mark.parametrize(("schema", "text", "expected"), CASES.values(), ids=CASES)
def test_types_of_arguments(schema: Any, text: str, expected: Any) -> None:
    properties = {} if schema is None else {"a": schema}
    parameters = {"type": "object", "properties": properties, "$defs": DEFINITIONS}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    tags = f"<function=f>\n<parameter=a>\n{text}\n</parameter>\n</function>"
    pairs = f"f\n<arg_key>a</arg_key>\n<arg_value>{text}</arg_value>"
    for (call,) in (read_function_tags(tags, tools), read_key_value_tags(pairs, tools)):
        assert json.loads(call.arguments) == {"a": expected}
