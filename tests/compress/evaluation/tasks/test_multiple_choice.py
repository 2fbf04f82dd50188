import math
from typing import Any

import pytest
import torch

from edgelm.compress.evaluation.backends.student_backend import StudentBackend
from edgelm.compress.evaluation.tasks import multiple_choice as task
from edgelm.compress.evaluation.tasks.multiple_choice import Question
from edgelm.compress.evaluation.tasks.scores import Score
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import VOCAB
from tests.compress.bigram import bigram
from tests.compress.tokenizers import token_ids


def multiple_choice(
    model: Any, tokenizer: Any, questions: list[Question], *progress: Any
) -> dict[str, Score]:
    backend = StudentBackend(model, tokenizer)
    found = task.multiple_choice(backend, questions, *progress)
    return {name: metric.score() for name, metric in found.items()}


def test_both_accuracies_by_hand(tokenizer: Any) -> None:
    at, space, x, y, z = (token_ids(tokenizer, letter)[0] for letter in "@ XYZ")
    assert token_ids(tokenizer, " XYZ") == [space, x, y, z]
    # " X" has 1/2 * 1/4 = 1/8 with one character, and so 1/8 a character. " YYY" has
    # 1/2 * 1/2 * 1/2 * 1/2 = 1/16 with three, 16^-1/3 = 0.40 a character. " ZZ" is unlikely.
    model = bigram(
        {(at, space): 1 / 2, (space, x): 1 / 4, (space, y): 1 / 2, (y, y): 1 / 2, (z, z): 1 / 2}
    )
    choices = ("ZZ", "X", "YYY")
    questions = [Question("why @", choices, answer) for answer in (1, 1, 1, 2, 0)]
    found = multiple_choice(model, tokenizer, questions)
    assert {name: score.value for name, score in found.items()} == {
        "accuracy": 3 / 5,
        "accuracy_norm": 1 / 5,
    }
    assert found["accuracy"].error == pytest.approx(math.sqrt(0.6 * 0.4 / 5))
    assert found["accuracy_norm"].n == 5


def test_choices_of_different_numbers_stay_with_their_question(tokenizer: Any) -> None:
    space, x, y = (token_ids(tokenizer, letter)[0] for letter in " XY")
    model = bigram({(space, x): 1 / 2, (space, y): 1 / 4})
    questions = [
        Question("a", ("Z", "Y"), 1),
        Question("a much longer question than the others", ("X",), 0),
        Question("b", ("Y", "Z", "Q", "X"), 3),
    ]
    seen = list[tuple[int, int]]()
    found = multiple_choice(model, tokenizer, questions, lambda *step: seen.append(step))
    assert found["accuracy"].value == found["accuracy_norm"].value == 1
    assert seen[-1] == (7, 7)


def test_equals_the_logits_of_transformers(tokenizer: Any) -> None:
    model = tiny_model("granite", vocab_size=VOCAB)
    questions = [
        Question(f"Why is the sky {number}? Because", ("the wheel", "of", "molecules scatter"), 0)
        for number in range(12)
    ]
    plain, normalized = [], []
    for one in questions:
        likely = []
        for choice in one.choices:
            before, after = token_ids(tokenizer, one.question), token_ids(tokenizer, f" {choice}")
            with torch.inference_mode():
                logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
            likely.append(float(logits.log_softmax(-1)[range(len(after)), after].sum()))
        by_length = [value / len(choice) for value, choice in zip(likely, one.choices, strict=True)]
        plain.append(likely.index(max(likely)) == 0)
        normalized.append(by_length.index(max(by_length)) == 0)
    found = multiple_choice(model, tokenizer, questions)
    assert found["accuracy"].value == sum(plain) / 12
    assert found["accuracy_norm"].value == sum(normalized) / 12
