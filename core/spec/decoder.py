"""The description of a decoder, read once from a Hugging Face configuration.

Export, planner, cost model, runtime and pruning use the spec, never the configuration. It gives the
parameter count, weight bytes, KV bytes per token and FLOPs per token for every estimate.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from edgelm.spec.assistant import Assistant
from edgelm.spec.families.family import NormPlacement, QKNorm
from edgelm.spec.layers.altup import AltUp
from edgelm.spec.layers.experts import MixtureOfExperts
from edgelm.spec.layers.heads import HeadSizes
from edgelm.spec.layers.layer import LayerSpec as LayerSpec
from edgelm.spec.layers.layer import Rope as Rope
from edgelm.spec.layers.mixers import GatedDelta, NoMixer, StateShape
from edgelm.spec.layers.per_layer_inputs import PerLayerInputs
from edgelm.spec.matrix_shapes import layer_matrices, mixer_matrices, shared_matrices
from edgelm.spec.multipliers import Multipliers
from edgelm.spec.vector_counts import layer_vectors, shared_vectors

_TABLE_MULTIPLE = 8
Activation = Literal["silu", "gelu_tanh", "gelu", "relu2", "xielu"]
_NORMS: dict[NormPlacement, tuple[str, ...]] = {
    "pre": ("input_layernorm", "post_attention_layernorm"),
    "post": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "sandwich": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}


class DecoderSpec(msgspec.Struct, frozen=True):
    """A decoder; names as in Hugging Face configurations."""

    family: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    hidden_act: Activation
    rms_norm_eps: float
    norms: NormPlacement
    norm_plus_one: bool
    qk_norm: QKNorm
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    fused_projections: bool
    attention_scale: float
    layers: tuple[LayerSpec, ...]
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    gated_mlp: bool = True
    qk_norm_after_rope: bool = False
    attention_sinks: bool = False
    fused_gate_up: bool = False
    attention_gate: bool = False
    """The query projection also gives a gate, whose sigmoid scales the heads' outputs (Qwen3.5)."""
    value_norm: bool = False
    """Values have an RMS norm without weight, per head (Gemma 4)."""
    single_sublayers: bool = False
    """Every layer is a mixer or an MLP, after one norm (Nemotron-H)."""
    multipliers: Multipliers | None = None
    """Constants around the matrices of every layer, folded into them (Falcon-H1)."""
    layer_scalars: bool = False
    """Every layer's output is multiplied by a number of its own (Gemma 4)."""
    per_layer_inputs: PerLayerInputs | None = None
    altup: AltUp | None = None
    lists_mlp_sizes: bool = False
    """The family's own configuration has the size of every layer's MLP (Gemma 3n)."""
    laurel_rank: int = 0
    """Of a low-rank product beside attention, whose norm is added to its output; 0: none. The sum
    is divided by sqrt(2) (Gemma 3n)."""
    layer_norm: bool = False
    """Norms subtract the mean and have a bias; RMS norms otherwise."""
    parallel_mlp: bool = False
    """The MLP is parallel to attention, and has its normed inputs (StableLM)."""
    parallel_norm: bool = False  # such an MLP has a norm of its own (GPT-NeoX)
    norm_bias: bool = True  # of LayerNorms; Cohere's have none
    qkv_by_head: bool = False  # stored q, k and v of a head are side by side (GPT-NeoX)
    head_bias: bool = False  # of `lm_head` (Phi)
    has_head: bool = True  # False: an embedding model; `tie_word_embeddings` is true then
    draft_head: bool = False
    """Drafts tokens for a model: a layer behind its last one (edgelm.spec.draft_head)."""
    assistant: Assistant | None = None
    """Drafts tokens for a model, with its keys and values (edgelm.spec.assistant)."""

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "DecoderSpec":
        """Read the contents of a `config.json`.

        Raises:
            UnknownName: the family is not one of `FAMILIES`.
            BadCheckpoint: a field is missing or has an invalid value.
        """
        from edgelm.spec.config.config_reader import read_decoder  # which builds these records

        decoder: Any = read_decoder(config)
        assert isinstance(decoder, cls)
        return decoder

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim

    def heads(self, layer: LayerSpec) -> HeadSizes:
        """The heads of a layer's attention."""
        return HeadSizes(
            layer.num_attention_heads or self.num_attention_heads,
            layer.num_key_value_heads or self.num_key_value_heads,
            layer.head_dim or self.head_dim,
        )

    @property
    def _itself(self) -> Any:  # mypy knows this file under two names, whose types differ for it
        return self

    def rotary_width(self, rope: Rope) -> int:
        """Columns of a rotation's tables in a graph: half of the channels that it rotates.

        ONNX Runtime's attention takes multiples of 8: the first of the channels that are not
        rotated fill the rest, rotated by zero. For that, rows of queries and keys are reordered.
        Norms of heads and gates between queries are not, and small heads have too few channels:
        the width is then that of the rotated channels.
        """
        width = rope.dim // 2
        padded = -(-width // _TABLE_MULTIPLE) * _TABLE_MULTIPLE
        dim = min(self.heads(layer).dim for layer in self.layers if layer.rope == rope)
        ordered = self.qk_norm == "none" and not self.attention_gate
        return padded if ordered and 2 * padded <= dim else width

    @property
    def linear_parameters(self) -> int:
        """Parameters in the matrices that weight quantization affects, but embedding and head."""
        return sum(
            count * outputs * inputs
            for layer, count in self._kinds.items()
            for outputs, inputs in layer_matrices(self._itself, layer)
        ) + sum(outputs * inputs for outputs, inputs in shared_matrices(self._itself))

    @property
    def active_parameters(self) -> int:
        """Of `linear_parameters` those that one token is multiplied with."""
        hidden = self.hidden_size
        idle = (layer.mlp.inactive_parameters(hidden) for layer in self.layers if layer.mlp)
        return self.linear_parameters - sum(idle)

    @property
    def linear_shapes(self) -> tuple[tuple[int, int], ...]:
        """Outputs and inputs of all layers' matrices, as they are executed."""
        layers = (shape for layer in self.layers for shape in layer_matrices(self._itself, layer))
        return (*shared_matrices(self._itself), *layers)

    @property
    def per_layer_width(self) -> int:
        """Channels of the per-layer embedding, of all layers together; 0 without one."""
        inputs = self.per_layer_inputs
        return self.num_hidden_layers * inputs.size if inputs else 0

    @property
    def per_layer_embedding_parameters(self) -> int:
        """Parameters of the per-layer embedding, of which a token reads one row."""
        inputs = self.per_layer_inputs
        return inputs.vocab_size * self.per_layer_width if inputs else 0

    @property
    def _kinds(self) -> Counter[LayerSpec]:
        """How many layers have each mixer and each MLP: few kinds, many layers."""
        return Counter(
            msgspec.structs.replace(layer, rope=None, window=None, query_growth=None)
            for layer in self.layers
        )

    def mlp_size(self, layer: LayerSpec) -> int:
        """The intermediate size of a layer's MLP; 0 where it has none."""
        own = layer.intermediate_size
        size = self.intermediate_size if own is None else own
        return size * (2 if layer.double_mlp else 1)

    def projected_sizes(self, layer: LayerSpec) -> tuple[int, ...]:
        """Widths of queries, keys and values, of those that the layer projects."""
        heads = self.heads(layer)
        if layer.shares_kv_of is not None:
            return (heads.q_size,)
        return (heads.q_size, *(heads.kv_size,) * (1 if layer.values_are_keys else 2))

    @property
    def mixer_width(self) -> int:
        """The most that a layer's mixer takes of one token: q, k and v, or what it has instead."""
        first = (mixer_matrices(self._itself, layer)[:1] for layer in self._kinds)
        return max((shape[0] for shapes in first for shape in shapes), default=0)

    @property
    def mlp_width(self) -> int:
        """The most intermediate channels that a layer's MLP computes for one token."""
        return max(
            layer.mlp.top_k * layer.mlp.size + layer.mlp.shared
            if layer.mlp
            else self.mlp_size(layer)
            for layer in self._kinds
        )

    @property
    def mixtures(self) -> tuple[MixtureOfExperts, ...]:
        """The experts of every layer that has some."""
        return tuple(layer.mlp for layer in self.layers if layer.mlp is not None)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers with attention."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.attends)

    @property
    def cache_layers(self) -> tuple[int, ...]:
        """The layers with rows of keys and values of their own."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.has_cache)

    @property
    def has_layer_heads(self) -> bool:
        """Whether heads differ between layers (Gemma 4, students of Puzzle), or are shared."""
        return any(map(_has_own_heads, self._kinds))

    @property
    def states(self) -> tuple[StateShape, ...]:
        """What the other layers remember."""
        return tuple(
            StateShape(index, kind, shape)
            for index, layer in enumerate(self.layers)
            if layer.recurrent is not None
            for kind, shape in layer.recurrent.states(self.hidden_size).items()
        )

    @property
    def has_gated_delta(self) -> bool:
        """Whether some layers have the gated delta rule."""
        return any(isinstance(layer.mixer, GatedDelta) for layer in self.layers)

    @property
    def is_hybrid(self) -> bool:
        """Whether some layers have another mixer in place of attention, or parallel to it."""
        return any(one.recurrent is not None and one.recurrent.groups for one in self._kinds)

    @property
    def has_own_sizes(self) -> bool:
        """Whether some layers have sizes of their own (edgelm.spec.own_sizes)."""
        return not self.single_sublayers and any(
            (layer.intermediate_size is not None and not self.lists_mlp_sizes)
            or isinstance(layer.mixer, NoMixer)
            or layer.num_attention_heads is not None
            for layer in self.layers
        )

    @property
    def executed_layers(self) -> float:
        """Layers that run; one without attention, or without an MLP, is half of a layer."""
        halves = (
            (not isinstance(layer.mixer, NoMixer)) + (self.mlp_size(layer) > 0)
            for layer in self.layers
        )
        return sum(halves) / 2

    @property
    def norm_names(self) -> tuple[str, ...]:
        """The norms over the residual stream that a layer has."""
        names = _NORMS[self.norms]
        return names[:1] if self.single_sublayers or self.shares_norm else names

    @property
    def shares_norm(self) -> bool:
        """Whether attention and the MLP parallel to it read the same normed values (StableLM)."""
        return self.parallel_mlp and not self.parallel_norm

    @property
    def norms_have_bias(self) -> bool:
        """Whether norms over the residual stream have a bias."""
        return self.layer_norm and self.norm_bias

    @property
    def mlp_inputs(self) -> int:
        """Matrices that read the input of an MLP: gate and up, or up alone."""
        return 2 if self.gated_mlp else 1

    @property
    def fuses_gate_up(self) -> bool:
        """Whether the checkpoint stores gate and up as one matrix."""
        return self.fused_gate_up or self.fused_projections  # Phi-3 fuses both

    @property
    def exceeds_fp16(self) -> bool:
        """Whether activations may leave the range of fp16 (Gemma's stream, squared ReLU)."""
        large = self.norm_plus_one or self.layer_scalars or self.altup is not None
        return large or self.hidden_act in ("relu2", "xielu")

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding; an untied head has the same number."""
        return self.vocab_size * self.hidden_size

    @property
    def tables(self) -> int:
        """Matrices of the vocabulary's size: the embedding, and a head that is not tied to it.

        A draft head has none: it uses those of its model.
        """
        if self.draft_head:
            return 0
        return 1 if self.tie_word_embeddings or self.assistant else 2

    @property
    def looks_up_head(self) -> bool:
        """Whether rows of the head are looked up, and only these multiplied (an assistant's)."""
        return self.assistant is not None and self.assistant.centroids > 0

    @property
    def head_parameters(self) -> int:
        """Parameters that a token whose logits are computed is multiplied with."""
        if self.assistant is not None and self.looks_up_head:
            return self.embedding_parameters * self.assistant.active // self.assistant.centroids
        return self.embedding_parameters if self.has_head else 0

    @property
    def vector_parameters(self) -> int:
        """Norm weights, biases and routers, which are stored in fp32; no layer scalars."""
        kinds, this = self._kinds.items(), self._itself
        return sum(n * layer_vectors(this, layer) for layer, n in kinds) + shared_vectors(this)

    @property
    def parameters(self) -> int:
        """Parameters as Hugging Face counts them: a tied head is counted once."""
        tables = self.tables * self.embedding_parameters + self.per_layer_embedding_parameters
        return self.linear_parameters + tables + self.vector_parameters

    def weight_bytes(self, linear_bits: float, head_bits: float | None = None) -> int:
        """Bytes of all weights, from bits per matrix element, scales included."""
        head_bits = linear_bits if head_bits is None else head_bits
        linear = self.linear_parameters + self.per_layer_embedding_parameters
        bits = linear * linear_bits + self.tables * self.embedding_parameters * head_bits
        return math.ceil(bits / 8) + 4 * self.vector_parameters

    def kv_bytes_per_token(self, element_bytes: float) -> int:
        """Bytes of the KV cache per token of one sequence."""
        own = (self.heads(one).kv_size for one in self.layers if one.has_cache)
        return math.ceil(2 * sum(own) * element_bytes)

    def state_bytes(self, element_bytes: float) -> int:
        """Bytes of what layers without attention remember of one sequence, however long."""
        return math.ceil(sum(math.prod(one.shape) for one in self.states) * element_bytes)

    def flops_per_token(self, context: int = 0) -> int:
        """Floating-point operations for one token after `context` earlier ones."""
        matmuls = 2 * (self.active_parameters + self.head_parameters)
        pairs = sum(
            self.heads(layer).q_size * min(context + 1, layer.window or context + 1)
            for layer in self.layers
            if layer.attends
        )
        return matmuls + 4 * pairs


def _has_own_heads(layer: LayerSpec) -> bool:
    own = layer.head_dim or layer.num_key_value_heads
    return bool(own) or layer.shares_kv_of is not None
