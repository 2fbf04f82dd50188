"""On-policy distillation: rows that the student writes, and what the teacher makes of them."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edgelm.compress.distillation.loss.objective import Objective
from edgelm.compress.distillation.on_policy import continued, is_on_policy
from edgelm.compress.distillation.student_teacher import Distiller
from edgelm.errors import BadInput
from tests.checkpoints.models import tiny_model
from tests.compress.training import (
    LENGTH,
    SETTINGS,
    rows,
    same,
    teacher_and_student,
    train,
    weights,
)


@pytest.fixture
def models() -> tuple[Any, Any]:
    return teacher_and_student()


def test_a_share_of_the_steps() -> None:
    assert [is_on_policy(step, 0.25) for step in range(8)] == [False, False, False, True] * 2
    assert all(is_on_policy(step, 1.0) for step in range(8))
    assert not any(is_on_policy(step, 0.0) for step in range(8))


@pytest.mark.parametrize("family", ["llama", "gpt-neox"])
def test_the_second_half_is_the_students_and_the_first_is_the_datas(family: str) -> None:
    """Families name their decoder differently."""
    student = tiny_model(family)
    student.train()
    tokens = rows().batch(range(4))
    whole = continued(student, tokens, 3, [0, 1, 2, 3], seed=1)
    assert student.training
    assert whole.shape == tokens.shape
    assert torch.equal(whole[:, : LENGTH // 2], tokens[:, : LENGTH // 2])
    assert not torch.equal(whole, tokens)
    # However the rows are divided.
    parts = [continued(student, tokens[[one]], 3, [one], seed=1) for one in range(4)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(continued(student, tokens, 4, [0, 1, 2, 3], seed=1), whole)


def test_tokens_follow_the_students_distribution(models: tuple[Any, Any]) -> None:
    """The first written token of one prompt, in 2,000 rows: chi-square over its likely tokens."""
    _, student = models
    count, given = 2000, 2
    prompt = rows().batch([0])[:, : 2 * given]
    prompt = prompt[:, :3]  # one token is given, two are written
    drawn = continued(student, prompt.expand(count, -1), 0, list(range(count)), seed=0)[:, 1]
    with torch.no_grad():
        chances = student(prompt[:, :1]).logits[0, -1].softmax(-1).double().numpy()
    found = np.bincount(drawn.numpy(), minlength=len(chances))
    likely = chances * count >= 5
    expected = np.append(chances[likely], chances[~likely].sum()) * count
    seen = np.append(found[likely], found[~likely].sum())
    chi = float(((seen - expected) ** 2 / expected).sum())
    degrees = len(expected) - 1
    assert chi < degrees + 4 * np.sqrt(2 * degrees)


def test_the_loss_covers_what_was_written(models: tuple[Any, Any]) -> None:
    teacher, student = models
    distiller = Distiller(student, teacher, Objective("reverse-kl"))
    tokens = rows().batch(range(2))
    first = LENGTH // 2
    losses = distiller(tokens, None, first)
    with torch.no_grad():
        ours, theirs = (
            model(tokens).logits[:, first - 1 : -1].log_softmax(-1) for model in (student, teacher)
        )
    expected = (ours.exp() * (ours - theirs)).sum(-1).mean()
    assert float(losses.total.detach()) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_a_run_with_half_of_its_steps_on_policy_learns_and_repeats(
    models: tuple[Any, Any], tmp_path: Path
) -> None:
    teacher, student = models
    settings = msgspec.structs.replace(SETTINGS, on_policy=0.5, loss="jsd")
    before = weights(student)
    steps = train(student, teacher, tmp_path / "one", settings)
    assert len(steps) == 8
    assert not same(before, weights(student))
    _, again = teacher_and_student()
    small = msgspec.structs.replace(settings, micro_batch=1)
    for one, other in zip(train(again, teacher, tmp_path / "two", small), steps, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-3)


@pytest.mark.parametrize(
    ("over", "message"),
    [({"cross_entropy": 0.5}, "has no labels"), ({"compile": True}, "one token at a time")],
)
def test_refusals(over: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        msgspec.structs.replace(SETTINGS, on_policy=0.5, **over).check()


def test_there_must_be_a_teacher(models: tuple[Any, Any], tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, on_policy=0.5)
    with pytest.raises(BadInput, match="on_policy needs a live teacher"):
        train(models[1], None, tmp_path, settings)
