"""BFCL's rules, as its checker applies them (bench.studies.agreement.bfcl compares all rows)."""

from typing import Any

import pytest

from edgelm.compress.evaluation.backend import Call
from edgelm.compress.evaluation.tasks.function_calls.call_matching import (
    Expected,
    calls_match,
    first_accepted,
)


def accepts(schema: dict[str, Any], accepted: list[Any], value: Any) -> bool:
    schemas = {"f": {"properties": {"a": schema}, "required": ["a"]}}
    return calls_match([Call("f", {"a": value})], [{"f": {"a": accepted}}], schemas)


STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
TEXTS = {"type": "array", "items": STRING}
NUMBERS = {"type": "array", "items": NUMBER}
OBJECT = {"type": "object"}
OBJECTS = {"type": "array", "items": OBJECT}
PLACE = {"city": ["Paris", "Paris, France"], "days": [3, ""]}


@pytest.mark.parametrize(
    ("schema", "accepted", "value", "expected"),
    [
        (STRING, ["4-2, x"], " 42X.", True),
        (STRING, ["it's"], 'it"s', True),
        (STRING, ["its"], "it's", False),  # quotes count
        (STRING, ["f(x)"], "fx", False),  # and so do parentheses
        (STRING, ["", "x"], "", True),
        (INTEGER, [5], 5.0, False),
        (INTEGER, [1], True, False),
        (INTEGER, ["count"], "count", True),  # the name of a variable
        (INTEGER, ["count"], "Count", False),
        (NUMBER, [5], 5, True),
        (NUMBER, [5.5], "5.5", False),
        (TEXTS, [["A b", "c"]], ["ab", "C"], True),
        (TEXTS, [["a", "b"]], ["b", "a"], False),
        (TEXTS, [["a", "b"]], ["a", 7], False),
        (TEXTS, [["a"], ""], [], True),  # an optional list may be empty
        (NUMBERS, [[1.5, 2.0]], [1.5, 2], False),  # no integers among numbers
        (NUMBERS, [[1, 2]], [1, 2], True),  # unless the right ones are
        (OBJECT, [PLACE], {"city": "paris france"}, True),
        (OBJECT, [PLACE], {"city": "Paris", "days": 3}, True),
        (OBJECT, [PLACE], {"city": "Paris", "days": 4}, False),
        (OBJECT, [PLACE], {"days": 3}, False),
        (OBJECT, [PLACE], {"city": "Paris", "rain": True}, False),
        (OBJECT, [{"to": {"city": ["Rome"]}}], {"to": {"city": "ROME"}}, True),
        (OBJECTS, [[PLACE, PLACE]], [{"city": "Paris"}, {"city": "PARIS", "days": 3}], True),
        (OBJECTS, [[PLACE]], [{"city": "Paris"}] * 2, False),
        (OBJECTS, [[PLACE]], [{"city": "Rome"}], False),
        ({}, ["A"], "a", True),  # a schema without a type
    ],
)
def test_values(schema: dict[str, Any], accepted: list[Any], value: Any, expected: bool) -> None:
    assert accepts(schema, accepted, value) is expected


def test_the_right_call_is_accepted_whatever_its_objects_list() -> None:
    expected: Expected = {"g.f": {"a": [[PLACE]], "b": ["", "x"], "c": [""]}}
    assert first_accepted(expected) == ("g_f", {"a": [{"city": "Paris", "days": 3}], "b": "x"})
    schemas = {"g_f": {"properties": {"a": OBJECTS, "b": STRING, "c": STRING}}}
    assert calls_match([Call(*first_accepted(expected))], [expected], schemas)


def test_equal_calls_of_different_types_are_told_apart() -> None:
    schemas = {"f": {"properties": {"a": INTEGER}}}
    expected = [{"f": {"a": [5]}}] * 2
    right, wrong = Call("f", {"a": 5}), Call("f", {"a": 5.0})
    assert right == wrong
    assert calls_match([right, right], expected, schemas)
    assert not calls_match([wrong, right], expected, schemas)
