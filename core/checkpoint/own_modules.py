"""Modules of transformers in layers that have sizes of their own."""

from typing import Any, Literal

import torch
from torch import nn

from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.layers.mixers import NoMixer
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import tensor_shapes


class NoAttention(nn.Module):
    """In place of a layer's attention: adds nothing to the residual stream.

    It remembers one empty channel per token, because transformers counts the tokens so far by what
    the first layer remembers.
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden_states: torch.Tensor, *_: Any, past_key_values: Any = None, **__: Any
    ) -> tuple[torch.Tensor, None]:
        """Zeros, and no attention weights."""
        if past_key_values is not None:
            empty = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            past_key_values.update(empty, empty, self.layer)
        return torch.zeros_like(hidden_states), None


class NoMlp(nn.Module):
    """In place of a layer's MLP: adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Zeros."""
        return torch.zeros_like(hidden_states)


def fit_layers(model: Any, spec: DecoderSpec) -> None:
    """Replace modules of a model, in place, so that its layers have the sizes of the spec.

    Args:
        model: a causal language model of transformers; new modules are uninitialized.
        spec: of the model's family.
    """
    for index, layer in enumerate(spec.layers):
        if isinstance(layer.mixer, NoMixer):
            replace_module(model, half_name(spec, index, "attention"), NoAttention(index))
        if not spec.mlp_size(layer):
            replace_module(model, half_name(spec, index, "mlp"), NoMlp())
    for name, shape in tensor_shapes(spec).items():
        module = name.removesuffix(".weight")
        if module == name or ".layers." not in name:
            continue
        old = model.get_submodule(module)
        if isinstance(old, nn.Linear) and tuple(old.weight.shape) != shape:
            replace_module(model, module, nn.Linear(shape[1], shape[0], bias=old.bias is not None))


def half_name(spec: DecoderSpec, layer: int, half: Literal["attention", "mlp"]) -> str:
    """The module of transformers that is a layer's attention or its MLP."""
    projection = "self_attn.o_proj" if half == "attention" else "mlp.down_proj"
    stored = stored_name(spec.family, f"model.layers.{layer}.{projection}")
    return stored.rpartition(".")[0]


def replace_module(model: Any, name: str, module: nn.Module) -> None:
    """Put a module in the place of another one."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
