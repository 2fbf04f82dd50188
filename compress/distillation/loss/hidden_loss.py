"""Losses on hidden states, for students with fewer layers.

Minitron (arXiv 2407.14679, table 17): a depth-pruned student gains from comparing the states near
the output and the embeddings, by cosine after a norm; width-pruned students gain nothing. A wrong
map hurts. A narrower student learns one projection to the teacher's width, shared by all pairs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgelm.compress.distillation.loss.layer_map import EMBEDDING, LayerMap
from edgelm.compress.model import Model
from edgelm.spec.tensor_names import stored_name


@dataclass
class States:
    """Hidden states [B, T, hidden] of the last forward pass, by layer."""

    by_layer: dict[int, torch.Tensor]


@contextmanager
def record_states(model: Model, layers: Sequence[int]) -> Iterator[States]:
    """Record the outputs of layers within the context, after the norm of the next layer."""
    states = States({})
    hooks = [_module(model, layer).register_forward_hook(_hook(states, layer)) for layer in layers]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def recorded_layers(model: Model, layers: Sequence[int]) -> set[nn.Module]:
    """The decoder layers that contain the modules which `record_states` watches."""
    watched = {_module(model, layer) for layer in layers}
    return {layer for layer in model.base_model.layers if watched & set(layer.modules())}


def _module(model: Model, layer: int) -> nn.Module:
    """The module whose output is the state after a layer: the next norm where there is one."""
    layers = model.base_model.layers
    if layer + 1 == len(layers):
        name = stored_name(model.config.model_type, "model.norm")
        return model.get_submodule(name)  # type: ignore[no-any-return]
    following = layers[layer + 1]
    # OLMo 2 has no norm before its layers.
    norm = stored_name(model.config.model_type, f"model.layers.{layer + 1}.input_layernorm")
    if hasattr(following, name := norm.rpartition(".")[2]):
        return getattr(following, name)  # type: ignore[no-any-return]
    return model.get_input_embeddings() if layer == EMBEDDING else layers[layer]  # type: ignore[no-any-return]


def _hook(states: States, layer: int) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        states.by_layer[layer] = output[0] if isinstance(output, tuple) else output

    return hook


class HiddenLoss(nn.Module):
    """1 - cosine between mapped states, averaged over pairs and tokens."""

    def __init__(self, pairs: LayerMap, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.pairs = pairs
        self.up: nn.Linear | None = None
        if student_width != teacher_width:
            self.up = nn.Linear(student_width, teacher_width, bias=False)
            seeded = torch.Generator().manual_seed(0)  # equal on every process and start
            nn.init.normal_(self.up.weight, std=student_width**-0.5, generator=seeded)

    def forward(self, student: States, teacher: States) -> torch.Tensor:
        """The loss of the recorded states."""
        losses = []
        for ours, theirs in self.pairs:
            states = student.by_layer[ours]
            if self.up is not None:
                states = self.up(states)
            target = teacher.by_layer[theirs].to(states.device)
            similarity = torch.cosine_similarity(states.float(), target.float(), dim=-1)
            losses.append((1 - similarity).mean())
        return torch.stack(losses).mean()
