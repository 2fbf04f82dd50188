"""A tiny teacher, its pruned student and packed rows, for tests of training."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgelm.compress.data.packing import PackedTokens
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.distillation.train import Step, distill
from edgelm.compress.pruning.importance import score
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.shape import Shape
from tests.checkpoints.models import tiny_model

LENGTH = 16
SETTINGS = Distillation(
    tokens=8 * 4 * LENGTH,
    sequence_length=LENGTH,
    batch_size=4,
    micro_batch=4,
    learning_rate=3e-3,
    checkpoint_steps=2,
    bf16=False,
)


def rows(count: int = 24, length: int = LENGTH, seed: int = 0) -> PackedTokens:
    """Rows of random tokens."""
    generator = np.random.default_rng(seed)
    return PackedTokens(generator.integers(0, 128, (count, length)).astype(np.int32))


def teacher_and_student(family: str = "llama") -> tuple[Any, Any]:
    """A tiny teacher, calm enough to be learned from, and a student of three quarters of it."""
    teacher = tiny_model(family)
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.ndim > 1:
                parameter *= 0.4
    importance = score(teacher, [rows().batch(range(8))])
    return teacher, prune(teacher, Shape(3, 64, 64, 4, 2), importance)


def train(
    student: Any, teacher: Any, folder: Path, settings: Distillation, **over: Any
) -> list[Step]:
    """All steps of a run."""
    return list(distill(student, teacher, rows(), settings, folder, **over))


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all parameters."""
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
