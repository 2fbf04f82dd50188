"""Which axis of the decoder runs along each dimension of each tensor.

Pruning is then one rule for all families: index every dimension by the kept parts of its axis. An
axis is a tuple, because Phi-3 stacks several along one dimension (q over k over v).
"""

from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.tensor_names import canonical_name
from edgelm.spec.tensor_shapes import (
    EMBEDDING_WEIGHT,
    HEAD_BIAS,
    HEAD_WEIGHT,
    PER_LAYER_EMBEDDING_WEIGHT,
    PER_LAYER_MODEL_WEIGHT,
    stacked_by_input,
)

HIDDEN, FFN, QUERY, KV, HEADS = "hidden", "ffn", "query", "kv", "heads"
GATED_QUERY = "gated query"  # rows of a head's query, then of its gate
HEAD_QKV = "head qkv"  # rows of a head's query, key and value
EXPERTS, EXPERT_FFN = "experts", "expert ffn"  # experts of a layer, and the neurons of each
EXPERT_PAIRS = "expert pairs"  # gate and up of a neuron, then those of the next (gpt-oss)
MAMBA, MAMBA_HEADS = "mamba", "mamba heads"  # channels of the heads of a Mamba-2 layer, its heads
MAMBA_STATES = "mamba states"  # B and C of its groups, which all stay
CONV = "conv"  # channels of a short convolution
LAYERS = "layers"  # the same number of channels for each layer (Gemma 3n and 4)
Axis = tuple[str, ...]
FIXED: Axis = ()  # vocabulary, head_dim: never pruned


def tensor_axes(spec: DecoderSpec, name: str) -> tuple[Axis, ...]:
    """The axis along each dimension of a checkpoint's tensor, by its Hugging Face name."""
    canonical = canonical_name(spec.family, name)
    if canonical in (EMBEDDING_WEIGHT, HEAD_WEIGHT):
        return (FIXED, (HIDDEN,))
    if canonical in _OTHERS:
        return _OTHERS[canonical]
    module, _, kind = canonical.rpartition(".")
    if kind == "layer_scalar":
        return (FIXED,)
    if kind == "sinks":
        return ((HEADS,),)
    inner, _, module = module.rpartition(".")
    if module == "experts":
        return _stack_axes(spec, kind)
    if kind == "expert_bias":
        return ((EXPERTS,),)
    if kind in ("dt_bias", "A_log", "D"):
        return ((MAMBA_HEADS,) if module == "mamba" else FIXED,)
    mixer = inner.rpartition(".")[2]
    if mixer in _MIXERS:
        axes = _MIXERS[mixer].get(module, (FIXED,))
        return axes if kind == "weight" else axes[:1]
    if kind == "correct_output_scale":
        return ((HIDDEN,),)
    if module in ("q_norm", "k_norm"):
        full = (QUERY,) if module == "q_norm" else (KV,)
        return (full if spec.qk_norm == "full" else FIXED,)
    if module == "act_fn":
        return (FIXED,) * (kind in ("alpha_p", "alpha_n"))
    if canonical.startswith(("model.altup_projections.", "model.altup_unembed_projections.")):
        return ((HIDDEN,), (HIDDEN,))
    if module not in _PROJECTIONS:
        return ((HIDDEN,),)  # norms over the residual stream
    axes = _PROJECTIONS[module]
    if spec.attention_gate and module == "q_proj":
        axes = ((GATED_QUERY,), (HIDDEN,))
    if spec.qkv_by_head and module == "qkv_proj":
        axes = ((HEAD_QKV,), (HIDDEN,))
    return axes if kind == "weight" else axes[:1]


def _stack_axes(spec: DecoderSpec, kind: str) -> tuple[Axis, ...]:
    """The axes of one of the experts' stacks, or of their biases."""
    by_input = stacked_by_input(spec.family)
    rows = (EXPERT_PAIRS,) if by_input else (EXPERT_FFN, EXPERT_FFN)
    outputs, inputs = (
        (rows, (HIDDEN,)) if kind.startswith("gate_up") else ((HIDDEN,), (EXPERT_FFN,))
    )
    if kind.endswith("_bias"):
        return ((EXPERTS,), outputs)
    return ((EXPERTS,), inputs, outputs) if by_input else ((EXPERTS,), outputs, inputs)


def layer_of(name: str) -> int | None:
    """Index of the layer that a tensor belongs to."""
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def is_hidden_norm(spec: DecoderSpec, name: str) -> bool:
    """Whether a tensor is the weight of a norm over the residual stream."""
    axes = tensor_axes(spec, name)
    return axes == ((HIDDEN,),) and "norm" in name and name.endswith(".weight")


# [rows, columns] of every projection.
_PROJECTIONS: dict[str, tuple[Axis, ...]] = {
    "q_proj": ((QUERY,), (HIDDEN,)),
    "k_proj": ((KV,), (HIDDEN,)),
    "v_proj": ((KV,), (HIDDEN,)),
    "qkv_proj": ((QUERY, KV, KV), (HIDDEN,)),
    "o_proj": ((HIDDEN,), (QUERY,)),
    "gate_proj": ((FFN,), (HIDDEN,)),
    "up_proj": ((FFN,), (HIDDEN,)),
    "gate_up_proj": ((FFN, FFN), (HIDDEN,)),
    "down_proj": ((HIDDEN,), (FFN,)),
    "router": ((EXPERTS,), (HIDDEN,)),
    "shared_expert_gate": (FIXED, (HIDDEN,)),
    # Gemma 3n's and 4's inputs for every layer
    "per_layer_input_gate": (FIXED, (HIDDEN,)),
    "per_layer_projection": ((HIDDEN,), FIXED),
    # and Gemma 3n's streams
    "linear_left": (FIXED, (HIDDEN,)),
    "linear_right": ((HIDDEN,), FIXED),
    "modality_router": (FIXED, (HIDDEN,)),
    "prediction_coefs": (FIXED, FIXED),
    "correction_coefs": (FIXED, FIXED),
    "v_norm": (FIXED,),  # of a head; no weight is stored
}
# Of a short convolution: B, C and x, each as wide as the convolution.
_SHORT_CONV: dict[str, tuple[Axis, ...]] = {
    "in_proj": ((CONV, CONV, CONV), (HIDDEN,)),
    "conv": ((CONV,), FIXED, FIXED),
    "out_proj": ((HIDDEN,), (CONV,)),
}
# Of a Mamba-2 layer: z, x, B, C and dt, of which the convolution takes x, B and C.
_MAMBA: dict[str, tuple[Axis, ...]] = {
    "in_proj": ((MAMBA, MAMBA, MAMBA_STATES, MAMBA_HEADS), (HIDDEN,)),
    "conv1d": ((MAMBA, MAMBA_STATES), FIXED, FIXED),
    "norm": ((MAMBA,),),
    "out_proj": ((HIDDEN,), (MAMBA,)),
}
# Of a mixer whose heads all stay.
_GATED_DELTA: dict[str, tuple[Axis, ...]] = {
    **dict.fromkeys(("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"), (FIXED, (HIDDEN,))),
    "conv1d": (FIXED, FIXED, FIXED),
    "norm": (FIXED,),
    "out_proj": ((HIDDEN,), FIXED),
}
_MIXERS = {"conv": _SHORT_CONV, "mamba": _MAMBA, "linear_attn": _GATED_DELTA}
_OTHERS: dict[str, tuple[Axis, ...]] = {
    HEAD_BIAS: (FIXED,),
    PER_LAYER_EMBEDDING_WEIGHT: (FIXED, (LAYERS,)),
    PER_LAYER_MODEL_WEIGHT: ((LAYERS,), (HIDDEN,)),
    "model.per_layer_projection_norm.weight": (FIXED,),
}
