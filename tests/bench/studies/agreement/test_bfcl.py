"""The calls that the matching is compared on: the right one is accepted, most changes are not."""

from typing import Any

import pytest

from bench.studies.agreement.bfcl import variants
from edgelm.compress.evaluation.backend import Call
from edgelm.compress.evaluation.tasks.function_calls.functions import (
    FunctionRow,
    matches,
    openai_tool,
)

PROPERTIES: dict[str, Any] = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "hours": {"type": "array", "items": {"type": "integer"}},
    "place": {"type": "dict"},
}
SCHEMA = {
    "name": "weather.get",
    "parameters": {"type": "dict", "properties": PROPERTIES, "required": ["city"]},
}
RIGHT: dict[str, dict[str, list[Any]]] = {
    "weather.get": {
        "city": ["Paris", "Paris, France"],
        "days": [3, ""],
        "hours": [[1, 2]],
        "place": [{"street": ["Rue A", ""]}],
    }
}
ROW = FunctionRow("simple", ({"role": "user", "content": "?"},), (openai_tool(SCHEMA),), (RIGHT,))


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        ("right", {True}),
        ("one call less", {False}),
        ("one call twice", {False}),
        ("another name", {False}),
        ("an argument more", {False}),
        ("needed argument left out", {False}),
        ("optional argument left out", {True}),
        ("text in other letters", {True}),
        ("text in quotes", {False}),
        ("wrong type", {False}),
        ("list in another order", {False}),
        ("a field more", {False}),
        ("a field less", {True}),
    ],
)
def test_variants(kind: str, accepted: set[bool]) -> None:
    found = [calls for one, calls in variants(ROW) if one == kind]
    assert {matches([Call(*call) for call in calls], ROW) for calls in found} == accepted
