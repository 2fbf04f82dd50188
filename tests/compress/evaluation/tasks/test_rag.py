from typing import Any

import pytest

from edgelm.compress.evaluation.backend import Answer, Conversation
from edgelm.compress.evaluation.tasks.rag import (
    RagRow,
    contains,
    f1,
    is_refusal,
    normalized,
    plain_prompt,
    rag,
    rag_choice,
    read_row,
)
from edgelm.compress.evaluation.tasks.rag_rows import rag_rows
from edgelm.errors import BadInput
from tests.compress.evaluation.scripted import Scripted

ROWS = rag_rows()


def test_the_rows_have_the_answer_in_their_documents_or_nowhere() -> None:
    assert len(ROWS) >= 200
    unanswerable = [row for row in ROWS if not row.answers]
    assert len(unanswerable) == len(ROWS) // 6
    for row in ROWS:
        assert len(row.documents) == 3
        assert row.messages[-1]["role"] == "user"
        for answer in row.answers:
            assert any(answer in document for document in row.documents)
            assert answer not in row.wrong
            assert len(row.wrong) == 3
    assert len({(row.documents, row.messages[-1]["content"]) for row in ROWS}) > 235
    assert rag_rows() == ROWS


def test_a_model_that_knows_all_scores_all() -> None:
    answers = {str(row.messages) + row.documents[0]: row.answers for row in ROWS}

    def know(asked: Conversation) -> Answer:
        document = asked.messages[0]["content"].split("\n\n")[1]
        question = asked.messages[-1]["content"].partition("few words. ")[2]
        turns = [*asked.messages[1:-1], {"role": "user", "content": question}]
        found = answers[str(tuple(turns)) + document]
        return Answer(found[0] if found else "I cannot find that.", 1, True)

    found = rag(Scripted(know), ROWS)
    assert {name: metric.mean for name, metric in found.items()} == {
        "f1": 1,
        "exact_match": 1,
        "contains": 1,
        "refused_answerable": 0,
        "refused_unanswerable": 1,
    }
    assert found["refused_answerable"].better == "lower"


def test_a_model_that_always_refuses_is_seen() -> None:
    found = rag(Scripted(lambda _: Answer("Sorry, it is not mentioned.", 1, True)), ROWS)
    assert (found["refused_unanswerable"].mean, found["refused_answerable"].mean) == (1, 1)
    assert found["contains"].mean == 0


def test_answers_are_compared_as_squad_does() -> None:
    assert normalized("The  Tide-water, Museum!") == "tidewater museum"
    assert f1("the captain is Mira Halden", "Mira Halden") == 2 * 2 / (4 + 2)
    assert f1("nobody", "Mira") == 0
    assert contains("It was in 1912.", ["1912"])
    assert not contains("It was in 19123.", ["1912"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sorry. I cannot find the answer based on the context.", True),
        ("The documents do not say.", True),
        ("There is no information about that", True),
        ("It's not mentioned in the context.", True),
        ("Elmstead", False),
        ("The ferry sails from pier 12.", False),
    ],
)
def test_refusals(text: str, expected: bool) -> None:
    assert is_refusal(text) is expected


def test_by_likelihood_the_right_answer_has_to_be_the_likeliest() -> None:
    right = {plain_prompt(row): row.answers[0] for row in ROWS if row.answers}

    def score(context: str, text: str) -> float:
        return -1.0 if right[context] == text.strip() else -2.0

    assert rag_choice(Scripted(likelihood=score), ROWS)["accuracy"].mean == 1
    other = rag_choice(Scripted(likelihood=lambda *pair: -3.0 - score(*pair)), ROWS)
    assert other["accuracy"].mean == 0
    with pytest.raises(BadInput, match="rag_choice needs both"):
        rag_choice(Scripted(), [RagRow(("a",), ROWS[0].messages, ("b",))])


def test_a_row_of_the_benchmark_is_read() -> None:
    row = {
        "ctxs": [{"title": "t", "text": "The mill is old."}],
        "messages": [{"role": "user", "content": "What is old?"}],
        "answers": ["Sorry. I cannot find the answer based on the context."],
    }
    assert read_row(row, "x:1").answers == ()
    assert read_row({**row, "answers": ["mill"]}, "x:1").documents == ("The mill is old.",)
    changes: list[dict[str, Any]] = [{"messages": []}, {"ctxs": [3]}, {"answers": [1]}]
    for change in changes:
        with pytest.raises(BadInput, match="x:1: expected `ctxs`"):
            read_row({**row, **change}, "x:1")
