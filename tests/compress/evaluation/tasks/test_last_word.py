import math
from typing import Any

import pytest
import torch

from edgelm.compress.evaluation.backends.student_backend import StudentBackend
from edgelm.compress.evaluation.tasks import last_word as task
from edgelm.compress.evaluation.tasks.scores import Score
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import VOCAB
from tests.compress.bigram import bigram, chain
from tests.compress.tokenizers import token_ids


def last_word(
    model: Any, tokenizer: Any, passages: list[tuple[str, str]], *progress: Any
) -> dict[str, Score]:
    backend = StudentBackend(model, tokenizer)
    found = task.last_word(backend, passages, *progress)
    return {name: metric.score() for name, metric in found.items()}


def test_accuracy_and_perplexity_by_hand(tokenizer: Any) -> None:
    space, *_ = token_ids(tokenizer, " X")
    x, y, at = (token_ids(tokenizer, letter)[0] for letter in "XY@")
    assert [token_ids(tokenizer, f" {letter}") for letter in "XY"] == [[space, x], [space, y]]
    # " X" has 1/2 * 1/2, " Y" 1/2 * 1/8; " X" is the likeliest.
    model = bigram({(at, space): 1 / 2, (space, x): 1 / 2, (space, y): 1 / 8})
    passages = [("a @", "X"), ("b @", "Y"), ("@", "X"), ("cc @", "Y")]
    seen = list[tuple[int, int]]()
    found = last_word(model, tokenizer, passages, lambda *step: seen.append(step))
    assert found["accuracy"].value == 0.5
    assert found["accuracy"].error == pytest.approx(math.sqrt(0.5 * 0.5 / 4))
    # The geometric mean of 1/4 and 1/16 is 1/8, a word and not a token.
    assert found["perplexity"].value == pytest.approx(8, rel=1e-3)
    assert (found["perplexity"].n, found["perplexity"].better) == (4, "lower")
    assert seen == [(4, 4)]


def test_all_tokens_of_the_word_must_be_the_likeliest(tokenizer: Any) -> None:
    ids = token_ids(tokenizer, "@ XYZ")
    right = bigram(chain(*ids))
    wrong_end = bigram({**chain(*ids), (ids[-2], ids[-1]): 0.4, (ids[-2], ids[0]): 0.5})
    for model, accuracy in ((right, 1), (wrong_end, 0)):
        assert last_word(model, tokenizer, [("@", "XYZ")])["accuracy"].value == accuracy


def test_equals_the_logits_of_transformers(tokenizer: Any) -> None:
    model = tiny_model("qwen2", vocab_size=VOCAB)
    passages = [("The miller waits until the", "level"), ("Why is", "the"), ("Garnets", "sky")]
    losses, right = [], []
    for context, word in passages:
        before, after = token_ids(tokenizer, context), token_ids(tokenizer, f" {word}")
        with torch.inference_mode():
            logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        losses.append(
            float(torch.nn.functional.cross_entropy(logits, torch.tensor(after)) * len(after))
        )
        right.append(logits.argmax(-1).tolist() == after)
    found = last_word(model, tokenizer, passages)
    assert found["perplexity"].value == pytest.approx(math.exp(sum(losses) / 3), rel=1e-3)
    assert found["accuracy"].value == sum(right) / 3
