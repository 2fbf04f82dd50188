"""What sets a decoder family apart: the columns of the table in edgelm.spec.families.table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

NormPlacement = Literal["pre", "post", "sandwich"]
QKNorm = Literal["none", "head", "full"]
Bias = bool | str
"""Always, never, or as the configuration's field of this name says."""
Rotation = Literal["all", "listed", "windowed", "sliding", "theta", "typed"]
"""Which layers rotate queries and keys (edgelm.spec.config.layer_fields):

all       every layer
listed    all but those of `no_rope_layers`, or every `no_rope_layer_interval`th (SmolLM3)
windowed  with `sliding_window` only the layers that have a window (EXAONE 4)
sliding   only the layers that have a window (Cohere 2)
theta     those whose base in `layer_rope_theta` is not 0 (Granite SWA)
typed     every layer if `position_embedding_type` is `rope`, otherwise none (Granite 4 H)
"""
Windows = Literal[
    "none",
    "all",
    "used",
    "listed",
    "alternating",
    "pattern",
    "upper",
    "unrotated",
    "fourth",
    "fifth",
    "sixth",
    "first",
]
"""Which layers see only `sliding_window` keys (edgelm.spec.config.layer_fields):

none         no layer: the class does not read the field (Llama, Granite, OLMo 2)
all          every layer, if there is a window (Mistral, Phi-3)
used         with `use_sliding_window` every layer (Qwen3-MoE)
listed       those of `layer_types`, by default all (Ministral)
alternating  those of `layer_types`, by default every other one (Gemma 2)
pattern      those of `layer_types`, by default all but every `sliding_window_pattern`th (Gemma 3,
             Cohere 2)
fourth       those of `layer_types`, by default all but every fourth (OLMo 3)
fifth        those of `layer_types`, by default all but every fifth (Gemma 3n)
sixth        those of `layer_types`, by default all but every sixth (Gemma 4)
first        those of `layer_types`, by default all but the first of every four (Granite SWA)
upper        with `use_sliding_window` those of `layer_types`, by default from
             `max_window_layers` on (Qwen 2 and 3)
unrotated    those of `layer_types`, by default with `use_sliding_window` those without RoPE
             (SmolLM3)
"""


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixtures of experts of a family (edgelm.spec.layers.experts).

    layers: which layers have one: all; `step`, every `decoder_sparse_step`th but those of
        `mlp_only_layers` (Qwen); `after_dense`, all after the first `num_dense_layers` (LFM2).
    """

    layers: Literal["all", "step", "after_dense"] = "all"
    size_field: str = "moe_intermediate_size"
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalized: Bias = "norm_topk_prob"
    epsilon: float = 0.0
    scaled: bool = False
    """Reads `routed_scaling_factor`."""
    selection_bias: Bias = False
    biased: bool = False
    """The router and the experts' matrices have biases."""
    clamped: bool = False
    """SwiGLU with `swiglu_alpha`, an offset of one on up, and `swiglu_limit` (gpt-oss)."""
    by_input: bool = False
    """Stored [experts, inputs, outputs], rows of gate and up alternating (gpt-oss)."""
    shared_field: str | None = None
    """The field with the intermediate size of an expert that always runs."""
    shared_fused: bool = False
    """Its gate and up are stored as one matrix."""
    shared_gate: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """The differences of one `model_type` from a plain Llama."""

    norms: NormPlacement = "pre"
    """pre: norm before each sublayer; post: after it (OLMo 2); sandwich: both (Gemma 2, 3)."""
    layer_norm: bool = False
    """Norms also subtract the mean, and have a bias (LayerNorm; StarCoder2, StableLM)."""
    norm_bias: bool = True
    """Those norms have a bias; else only a weight (Cohere)."""
    norm_plus_one: bool = False
    """The stored norm weight is an offset from one (Gemma)."""
    qk_norm: QKNorm = "none"
    """RMS norm on queries and keys: per head (Qwen 3, Gemma 3) or over all heads (OLMo 2)."""
    qk_norm_after_rope: bool = False
    """That norm follows the rotation (Hunyuan)."""
    fused_qkv: bool = False
    """The checkpoint stores `qkv_proj` (Phi-3)."""
    qkv_by_head: bool = False
    """That matrix has query, key and value of a head, then those of the next (GPT-NeoX). There are
    as many key as query heads."""
    fused_gate_up: bool = False
    """The checkpoint stores `gate_up_proj` (Phi-3, GLM)."""
    names: dict[str, str] = field(default_factory=dict)
    """Modules that the checkpoint names differently (edgelm.spec.tensor_names)."""
    prefix: str = "model"
    """The decoder's name in the causal language model."""
    qkv_bias: Bias = "attention_bias"
    o_bias: Bias = "attention_bias"
    mlp_bias: Bias = False
    gated_mlp: bool = True
    """`down(activation(gate) * up)`; else `down(activation(up))` (Arcee, Apertus)."""
    parallel_mlp: Bias = False
    """The MLP has the inputs of attention, in parallel to it (StableLM)."""
    parallel_norm: bool = False
    """Such an MLP has a norm of its own, over the layer's input (GPT-NeoX)."""
    head_bias: bool = False
    """The head has a bias (Phi)."""
    attention_sinks: bool = False
    """Every query head has a sink, a logit of its own in the softmax (Granite SWA)."""
    attention_gate: bool = False
    """The query projection has two rows per channel: the query's and a gate's (Qwen3.5)."""
    windows: Windows = "none"
    partial_rotation: bool = False
    """`partial_rotary_factor` excludes channels of a head from rotation (Phi-3)."""
    rope_fields: tuple[str, str] = ("rope_theta", "partial_rotary_factor")
    """The fields with the base and that factor, where they are not in `rope_parameters`."""
    interleaved_rope: bool = False
    """RoPE rotates channels 2i and 2i + 1 of a head, not i and i + dim / 2 (GLM, ERNIE)."""
    rope_types: tuple[str, ...] = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")
    """RoPE scalings that the class supports."""
    rotation: Rotation = "all"
    local_rope: bool = False
    """Layers with a window have separate RoPE parameters (Gemma 3, OLMo 3)."""
    local_theta: float | None = None
    """Their base where no field gives it: OLMo 3; Gemma 3 has `rope_local_base_freq`."""
    ntk_alpha: bool = False
    """`alpha` of a dynamic scaling stretches the base by a fixed ratio (Hunyuan)."""
    scaled_queries: bool = False
    """Queries grow with their position by `llama_4_scaling_beta` (Ministral 3)."""
    multipliers: bool = False
    """Reads the four multipliers of Granite."""
    logits_factor: str | None = None
    """The field with the factor of the logits (Cohere, Falcon-H1)."""
    query_scalar: bool = False
    """The attention scale comes from `query_pre_attn_scalar` (Gemma)."""
    attention_softcap: bool = False
    """Reads `attn_logit_softcapping` (Gemma 2; Gemma 3 has the field, and does not apply it)."""
    logits_softcap: bool = False
    """Reads `final_logit_softcapping` (Gemma)."""
    scales_embedding: bool = False
    """The embedding is multiplied by sqrt(hidden_size) (Gemma)."""
    derived_heads: bool = False
    """Heads have `hidden_size / num_attention_heads` channels; `head_dim` is not read."""
    even_heads: bool = False
    """The configuration class requires hidden_size to be a multiple of num_attention_heads."""
    parallel_mamba: bool = False
    """Every layer has Mamba-2 parallel to attention, and constants of its own (Falcon-H1)."""
    mixer: Literal["short_conv", "gated_delta", "mamba2"] | None = None
    """What layers of the type `conv` (LFM2) or `linear_attention` have in place of attention."""
    experts: Experts | None = None
    """Some layers have a mixture of experts in place of one MLP."""
    single_sublayers: bool = False
    """Every layer is a mixer or an MLP, after one norm, as `layers_block_type` says
    (edgelm.spec.config.single_sublayers; Nemotron-H)."""
    ffn_field: str = "intermediate_size"
    """The field with the intermediate size of the MLP."""
    adjusted_ffn: bool = False
    """`block_auto_adjust_ff_dim` derives the size of the MLP (LFM2)."""
    attention_scale: float | None = None
    """The attention scale, where neither a field nor the size of a head gives it (Gemma 4: 1)."""
    value_norm: bool = False
    """Values have an RMS norm without weight (Gemma 4)."""
    layer_scalars: bool = False
    """A layer's output is multiplied by its `layer_scalar` (Gemma 4)."""
    global_heads: bool = False
    """Layers without a window have heads of `global_head_dim` channels, and their keys are also
    their values with `attention_k_eq_v`; the last layer has no window (Gemma 4)."""
    shares_kv: bool = False
    """The last `num_kv_shared_layers` layers read keys and values of earlier ones (Gemma 4)."""
    per_layer_inputs: bool = False
    """`hidden_size_per_layer_input` is the size of an embedding for every layer (Gemma 4)."""
    short_per_layer_table: bool = False
    """That embedding may lack the last tokens, which then have its first row (Gemma 3n)."""
    altup: bool = False
    """Layers predict and correct `altup_num_inputs` residual streams (Gemma 3n)."""
    laurel: bool = False
    """A product of rank `laurel_rank` is beside attention (Gemma 3n)."""
    sparse_activations: bool = False
    """`activation_sparsity_pattern` has the share of gates that a layer drops (Gemma 3n)."""
    listed_ffn: bool = False
    """`intermediate_size` may be a list with the size of every layer's MLP (Gemma 3n)."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Flags of this family that must be false, and what the models are for which they are not."""
    eps_field: str = "rms_norm_eps"
    activation_field: str = "hidden_act"
    gelu_is_tanh: bool = False
    """The activation `gelu` means its approximation by tanh (Gemma 1)."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Defaults of the Hugging Face configuration class for missing fields."""
