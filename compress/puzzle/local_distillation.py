"""Local distillation: every narrow MLP learns its teacher's output, all in one pass over the data.

Nothing depends on other layers of a student: the inputs are the teacher's own. The forward pass
runs once for all alternatives, and gradients exist for one MLP at a time.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint.own_modules import half_name
from edgelm.compress.data.packing import PackedTokens
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.distillation.train import rows_of_step
from edgelm.compress.model import Model
from edgelm.compress.puzzle.library import SMALLEST, LayerMlps, layer_file
from edgelm.errors import Diverged
from edgelm.files.sealed_tensors import is_sealed
from edgelm.spec.decoder import DecoderSpec


@dataclass(frozen=True, slots=True)
class LocalStep:
    """One step: the mean loss of this process's MLPs, relative to the outputs' size."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float


def distill_locally(
    teacher: Model,
    spec: DecoderSpec,
    layers: Sequence[LayerMlps],
    data: PackedTokens,
    settings: Distillation,
    folder: Path,
) -> Iterator[LocalStep]:
    """Train the MLPs in place, yielding every step; resumes from the folder's checkpoints.

    Args:
        teacher: in any type, eval mode.
        spec: the teacher's.
        layers: those that this process trains.
        data: rows to train on.
        settings: schedule, batches, seed.
        folder: for one checkpoint of each layer.

    Raises:
        Diverged: a loss is not finite.
    """
    for one in layers:
        if is_sealed(path := layer_file(folder, one.layer)):
            one.load(path)
    first = min((one.step for one in layers), default=settings.steps)
    begun = time.monotonic()
    for step in range(first, settings.steps):
        # After an interruption, some layers may be a checkpoint ahead of others.
        due = [one for one in layers if one.step == step]
        losses = _gradients(teacher, spec, due, data, settings, step)
        for one in due:
            one.update(settings.learning_rate_at(step))
        done = step + 1
        if done % settings.checkpoint_steps == 0 or done == settings.steps:
            for one in due:
                one.save(layer_file(folder, one.layer), training=done < settings.steps)
        seconds = time.monotonic() - begun
        yield LocalStep(
            done,
            settings.steps,
            sum(losses) / max(1, len(losses)),
            (done - first) * settings.step_tokens / seconds,
        )


def _gradients(
    teacher: Model,
    spec: DecoderSpec,
    layers: Sequence[LayerMlps],
    data: PackedTokens,
    settings: Distillation,
    step: int,
) -> list[float]:
    """Gradients of a step; returns the losses of all MLPs."""
    rows = rows_of_step(step, len(data), settings.batch_size, settings.seed)
    losses: dict[tuple[int, int], float] = {}
    device = teacher.device
    for start in range(0, len(rows), settings.micro_batch):
        part = rows[start : start + settings.micro_batch]
        share = len(part) / len(rows)
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16),
            _learning(teacher, spec, layers, share, losses),
        ):
            teacher.model(input_ids=data.batch(part).to(device), use_cache=False)
    sizes = {one.layer: max(one.size, SMALLEST) for one in layers}
    losses = {key: loss / sizes[key[0]] for key, loss in losses.items()}
    for (layer, width), loss in losses.items():
        if not loss < float("inf"):
            raise Diverged(
                f"the MLP of layer {layer} with {width} neurons has loss {loss:g} in step "
                f"{step + 1}; lower the learning rate ({settings.learning_rate:g})"
            )
    return list(losses.values())


@contextmanager
def _learning(
    teacher: Model,
    spec: DecoderSpec,
    layers: Sequence[LayerMlps],
    share: float,
    losses: dict[tuple[int, int], float],
) -> Iterator[None]:
    """Within the context, MLPs learn from the teacher's while it runs."""

    def learn(layer: LayerMlps) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            with torch.enable_grad():
                found = layer.learn(inputs[0].detach().float(), output.detach(), share)
            for width, loss in found.items():
                losses[layer.layer, width] = losses.get((layer.layer, width), 0.0) + loss

        return hook

    hooks = [
        teacher.get_submodule(half_name(spec, one.layer, "mlp")).register_forward_hook(learn(one))
        for one in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
