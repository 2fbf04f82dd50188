"""All narrow MLPs of a teacher: made by importance, trained layer by layer, stored by layer.

Layers do not depend on each other. So every process trains layers of its own, and a checkpoint is
one file for each layer, whatever the number of processes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgelm.compress.model import Model
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.pruning.indices import top_k_indices
from edgelm.compress.puzzle.alternatives import Alternative
from edgelm.compress.puzzle.narrow_mlp import narrow_mlp
from edgelm.errors import BadInput
from edgelm.files.replacing import sync
from edgelm.files.sealed_tensors import UNSEALED, is_sealed, seal_file
from edgelm.quantize.hessians import Hessians
from edgelm.spec.decoder import DecoderSpec

_STEP = "step"
SMALLEST = 1e-12  # mean square of outputs, where a teacher's MLP does nothing


class LayerMlps:
    """The narrow MLPs of one layer, by intermediate size, and their optimizer."""

    def __init__(self, layer: int, mlps: dict[int, nn.Module]) -> None:
        self.layer, self.mlps = layer, mlps
        self.step = 0
        self.size = 0.0  # mean square of the teacher's outputs in this step's rows so far
        parameters = [one for mlp in mlps.values() for one in mlp.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0)

    def learn(self, inputs: torch.Tensor, outputs: torch.Tensor, share: float) -> dict[int, float]:
        """Add the gradients of a part of a step; returns the part of each MLP's squared error.

        `update` divides by the size of the outputs of the whole step, so that layers compare
        (Puzzle, section 3) and the result does not depend on how a step is divided.

        Args:
            inputs: of the teacher's MLP [B, T, hidden].
            outputs: the teacher's [B, T, hidden].
            share: of the step's rows.
        """
        losses = {}
        target = outputs.float()
        self.size += share * float(target.square().mean())
        for width, mlp in self.mlps.items():
            loss = (mlp(inputs).float() - target).square().mean()
            (loss * share).backward()
            losses[width] = share * float(loss.detach())
        return losses

    def update(self, learning_rate: float) -> None:
        """One step of the optimizer, by the errors relative to the outputs' size."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad /= max(self.size, SMALLEST)
        self.size = 0.0
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def save(self, path: Path, *, training: bool) -> None:
        """Write the weights, and what continues the training; complete or not at all."""
        tensors = {
            f"{width}.{name}": tensor.detach().cpu().contiguous()
            for width, mlp in self.mlps.items()
            for name, tensor in mlp.state_dict().items()
        }
        tensors[_STEP] = torch.tensor(self.step)
        if training:
            states: dict[int, dict[str, Any]] = self.optimizer.state_dict()["state"]
            tensors |= {
                f"optimizer.{index}.{name}": torch.as_tensor(value).cpu()
                for index, state in states.items()
                for name, value in state.items()
            }
        staging = path.with_name(f"{path.name}.partial")
        save_file(tensors, staging, metadata=dict(UNSEALED))
        seal_file(staging)
        sync(staging)
        staging.replace(path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote."""
        tensors = load_file(path)
        self.step = int(tensors.pop(_STEP))
        for width, mlp in self.mlps.items():
            own = {name: tensors[f"{width}.{name}"] for name in mlp.state_dict()}
            mlp.load_state_dict(own)
        stored = self.optimizer.state_dict()
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, field = name.split(".", 2)
                states.setdefault(int(index), {})[field] = tensor
        self.optimizer.load_state_dict({**stored, "state": states})


def make_layers(
    model: Model,
    spec: DecoderSpec,
    all_alternatives: Sequence[Alternative],
    importance: Importance,
    moments: Hessians | None,
    layers: Sequence[int],
) -> Iterator[LayerMlps]:
    """The narrow MLPs of some layers before training: the most important neurons, refitted."""
    for layer in layers:
        hessian = None if moments is None else moments[f"layers.{layer}.mlp.down"]
        widths = [
            one.size
            for one in all_alternatives
            if one.layer == layer and one.half == "mlp" and one.is_trained
        ]
        scores = importance.neurons[layer]
        mlps = {
            width: narrow_mlp(model, spec, layer, top_k_indices(scores, width), hessian)
            for width in widths
        }
        if mlps:
            yield LayerMlps(layer, mlps)


def layer_file(folder: Path, layer: int) -> Path:
    """Where a layer's MLPs are stored."""
    return folder / f"layer-{layer:04d}.safetensors"


def read_mlp(model: Model, spec: DecoderSpec, folder: Path, alternative: Alternative) -> nn.Module:
    """A trained MLP of a library.

    Raises:
        BadInput: its file is missing or damaged.
    """
    path = layer_file(folder, alternative.layer)
    if not is_sealed(path):
        raise BadInput(f"{path} is missing or damaged; remove {folder} to train it again")
    mlp = narrow_mlp(model, spec, alternative.layer, torch.arange(alternative.size))
    prefix = f"{alternative.size}."
    tensors = load_file(path, device=str(model.device))
    mlp.load_state_dict(
        {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
    )
    return mlp.eval().requires_grad_(False)
