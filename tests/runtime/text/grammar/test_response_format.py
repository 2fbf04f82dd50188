"""What `response_format` may be."""

from typing import Any

import pytest

from edgelm.errors import BadInput
from edgelm.runtime.text.grammar.response_format import ResponseFormat, read_response_format

SCHEMA = {"type": "integer"}
TEXT = '{"type": "integer"}'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, ResponseFormat("json_schema", '{"type": "object"}')),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
            ResponseFormat("json_schema", TEXT, strict=True),
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
            ResponseFormat("json_schema", TEXT, strict=False),
        ),
        (
            {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": None},
            ResponseFormat("json_schema", TEXT, strict=False),
        ),
        ({"type": "json_schema", "schema": True}, ResponseFormat("json_schema", "{}", False)),
        ({"type": "regex", "regex": "a+"}, ResponseFormat("regex", "a+")),
        ({"type": "grammar", "grammar": 'start: "a"'}, ResponseFormat("grammar", 'start: "a"')),
    ],
)
def test_formats(value: Any, expected: ResponseFormat | None) -> None:
    assert read_response_format(value) == expected


def deep() -> Any:
    schema: Any = {}
    for _ in range(100_000):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("json", "response_format is json, expected a dict with a type: text, json_object"),
        ({}, "expected a dict with a type"),
        ({"type": "xml"}, "expected a dict with a type"),
        ({"type": ["json_object"]}, "expected a dict with a type"),
        ({"type": "json_schema"}, "has no schema; expected"),
        ({"type": "json_schema", "json_schema": "x"}, "has no schema; expected"),
        ({"type": "json_schema", "json_schema": {"schema": [1]}}, "has no schema; expected"),
        ({"type": "json_schema", "schema": False}, "no value is valid"),
        ({"type": "json_schema", "schema": {}, "strict": 1}, "expected true or false"),
        ({"type": "json_schema", "schema": {"const": float("nan")}}, "is not JSON"),
        ({"type": "json_schema", "schema": {"const": object()}}, "is not JSON"),
        ({"type": "json_schema", "schema": {"const": "x" * 2_000_000}}, "expected at most 1048576"),
        ({"type": "regex"}, "has no regex"),
        ({"type": "regex", "regex": ""}, "has no regex"),
        ({"type": "grammar", "grammar": 5}, "has no grammar"),
        ({"type": "regex", "regex": "a" * 2_000_000}, "expected at most 1048576"),
    ],
)
def test_what_is_refused(value: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_response_format(value)


def test_a_schema_that_is_too_deep_is_refused() -> None:
    with pytest.raises(BadInput, match="is not JSON"):
        read_response_format({"type": "json_schema", "schema": deep()})
