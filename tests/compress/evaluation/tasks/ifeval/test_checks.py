"""Every instruction followed and not followed, and what the reference implementation does oddly."""

import json
from collections import Counter
from typing import Any

import pytest

from edgelm.compress.evaluation.tasks.ifeval import checks
from edgelm.compress.evaluation.tasks.ifeval.checks import CHECKS, NEED_LANGUAGE
from edgelm.compress.evaluation.tasks.ifeval.ifeval import read_row
from tests.core.test_imports import ROOT

DATA = ROOT.parent / "shared" / "data" / "ifeval.jsonl"

# instruction, arguments, answers that follow it, answers that do not
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["This is VERY BIG.", "I am A", "DON'T"],  # DO and N'T are two tokens
        ["This is VERY big.", "Very Big"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["This is VERY big.", "none"],
        ["This is VERY BIG."],
    ),
    (
        "change_case:english_capital",
        {},
        ["THE ANSWER IS NO.", "THE 3 WHEELS"],
        ["The answer is no.", "DIE ANTWORT IST NEIN", "123"],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["the answer is no.", "the 3 wheels"],
        ["The answer is no.", "die antwort ist nein", "123"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": " Why is the sky blue? "},
        ["Why is the sky blue?\nIt scatters.", "\nwhy IS the sky blue? So."],
        ["It scatters. Why is the sky blue?", "Why is the sky  blue?", '"Why is the sky blue?"'],
    ),
    (
        "combination:two_responses",
        {},
        ["one\n******\ntwo", "******one******two******"],
        ["one", "one ****** one", "one ****** two ****** three", "a************b", "a ***** b"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name], [address]", "[a][b] and [c]", "[]()[]"],
        ["[name]", "[name\n] [address]", "(name) (address)"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. Write soon.", "p. s. write", "in the midst p.s. of it", "P.P.S. write"],
        ["Bye.", "PS write", "P.S write"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S. Write soon.", "p. p. s"],
        ["Bye.\nP.S. Write soon."],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well. My answer is maybe. Thus."],
        ["My answer is yes", "my answer is no.", "Yes."],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', '```\n"text"\n```', " 12 ", "```JSON\n[]```"],
        ["", "{'a': 1}", 'Sure: {"a": 1}', '```python\n{"a": 1}\n```', '{"a": 1}\n{"b": 2}'],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 Section2 Section 3", "Section 1, Section 1"],
        ["Section 1\na", "SECTION 1\nSECTION 2", "Section A\nSection B", "Section  1 Section  2"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n* b", "  - a\n\n-b", "*a* is\n*b* is"],
        ["* a", "* a\n* b\n* c", "** a\n** b", "1. a\n2. b", "a - b\nc * d"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and *two*", "**one**\nand *two*", "*one**two*"],
        ["*one*", "**one**", "*one\ntwo*", "** ** *one*", "none"],
    ),
    (
        "detectable_format:title",
        {},
        ["<<Ode to joy>>\ntext", "text <<a>>"],
        ["<Ode>", "<< >>", "<<Ode\nto joy>>", "Ode"],
    ),
    (
        "keywords:existence",
        {"keywords": ["Wheel", "gate"]},
        ["The wheel and the GATE", "wheels, investigate"],
        ["The wheel", "whe el and gate", ""],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["wheel", "C++"]},
        ["The wheels turn.", "freewheel", ""],
        ["The Wheel turns.", "wheel", "a wheel-house"],
    ),
    (
        "keywords:frequency",
        {"keyword": " Gate ", "frequency": 2, "relation": "at least"},
        ["gate, GATE", "investigate the gates"],
        ["gate", "g ate gate"],
    ),
    (
        "keywords:frequency",
        {"keyword": "gate", "frequency": 2, "relation": "less than"},
        ["gate", ""],
        ["gate gate"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "E", "let_frequency": 3, "let_relation": "at least"},
        ["eEe", "three wheels"],
        ["ee", "the elf"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 3, "let_relation": "less than"},
        ["!!", "none"],
        ["a! b! c!"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["die Antwort ist nein", "123 ..."],  # what cannot be told counts as right
        ["the answer is no"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Thus"},
        ["One.\n\nThus two.", "a\n\nTHUS", 'a\n\n "thus, it is', "a\n\n'\"Thus.'"],
        [
            "One.\n\nTwo.",
            "Thus.",
            "a\n\nThus\n\nc",
            "a\nThus",
            "a\n\nThusly",
            "a\n\n(Thus)",
            "a\n\n\"'thus",
        ],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "a***b", "***\na\n***\nb\n***"],
        ["a", "a\n\nb", "a***b***c", "a\n***\n***\nb"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["One. Two.", "Why? So! There."],
        ["One", "Mr. Bo."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        ["One.", "Mr. Bo."],
        ["One. Two."],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        ["one two three", "don't stop"],
        ["one two", "one - two !"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        ["one two"],
        ["one two three", "don't stop"],
    ),
    ("punctuation:no_comma", {}, ["One; two.", "一，二"], ["One, two", "1,000"]),
    (
        "startend:end_checker",
        {"end_phrase": " Any questions? "},
        ["So. Any questions?", 'so. "any QUESTIONS?"\n'],
        ["Any questions? No.", "Any questions", "any questions?."],
    ),
    (
        "startend:quotation",
        {},
        ['"All of it."', ' "a" and "b"\n', '""'],
        ['"', '"open', 'close"', "'single'", "“curly”", 'He: "all"'],
    ),
]
ANSWERS = [
    pytest.param(name, arguments, answer, followed, id=f"{name}-{followed}-{answer!r}")
    for name, arguments, good, bad in CASES
    for followed, answers in ((True, good), (False, bad))
    for answer in answers
]


def _language(text: str) -> str | None:
    """Stands in for langdetect."""
    if not any(map(str.isalpha, text)):
        return None
    return "de" if "antwort" in text.lower() else "en"


@pytest.fixture(autouse=True)
def _told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "language_of", _language)


@pytest.mark.parametrize(("name", "arguments", "answer", "followed"), ANSWERS)
def test_instruction(name: str, arguments: dict[str, Any], answer: str, followed: bool) -> None:
    assert CHECKS[name](answer, **arguments) is followed


def test_every_instruction_has_both_kinds_of_answer() -> None:
    assert {name for name, _, good, bad in CASES if good and bad} == set(CHECKS)
    assert len(CHECKS) == 25


def test_a_forbidden_word_that_ends_in_a_sign_is_found_before_a_letter_only() -> None:
    # The reference puts a word boundary after it, and there is none between two signs.
    check = CHECKS["keywords:forbidden_words"]
    assert check("I like C++ best.", forbidden_words=["C++"])
    assert not check("I like C++11 best.", forbidden_words=["C++"])


def test_words_are_no_patterns() -> None:
    assert not CHECKS["keywords:existence"]("axb", keywords=["a.b"])
    assert CHECKS["keywords:forbidden_words"]("axb", forbidden_words=["a.b"])
    assert not CHECKS["keywords:frequency"]("aab", keyword="a+", frequency=1, relation="at least")
    sections = CHECKS["detectable_format:multiple_sections"]
    assert sections("Part (a) 1", section_spliter="Part (a)", num_sections=1)
    assert CHECKS["detectable_content:postscript"]("x (p.s) y", postscript_marker="(P.S)")


def test_language_is_asked_for_only_where_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def note(text: str) -> str:
        asked.append(text)
        return "en"

    monkeypatch.setattr(checks, "language_of", note)
    needed = set()
    for name, arguments, good, _ in CASES:
        asked.clear()
        CHECKS[name](good[0], **arguments)
        needed |= {name} if asked else set()
    assert needed == NEED_LANGUAGE


@pytest.mark.skipif(not DATA.exists(), reason=f"needs {DATA}")
def test_the_whole_data_set_is_understood() -> None:
    rows = [json.loads(line) for line in DATA.read_text().splitlines()]
    bound = [read_row(row, number) for number, row in enumerate(rows, 1)]
    assert (len(bound), sum(len(row.checks) for row in bound)) == (541, 834)
    used = Counter(name for row in rows for name in row["instruction_id_list"])
    assert used.keys() == CHECKS.keys()
    for row in bound:
        for check in row.checks:
            assert check("Good morning to you") in (True, False)
