"""Answers that may have one call alone."""

import pytest

from edgelm.runtime.text.answers.formats import answer_format
from edgelm.runtime.text.answers.parser import AnswerParser
from tests.runtime.text.answers.test_parser import CALL, HERMES, LLAMA3, MISTRAL, TOOLS


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (HERMES, f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>"),
        (MISTRAL, f"[TOOL_CALLS][{CALL}, {CALL}]"),
        (LLAMA3, f"<|python_tag|>{CALL}; {CALL}"),
    ],
)
def test_only_the_first_call(template: str, answer: str) -> None:
    parser = AnswerParser(answer_format(template), TOOLS, single_call=True)
    assert not parser.complete
    parts = [*map(parser.push, answer), parser.finish()]
    assert len([call for part in parts for call in part.tool_calls]) == 1
    assert parser.complete
