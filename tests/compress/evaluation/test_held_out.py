"""Distance on held-out rows equals the plain formula on Hugging Face's logits."""

import pytest
import torch

from edgelm.compress.evaluation.held_out import HeldOut, held_out_divergence
from tests.checkpoints.models import REPRESENTATIVE, TINY, tiny_model
from tests.slow import slow_but


@pytest.mark.parametrize("name", slow_but(TINY, REPRESENTATIVE))
def test_equals_the_formula(name: str) -> None:
    teacher, student = tiny_model(name), tiny_model(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    rows = torch.randint(0, 100, (6, 9), generator=generator)  # no multiple of what passes at once
    with torch.no_grad():
        p, q = (model(rows).logits[:, :-1].log_softmax(-1) for model in (teacher, student))
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    assert expected > 1e-4
    # The difference of two log-probabilities that are almost equal: of small ones less is left.
    limit = pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert held_out_divergence(student, teacher, rows) == limit


def test_the_teacher_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = tiny_model("llama"), tiny_model("llama")
    held_out = HeldOut(teacher, torch.arange(32).view(4, 8))
    monkeypatch.setattr(teacher.model, "forward", None)
    assert held_out.divergence(student) == pytest.approx(0, abs=1e-6)
    assert held_out.divergence(student) == held_out.divergence(student)
