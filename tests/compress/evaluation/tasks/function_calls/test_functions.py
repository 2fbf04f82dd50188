import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from edgelm.compress.evaluation.backend import Answer, Call, Conversation
from edgelm.compress.evaluation.tasks.function_calls.functions import (
    FunctionRow,
    call_text,
    function_choice,
    functions,
    matches,
    openai_tool,
    plain_prompt,
    read_rows,
)
from edgelm.compress.evaluation.tasks.function_calls.rows import CATEGORIES, function_rows
from edgelm.errors import BadInput
from tests.compress.evaluation.scripted import Scripted

ROWS = function_rows()
SCHEMA = {
    "name": "geometry.area",
    "description": "Area",
    "parameters": {
        "type": "dict",
        "properties": {
            "base": {"type": "integer"},
            "height": {"type": "float"},
            "unit": {"type": "string"},
            "exact": {"type": "boolean"},
        },
        "required": ["base", "height"],
    },
}
EXPECTED: dict[str, dict[str, list[Any]]] = {
    "geometry.area": {"base": [10], "height": [5.0, 5], "unit": ["square cm", ""]}
}
ROW = FunctionRow(
    "simple", ({"role": "user", "content": "?"},), (openai_tool(SCHEMA),), (EXPECTED,)
)


def calls_of(row: FunctionRow) -> tuple[Call, ...]:
    found = []
    for expected in row.expected:
        ((name, values),) = expected.items()
        given = {key: accepted[0] for key, accepted in values.items() if accepted[0] != ""}
        found.append(Call(name.replace(".", "_"), given))
    return tuple(found)


def test_the_rows_are_of_all_categories_and_offer_what_is_right() -> None:
    assert set(Counter(row.category for row in ROWS).values()) == {len(ROWS) // 4}
    assert {row.category for row in ROWS} == set(CATEGORIES)
    for row in ROWS:
        assert matches(calls_of(row), row)
        assert len(row.expected) == {"parallel": 2, "irrelevance": 0}.get(row.category, 1)
        assert not any(matches((Call(*one),), row) for one in row.wrong)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"base": 10, "height": 5}, True),
        ({"base": 10, "height": 5.0, "unit": "Square-CM"}, True),
        ({"base": 10}, False),  # a required one is missing
        ({"base": "10", "height": 5}, False),  # of another type
        ({"base": True, "height": 5}, False),
        ({"base": 10.0, "height": 5}, False),
        ({"base": 10, "height": 6}, False),
        ({"base": 10, "height": 5, "unit": "m"}, False),
        ({"base": 10, "height": 5, "color": "red"}, False),  # not a parameter
        ({"base": 10, "height": 5, "exact": True}, False),  # a parameter without right values
    ],
)
def test_arguments_are_compared_as_bfcl_does(arguments: dict[str, Any], expected: bool) -> None:
    assert matches((Call("geometry_area", arguments),), ROW) is expected


def test_number_and_names_of_calls_count() -> None:
    call = Call("geometry_area", {"base": 10, "height": 5})
    assert not matches((), ROW)
    assert not matches((call, call), ROW)
    assert not matches((Call("area", call.arguments),), ROW)
    row = next(row for row in ROWS if row.category == "parallel")
    one, two = calls_of(row)
    assert matches((two, one), row)
    assert not matches((one, one), row)
    nothing = next(row for row in ROWS if row.category == "irrelevance")
    assert matches((), nothing)
    assert not matches((call,), nothing)


def test_scores_by_category() -> None:
    right = {str(row.messages) + str(row.tools): calls_of(row) for row in ROWS}

    def answer(asked: Conversation) -> Answer:
        return Answer("", 1, True, right[str(asked.messages) + str(asked.tools)])

    found = functions(Scripted(answer), ROWS)
    assert {name: one.mean for name, one in found.items()} == dict.fromkeys(
        ("accuracy", "called", *CATEGORIES), 1
    )
    silent = functions(Scripted(), ROWS)
    assert (silent["accuracy"].mean, silent["irrelevance"].mean, silent["called"].mean) == (
        0.25,
        1,
        0,
    )


def test_by_likelihood_the_right_call_has_to_be_the_likeliest() -> None:
    right = {
        plain_prompt(row): call_text(calls_of(row)[0].name, calls_of(row)[0].arguments)
        for row in ROWS
        if len(row.expected) == 1
    }

    def score(context: str, text: str) -> float:
        return (-1.0 if right[context] == text.strip() else -2.0) * len(text)

    assert function_choice(Scripted(likelihood=score, context=9000), ROWS)["accuracy"].mean == 1


def test_files_of_bfcl_are_read_with_their_answers(tmp_path: Path) -> None:
    name = "BFCL_v4_simple.json"
    row = {
        "id": "simple_0",
        "question": [[{"role": "user", "content": "Area?"}]],
        "function": [SCHEMA],
    }
    (tmp_path / name).write_text(json.dumps(row) + "\n")
    (tmp_path / "possible_answer").mkdir()
    truth = {"id": "simple_0", "ground_truth": [EXPECTED]}
    (tmp_path / "possible_answer" / name).write_text(json.dumps(truth) + "\n")
    (found,) = read_rows(tmp_path / name, None)
    assert found.expected == (EXPECTED,)
    assert found.category == "simple"
    parameters = found.tools[0]["function"]["parameters"]
    assert parameters["type"] == "object"
    assert parameters["properties"]["height"]["type"] == "number"
    (tmp_path / "bad.json").write_text('{"question": "Why?"}\n')
    with pytest.raises(BadInput, match=r"bad\.json:1: expected BFCL's fields"):
        read_rows(tmp_path / "bad.json", None)
