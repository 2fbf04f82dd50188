"""The answers that the checks are compared on: each instruction is followed by some, not by all."""

from typing import Any

import pytest

from bench.studies.agreement.ifeval import compare, forms
from edgelm.compress.evaluation.tasks.ifeval.ifeval import evaluate_answer, read_row

TEXT = (
    "The miller rose early. He saw a fox, and it ran.\n\nThen it rained. All day long.\nIt ended."
)
INSTRUCTIONS: dict[str, dict[str, Any]] = {
    "punctuation:no_comma": {},
    "change_case:english_lowercase": {},
    "change_case:english_capital": {},
    "startend:quotation": {},
    "detectable_format:title": {},
    "detectable_format:json_format": {},
    "detectable_format:number_bullet_lists": {"num_bullets": 3},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "detectable_content:number_placeholders": {"num_placeholders": 3},
    "combination:two_responses": {},
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_some_answers_follow_an_instruction_and_some_do_not(name: str) -> None:
    if name.startswith("change_case"):
        pytest.importorskip("langdetect")
    row = {"prompt": "Say it.", "instruction_id_list": [name], "kwargs": [INSTRUCTIONS[name]]}
    prompt = read_row(row, 1)
    assert {evaluate_answer(prompt, answer).strict[0] for answer in forms(TEXT, "Say it.")} == {
        True,
        False,
    }


def test_the_reference_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval.tasks.ifeval.utils", exc_type=ImportError)
    row = {"prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    compare([row], [TEXT], 1)
    assert capsys.readouterr().out.splitlines()[-1].endswith("| 0 | 0 |")
