"""What a JSON answer continues with, from its prompt and its earlier records."""

import json

import pytest

from edgelm.bench.speculation.extraction import EXTRACTION
from edgelm.runtime.speculation.extraction import Extraction

PROMPT = """\
Give name, town and age of everybody as JSON.

Ann Lee lives in Oslo and is 41 years old. Bo Sandberg lives in Luleå and is 7 years old. \
Cy "Red" Ray lives in Rome and is 33 years old."""
FIRST = '[{"name": "Ann Lee", "town": "Oslo", "age": 41}, {"'


def continued(prompt: str, begun: str, least: int = 200, forced: str = "") -> str:
    extraction = Extraction(prompt)
    extraction.push(begun)
    return extraction.predict(least, forced)[0]


def test_the_next_record_is_predicted_whole() -> None:
    assert continued(PROMPT, FIRST + 'name": "').startswith(
        'Bo Sandberg", "town": "Luleå", "age": 7}, {"name": "'
    )


@pytest.mark.parametrize("cut", range(len('name": "Bo Sandberg", "town": "Luleå", "age": 7}')))
def test_wherever_the_record_stands(cut: int) -> None:
    record = 'name": "Bo Sandberg", "town": "Luleå", "age": 7}'
    typed = record[:cut]
    if typed and 'age": 4' not in typed:
        found = continued(PROMPT, FIRST + typed, 8)
        assert found, typed
        assert record.startswith((typed + found)[: len(record)]), (typed, found)


def test_keys_of_a_first_record_come_from_a_list_in_the_prompt() -> None:
    assert continued(PROMPT, '[{"name": "Ann Lee"').startswith(', "town": "')
    assert continued(PROMPT, '{\n  "name": "Ann Lee",').startswith('\n  "town": "')


def test_a_label_brings_a_value() -> None:
    prompt = "As JSON:\nInvoice number: HM-17\nTotal: 863.75 EUR\nDue date: 4 May, noon"
    assert continued(prompt, '{"invoice_number":', 5) == ' "HM-17"'
    assert continued(prompt, '{"total":', 5).startswith(" 863.75")
    assert continued(prompt, '{"due_date": "', 5) == '4 May"'


def test_what_json_would_escape_is_not_predicted() -> None:
    begun = FIRST + 'name": "Bo Sandberg", "town": "Luleå", "age": 7}, {"name": "'
    assert '"Red' not in continued(PROMPT, begun, 8)


def test_after_the_last_record_the_list_is_expected_to_end() -> None:
    prompt = "Ann lives in Oslo. Bo lives in Rome."
    begun = '[{"name": "Ann", "town": "Oslo"}, {"name": "Bo", "town": "'
    assert continued(prompt, begun) == 'Rome"}'


def test_the_text_of_a_grammar_comes_first() -> None:
    assert continued("Who?", '{"', 12, 'speaker"') == 'speaker": "'
    assert continued(PROMPT, FIRST, 14, 'name"') == 'name": "Bo Sandberg"'


def test_an_empty_key_predicts_no_other() -> None:
    assert continued("Say it.", '{"": "x"') == ""


def test_a_run_of_commas_is_read_once() -> None:
    """Trying all parts of it would take minutes."""
    assert continued("name" + "," * 200_000, '{"name": "x"') == ""


def test_outside_of_json_nothing_is_predicted() -> None:
    for text in ("", "Ann Lee lives in", "[1] says {so}.", '{"a": 1} and'):
        assert continued(PROMPT, text) == ""


@pytest.mark.parametrize("task", EXTRACTION, ids=range(len(EXTRACTION)))
def test_most_of_an_extraction_is_predicted(task: tuple[str, str]) -> None:
    """Character by character: how much of the answer the prediction before it has right."""
    prompt, answer = task
    extraction = Extraction(prompt)
    right = position = 0
    while position < len(answer):
        text, _ = extraction.predict(40)
        count = 0
        while count < len(text) and text[count] == answer[position + count : position + count + 1]:
            count += 1
        right += count
        step = count + 1
        extraction.push(answer[position : position + step])
        position += step
    assert json.loads(answer) is not None
    assert right / len(answer) > 0.6
