"""The configuration of a pruned model."""

import copy
from collections.abc import Sequence

from edgelm.compress.pruning.shape import Shape
from edgelm.spec.config.layer_sizes import listed_heads
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.own_sizes import FIELD as OWN_SIZES

# Configuration fields of `transformers` with one entry per layer.
_PER_LAYER = (
    *("layer_types", "layers_block_type", "no_rope_layers", "layer_rope_theta"),
    *("activation_sparsity_pattern", "intermediate_size", OWN_SIZES),
)


def pruned_config(config: object, shape: Shape, layers: Sequence[int]) -> object:
    """The teacher's configuration in the student's shape, `head_dim` written out."""
    spec = DecoderSpec.from_hf(config.to_dict())  # type: ignore[attr-defined]
    pruned = copy.deepcopy(config)
    pruned.head_dim = spec.head_dim  # type: ignore[attr-defined]
    for field in _PER_LAYER:
        if isinstance(values := vars(config).get(field), list):
            setattr(pruned, field, [values[layer] for layer in layers])
    for field in shape.__struct_fields__:
        name = FAMILIES[spec.family].ffn_field if field == "intermediate_size" else field
        if isinstance(sizes := vars(pruned).get(name), list):
            setattr(pruned, name, [min(size, shape.intermediate_size) for size in sizes])
        else:
            setattr(pruned, name, getattr(shape, field))
    if spec.multipliers is not None:  # Falcon-H1, which else derives it from the hidden size
        pruned.mamba_d_ssm = spec.layers[0].beside.size  # type: ignore[attr-defined,union-attr]
    kept = [spec.layers[layer] for layer in layers]
    if FAMILIES[spec.family].shares_kv:
        shared = sum(layer.shares_kv_of is not None for layer in kept)
        pruned.num_kv_shared_layers = shared  # type: ignore[attr-defined]
    if FAMILIES[spec.family].global_heads:
        pruned.per_layer_config = listed_heads(tuple(kept))  # type: ignore[attr-defined]
    if hasattr(pruned, "block_auto_adjust_ff_dim"):
        pruned.block_auto_adjust_ff_dim = False  # the size is that of the matrices
    return pruned
