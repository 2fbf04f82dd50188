"""Modules of transformers in layers that have sizes of their own."""

import copy
from typing import Any, Literal

import torch
from torch import nn

from edgelm.spec.decoder import DecoderSpec, LayerSpec
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
        elif layer.num_attention_heads:
            fit_attention(model.get_submodule(half_name(spec, index, "attention")), spec, layer)
        if not spec.mlp_size(layer):
            replace_module(model, half_name(spec, index, "mlp"), NoMlp())
    for name, shape in tensor_shapes(spec).items():
        module, _, kind = name.rpartition(".")
        if kind not in ("weight", "sinks") or ".layers." not in name:
            continue
        old = model.get_submodule(module)
        if tuple(getattr(old, kind).shape) == shape:
            continue
        if kind == "sinks":
            old.sinks = nn.Parameter(torch.empty(shape))
        elif isinstance(old, nn.Linear):
            replace_module(model, module, nn.Linear(shape[1], shape[0], bias=old.bias is not None))


def fit_attention(module: Any, spec: DecoderSpec, layer: LayerSpec) -> None:
    """Set the numbers of heads by which an attention of transformers divides its projections.

    Most classes count the heads in what the projections give; some read attributes, and Phi-3 the
    configuration.
    """
    heads = spec.heads(layer)
    own = dict.fromkeys(("num_heads", "num_attention_heads"), heads.queries)
    for name, count in (own | {"num_key_value_heads": heads.keys}).items():
        if hasattr(module, name):
            setattr(module, name, count)
    if spec.fused_projections and not spec.qkv_by_head:
        module.config = copy.copy(module.config)
        module.config.num_attention_heads = heads.queries
        module.config.num_key_value_heads = heads.keys


def half_name(spec: DecoderSpec, layer: int, half: Literal["attention", "mlp"]) -> str:
    """The module of transformers that is a layer's attention or its MLP."""
    projection = "self_attn.o_proj" if half == "attention" else "mlp.down_proj"
    stored = stored_name(spec.family, f"model.layers.{layer}.{projection}")
    return stored.rpartition(".")[0]


def replace_module(model: Any, name: str, module: nn.Module) -> None:
    """Put a module in the place of another one."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
