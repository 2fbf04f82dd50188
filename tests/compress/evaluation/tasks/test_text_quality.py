"""Perplexity and distance to a teacher against the logits of transformers."""

import copy
import math
import statistics
from typing import Any

import pytest
import torch
from torch.nn import functional

from edgelm.compress.evaluation import next_token
from edgelm.compress.evaluation.metrics import perplexity_of
from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.compress.evaluation.tasks.text_quality import teacher_agreement, text_losses
from tests.checkpoints.models import tiny_model
from tests.compress.bigram import bigram, log_probabilities
from tests.conftest import TinyFactory

# Soft cap, divisor, sliding windows, stacked projections, tied and untied heads.
FAMILIES = ["llama", "llama-untied", "mistral", "granite", "gemma2", "gemma3", "phi3", "olmo2"]
TOKENS = torch.randint(3, 128, (6, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_token, "_CHUNK", 7)  # of 19 positions, the last one of 5


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(TOKENS, use_cache=False).logits[:, :-1].double()  # type: ignore[no-any-return]


def _other(model: Any) -> Any:
    """The model with another last norm."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(4)
    with torch.no_grad():
        weight = other.model.norm.weight
        weight += 2 * torch.randn(weight.shape, generator=generator)
    return other


def _standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


@pytest.mark.parametrize("name", FAMILIES)
def test_perplexity_equals_that_of_transformers(calm: TinyFactory, name: str) -> None:
    model = calm(name).hf
    losses = [
        float(functional.cross_entropy(logits, row[1:]))
        for logits, row in zip(_logits(model), TOKENS, strict=True)
    ]
    found = _perplexity(model, TOKENS)
    expected = math.exp(statistics.mean(losses))
    assert found.value == pytest.approx(expected, rel=1e-4)
    assert found.error == pytest.approx(expected * _standard_error(losses), rel=1e-3)
    assert (found.n, found.better) == (6, "lower")


@pytest.mark.parametrize("name", FAMILIES)
def test_distance_equals_that_of_transformers(calm: TinyFactory, name: str) -> None:
    teacher = calm(name).hf
    student = _other(teacher)
    ours, theirs = _logits(student).log_softmax(-1), _logits(teacher).log_softmax(-1)
    rows = [
        float(functional.kl_div(q, p, reduction="sum", log_target=True)) / 19
        for q, p in zip(ours, theirs, strict=True)
    ]
    found = teacher_agreement(student, teacher, TOKENS)
    assert found["kl"].value == pytest.approx(statistics.mean(rows), rel=1e-3)
    assert found["kl"].error == pytest.approx(_standard_error(rows), rel=1e-3)
    assert (found["kl"].n, found["kl"].better) == (6, "lower")
    same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean(-1).tolist()
    assert found["top1"].value == pytest.approx(statistics.mean(same))
    assert found["top1"].error == pytest.approx(_standard_error(same)), "over sequences"
    assert 0 < found["top1"].value < 1
    assert (found["top1"].n, found["top1"].better) == (6 * 19, "higher")


def _perplexity(model: Any, tokens: torch.Tensor, progress: Any = None) -> Score:
    return perplexity_of(text_losses(model, tokens, progress)).score()


def test_perplexity_and_its_error_by_hand() -> None:
    # Losses ln 2 and ln 8: mean ln 4, standard deviation sqrt(2) ln 2, of the mean ln 2.
    model = bigram({(5, 5): 1 / 2, (6, 6): 1 / 8})
    found = _perplexity(model, torch.tensor([[5] * 9, [6] * 9]))
    assert found.value == pytest.approx(4, rel=1e-4)
    assert found.error == pytest.approx(4 * math.log(2), rel=1e-4)


def test_all_tokens_alike_make_the_vocabulary_the_perplexity() -> None:
    found = _perplexity(bigram({}, vocab=128), TOKENS)
    assert found.value == pytest.approx(128, rel=1e-4)
    assert found.error == pytest.approx(0, abs=1e-3)


def test_divergence_is_the_teachers_from_the_student_by_hand() -> None:
    teacher, student = {(5, 5): 1 / 2}, {(5, 5): 1 / 4, (5, 6): 1 / 2}
    p, q = log_probabilities(teacher)[5], log_probabilities(student)[5]
    forward, backward = (float((a.exp() * (a - b)).sum()) for a, b in ((p, q), (q, p)))
    assert abs(forward - backward) > 0.1
    found = teacher_agreement(bigram(student), bigram(teacher), torch.full((1, 9), 5))
    assert found["kl"].value == pytest.approx(forward, rel=1e-3)
    assert found["kl"].error == 0
    assert found["top1"] == Score(0, 0, 8, "higher", is_share=True)


def test_a_model_is_at_no_distance_from_itself(calm: TinyFactory) -> None:
    model = calm("gemma2").hf
    found = teacher_agreement(model, model, TOKENS)
    assert (found["kl"].value, found["kl"].error, found["top1"].value) == (0, 0, 1)


def test_a_student_of_another_width_is_compared(calm: TinyFactory) -> None:
    student, teacher = tiny_model("llama", hidden_size=48, seed=1), calm("llama").hf
    ours, theirs = _logits(student).log_softmax(-1), _logits(teacher).log_softmax(-1)
    expected = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    assert teacher_agreement(student, teacher, TOKENS)["kl"].value == pytest.approx(
        expected, rel=1e-3
    )


def test_progress_counts_rows(calm: TinyFactory) -> None:
    model, seen = calm("llama").hf, list[tuple[int, int]]()
    _perplexity(model, TOKENS, lambda *step: seen.append(step))
    teacher_agreement(model, model, TOKENS, lambda *step: seen.append(step))
    assert seen == [(4, 6), (6, 6)] * 2
