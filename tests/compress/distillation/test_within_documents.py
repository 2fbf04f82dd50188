"""Attention within the documents of a row."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edgelm.compress.data.packing import PackedTokens
from edgelm.compress.distillation.loss.objective import Objective
from edgelm.compress.distillation.student_teacher import Distiller
from edgelm.compress.distillation.train import distill
from edgelm.errors import BadInput
from tests.checkpoints.models import tiny_model
from tests.compress.training import LENGTH, SETTINGS, rows, teacher_and_student


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_a_document_does_not_see_the_one_before(family: str) -> None:
    """The loss of a row is that of its documents alone; windows and norms do not matter."""
    teacher, student = tiny_model(family), tiny_model(family)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter *= 0.9
    distiller = Distiller(student, teacher, Objective())
    tokens = rows(1).batch([0])
    cut = 6
    positions = torch.cat([torch.arange(cut), torch.arange(LENGTH - cut)])[None]
    # The last token of the first document predicts the first of the second: it is left out here.
    second = distiller(tokens, None, cut + 1, positions)
    alone = distiller(tokens[:, cut:], None, 1)
    assert float(second.total.detach()) == pytest.approx(float(alone.total.detach()), rel=1e-4)
    crossing = distiller(tokens, None, cut + 1)
    assert float(crossing.total.detach()) != pytest.approx(float(alone.total.detach()), rel=1e-4)


def test_training_uses_the_documents_of_the_data(tmp_path: Path) -> None:
    def losses(data: PackedTokens, name: str, **over: Any) -> list[float]:
        teacher, student = teacher_and_student()
        settings = msgspec.structs.replace(SETTINGS, **over)
        return [one.loss for one in distill(student, teacher, data, settings, tmp_path / name)]

    plain = rows()
    marked = PackedTokens(plain.rows, starts=np.arange(0, plain.rows.size, 5))
    apart = losses(marked, "apart", within_documents=True)
    assert len(apart) == 8
    assert apart != losses(marked, "across")
    with pytest.raises(BadInput, match="packed without the documents' beginnings"):
        losses(plain, "unknown", within_documents=True)


def test_what_cannot_be_separated_is_refused(tmp_path: Path) -> None:
    model = tiny_model("lfm2")
    settings = msgspec.structs.replace(SETTINGS, within_documents=True)
    with pytest.raises(BadInput, match="which no mask separates"):
        next(distill(model, tiny_model("lfm2"), rows(), settings, tmp_path))
    with pytest.raises(BadInput, match="on_policy and within_documents"):
        msgspec.structs.replace(settings, on_policy=0.5).check()
