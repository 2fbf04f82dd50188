"""The configuration of a pruned model."""

import copy
import math
from collections.abc import Sequence
from typing import Any

from edgelm.compress.pruning.shape import Shape
from edgelm.spec.config.layer_sizes import listed_heads
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.layers.mixers import Mamba2
from edgelm.spec.own_sizes import FIELD as OWN_SIZES
from edgelm.spec.prunable import has_short_convs, mamba_of, mixture_of

# Configuration fields of `transformers` with one entry per layer.
_PER_LAYER = (
    *("layer_types", "layers_block_type", "no_rope_layers", "layer_rope_theta"),
    *("activation_sparsity_pattern", "intermediate_size", OWN_SIZES),
)

# Of LFM2's published configurations; transformers reads none of them, other engines do.
_CONV_WIDTHS = ("block_dim", "conv_dim", "conv_dim_out")
_DENSE_SIZES = (
    *("num_hidden_layers", "hidden_size", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads"),
)


def pruned_config(config: object, shape: Shape, layers: Sequence[int]) -> object:
    """The teacher's configuration in the student's shape, `head_dim` written out."""
    spec = DecoderSpec.from_hf(config.to_dict())  # type: ignore[attr-defined]
    pruned = copy.deepcopy(config)
    pruned.head_dim = spec.head_dim  # type: ignore[attr-defined]
    for field in _PER_LAYER:
        if isinstance(values := vars(config).get(field), list):
            setattr(pruned, field, [values[layer] for layer in layers])
    for field in _DENSE_SIZES:
        name = FAMILIES[spec.family].ffn_field if field == "intermediate_size" else field
        if isinstance(sizes := vars(pruned).get(name), list):
            setattr(pruned, name, [min(size, shape.intermediate_size) for size in sizes])
        elif name in vars(pruned):
            setattr(pruned, name, getattr(shape, field))
    if mixture_of(spec) is not None:
        _set_experts(pruned, spec, shape, layers)
    if (mamba := mamba_of(spec)) is not None:
        _set_mamba(pruned, mamba, shape)
    elif FAMILIES[spec.family].mixer == "mamba2":
        _set_unused_mamba(pruned)
    if has_short_convs(spec):
        for name in _CONV_WIDTHS:
            if name in vars(pruned):
                setattr(pruned, name, shape.hidden_size)
    kept = [spec.layers[layer] for layer in layers]
    if FAMILIES[spec.family].shares_kv:
        shared = sum(layer.shares_kv_of is not None for layer in kept)
        pruned.num_kv_shared_layers = shared  # type: ignore[attr-defined]
    if FAMILIES[spec.family].global_heads:
        pruned.per_layer_config = listed_heads(tuple(kept))  # type: ignore[attr-defined]
    if hasattr(pruned, "block_auto_adjust_ff_dim"):
        pruned.block_auto_adjust_ff_dim = False  # the size is that of the matrices
    return pruned


def _set_experts(pruned: Any, spec: DecoderSpec, shape: Shape, layers: Sequence[int]) -> None:
    """The sizes of mixtures, and which layers have one."""
    rule, mixture = FAMILIES[spec.family].experts, mixture_of(spec)
    assert rule is not None
    assert mixture is not None
    assert shape.num_experts is not None
    values = vars(pruned)
    count = "num_local_experts" if "num_local_experts" in values else "num_experts"
    setattr(pruned, count, shape.num_experts)
    pruned.num_experts_per_tok = min(mixture.top_k, shape.num_experts)
    if rule.shared_field is not None:
        setattr(pruned, rule.shared_field, shape.intermediate_size)
    setattr(pruned, rule.size_field, shape.moe_intermediate_size)
    dense = [at for at, layer in enumerate(layers) if spec.layers[layer].mlp is None]
    if rule.layers == "after_dense":
        pruned.num_dense_layers = len(dense)
    if rule.layers == "step":
        pruned.decoder_sparse_step, pruned.mlp_only_layers = 1, dense


def _set_mamba(pruned: Any, mamba: Mamba2, shape: Shape) -> None:
    """The heads of Mamba-2 layers, under the names of the family's class."""
    heads, values = shape.mamba_num_heads or mamba.heads, vars(pruned)
    size = heads * mamba.head_dim
    if "mamba_n_heads" not in values:  # Nemotron-H
        pruned.mamba_num_heads = heads
        return
    pruned.mamba_n_heads, pruned.mamba_d_head = heads, mamba.head_dim
    if "mamba_d_ssm" in values:  # Falcon-H1, which else derives it from the hidden size
        pruned.mamba_d_ssm = size
    else:
        pruned.mamba_expand = size // shape.hidden_size


def _set_unused_mamba(pruned: Any) -> None:
    """Sizes of Mamba-2 layers for a decoder without any, which its class checks all the same."""
    size = pruned.mamba_expand * pruned.hidden_size
    pruned.mamba_d_head = math.gcd(size, pruned.mamba_d_head)
    pruned.mamba_n_heads = size // pruned.mamba_d_head
    pruned.mamba_n_groups = math.gcd(pruned.mamba_n_heads, pruned.mamba_n_groups)
