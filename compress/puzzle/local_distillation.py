"""Local distillation: every narrow MLP or attention learns its teacher's output, in one pass.

Nothing depends on other layers of a student: the inputs are the teacher's own. The forward pass
runs once for all alternatives, and gradients exist for one half of a layer at a time.
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
from edgelm.compress.puzzle.alternatives import Alternative, Half
from edgelm.compress.puzzle.library import SMALLEST, LayerHalves, layer_file
from edgelm.compress.run.stop_signals import StopSignals
from edgelm.errors import Diverged
from edgelm.files.sealed_tensors import is_sealed
from edgelm.spec.decoder import DecoderSpec


@dataclass(frozen=True, slots=True)
class LocalStep:
    """One step: the mean loss of this process's halves, relative to the outputs' size."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float


def distill_locally(
    teacher: Model,
    spec: DecoderSpec,
    layers: Sequence[LayerHalves],
    data: PackedTokens,
    settings: Distillation,
    folder: Path,
) -> Iterator[LocalStep]:
    """Train the halves in place, yielding every step; resumes from the folder's checkpoints.

    Ctrl-C and SIGTERM end it after a step, with checkpoints (see `StopSignals`).

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
    with StopSignals() as stop:
        yield from _steps(teacher, spec, layers, data, settings, folder, stop)


def _steps(
    teacher: Model,
    spec: DecoderSpec,
    layers: Sequence[LayerHalves],
    data: PackedTokens,
    settings: Distillation,
    folder: Path,
    stop: StopSignals,
) -> Iterator[LocalStep]:
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
        stopping = stop.received is not None
        if done % settings.checkpoint_steps == 0 or done == settings.steps or stopping:
            for one in due:
                one.save(layer_file(folder, one.layer), training=done < settings.steps)
        seconds = time.monotonic() - begun
        yield LocalStep(
            done,
            settings.steps,
            sum(losses) / max(1, len(losses)),
            (done - first) * settings.step_tokens / seconds,
        )
        if stopping:
            stop.deliver()


def _gradients(
    teacher: Model,
    spec: DecoderSpec,
    layers: Sequence[LayerHalves],
    data: PackedTokens,
    settings: Distillation,
    step: int,
) -> list[float]:
    """Gradients of a step; returns the losses of all alternatives."""
    rows = rows_of_step(step, len(data), settings.batch_size, settings.seed)
    losses: dict[Alternative, float] = {}
    device = teacher.device
    for start in range(0, len(rows), settings.micro_batch):
        part = rows[start : start + settings.micro_batch]
        share = len(part) / len(rows)
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16),
            _learning(teacher, spec, layers, share, losses),
        ):
            teacher.base_model(input_ids=data.batch(part).to(device), use_cache=False)
    sizes = {one.layer: one.sizes for one in layers}
    losses = {one: loss / max(sizes[one.layer][one.half], SMALLEST) for one, loss in losses.items()}
    for one, loss in losses.items():
        if not loss < float("inf"):
            what = "MLP" if one.half == "mlp" else "attention"
            parts = "neurons" if one.half == "mlp" else "key heads"
            raise Diverged(
                f"the {what} of layer {one.layer} with {one.size} {parts} has loss {loss:g} in "
                f"step {step + 1}; lower the learning rate ({settings.learning_rate:g})"
            )
    return list(losses.values())


@contextmanager
def _learning(
    teacher: Model,
    spec: DecoderSpec,
    layers: Sequence[LayerHalves],
    share: float,
    losses: dict[Alternative, float],
) -> Iterator[None]:
    """Within the context, alternatives learn from the teacher's halves while it runs."""

    def learn(layer: LayerHalves, half: Half) -> Any:
        def hook(_: Any, arguments: Any, keywords: dict[str, Any], output: Any) -> None:
            given, named = _in_fp32(arguments), _in_fp32(keywords)
            target = _first(output).detach()
            with torch.enable_grad():
                found = layer.learn(
                    half, lambda module: _first(module(*given, **named)), target, share
                )
            for one, loss in found.items():
                losses[one] = losses.get(one, 0.0) + loss

        return hook

    hooks = [
        teacher.get_submodule(half_name(spec, one.layer, half)).register_forward_hook(
            learn(one, half), with_kwargs=True
        )
        for one in layers
        for half in one.sizes
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _in_fp32(value: Any) -> Any:
    """What a module was given, detached, with numbers in the type of the alternatives."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _in_fp32(one) for name, one in value.items()}
    return tuple(map(_in_fp32, value)) if isinstance(value, tuple) else value


def _first(output: Any) -> torch.Tensor:
    """The outputs alone: attention of transformers returns its weights, too."""
    first: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return first
