"""All narrow halves of layers: made by importance, trained layer by layer, stored by layer.

Layers do not depend on each other. So every process trains layers of its own, and a checkpoint is
one file for each layer, whatever the number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgelm.compress.model import Model
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.puzzle.alternatives import Alternative, Half
from edgelm.compress.puzzle.narrow_half import most_important, narrow_half
from edgelm.errors import BadInput
from edgelm.files.replacing import sync
from edgelm.files.sealed_tensors import UNSEALED, is_sealed, seal_file
from edgelm.quantize.hessians import Hessians
from edgelm.spec.decoder import DecoderSpec

_STEP = "step"
SMALLEST = 1e-12  # mean square of outputs, where a teacher's half of a layer does nothing
_OUTPUTS: dict[Half, str] = {"mlp": "mlp.down", "attention": "attention.o"}


class LayerHalves:
    """The narrow MLPs and attentions of one layer, and their optimizer."""

    def __init__(self, layer: int, modules: dict[Alternative, nn.Module]) -> None:
        self.layer, self.modules = layer, modules
        self.step = 0
        # Mean squares of the teacher's outputs in this step's rows so far.
        self.sizes: dict[Half, float] = {one.half: 0.0 for one in modules}
        parameters = [one for module in modules.values() for one in module.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0)

    def learn(
        self,
        half: Half,
        run: Callable[[nn.Module], torch.Tensor],
        outputs: torch.Tensor,
        share: float,
    ) -> dict[Alternative, float]:
        """Add the gradients of a part of a step; returns the part of each one's squared error.

        `update` divides by the size of the outputs of the whole step, so that layers compare
        (Puzzle, section 3) and the result does not depend on how a step is divided.

        Args:
            half: of the layer, whose alternatives learn.
            run: gives a module's outputs for what the teacher's was given.
            outputs: the teacher's [B, T, hidden].
            share: of the step's rows.
        """
        losses = {}
        target = outputs.float()
        self.sizes[half] += share * float(target.square().mean())
        for one, module in self.modules.items():
            if one.half == half:
                loss = (run(module).float() - target).square().mean()
                (loss * share).backward()
                losses[one] = share * float(loss.detach())
        return losses

    def update(self, learning_rate: float) -> None:
        """One step of the optimizer, by the errors relative to the outputs' size."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for one, module in self.modules.items():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad /= max(self.sizes[one.half], SMALLEST)
        self.sizes = dict.fromkeys(self.sizes, 0.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def save(self, path: Path, *, training: bool) -> None:
        """Write the weights, and what continues the training; complete or not at all."""
        tensors = {
            _prefix(one) + name: tensor.detach().cpu().contiguous()
            for one, module in self.modules.items()
            for name, tensor in module.state_dict().items()
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
        for one, module in self.modules.items():
            own = {name: tensors[_prefix(one) + name] for name in module.state_dict()}
            module.load_state_dict(own)
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
) -> Iterator[LayerHalves]:
    """The narrow halves of some layers before training: what is most important, refitted."""
    for layer in layers:
        own = [one for one in all_alternatives if one.layer == layer and one.is_trained]
        modules = {
            one: narrow_half(
                model,
                spec,
                one,
                most_important(spec, one, importance),
                None if moments is None else moments[f"layers.{layer}.{_OUTPUTS[one.half]}"],
            )
            for one in sorted(own, key=lambda one: one.half == "attention")
        }
        if modules:
            yield LayerHalves(layer, modules)


def layer_file(folder: Path, layer: int) -> Path:
    """Where a layer's halves are stored."""
    return folder / f"layer-{layer:04d}.safetensors"


def read_half(model: Model, spec: DecoderSpec, folder: Path, alternative: Alternative) -> nn.Module:
    """A trained MLP or attention of a library.

    Raises:
        BadInput: its file is missing or damaged.
    """
    path = layer_file(folder, alternative.layer)
    if not is_sealed(path):
        raise BadInput(f"{path} is missing or damaged; remove {folder} to train it again")
    half = narrow_half(model, spec, alternative)
    prefix = _prefix(alternative)
    tensors = load_file(path, device=str(model.device))
    half.load_state_dict(
        {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
    )
    return half.eval().requires_grad_(False)


def _prefix(alternative: Alternative) -> str:
    """Of the names of an alternative's tensors in its layer's file."""
    size = f"{alternative.size}."
    return size if alternative.half == "mlp" else f"attention.{size}"
