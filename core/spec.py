"""One description of a decoder, read once from a Hugging Face configuration.

Everything downstream (export, planner, cost model, runtime, pruning) asks the spec and never a
configuration again. From the spec follow parameter count, weight bytes, KV bytes per token and
FLOPs per token: the inputs of every estimate.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from edgelm.errors import BadCheckpoint, UnknownName
from edgelm.families import FAMILIES, NormPlacement, QKNorm

Activation = Literal["silu", "gelu_tanh", "gelu"]

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}


class Rope(msgspec.Struct, frozen=True):
    """Rotary position embedding of one layer kind (Su et al. 2021, arXiv 2104.09864).

    `scaling` is Hugging Face's `rope_parameters` without the base, e.g.
    `{"rope_type": "llama3", "factor": 8.0, ...}`; empty means unscaled.
    """

    theta: float
    dim: int
    scaling: dict[str, Any] = {}


class LayerSpec(msgspec.Struct, frozen=True):
    """What differs between the layers of one decoder."""

    rope: Rope | None
    window: int | None = None
    """Number of keys, the current one included, that a query sees; None means all."""


class DecoderSpec(msgspec.Struct, frozen=True):
    """A dense decoder-only transformer; names as in Hugging Face configurations."""

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

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "DecoderSpec":
        """Read the contents of a `config.json`.

        Raises:
            UnknownName: the family is not one of `FAMILIES`.
            BadCheckpoint: a field is missing, or has a value that no decoder can have.
        """
        return _Reader(config).spec()

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Parameters in the matrices of all layers: what weight quantization acts on."""
        layer = sum(outputs * inputs for outputs, inputs in self.linear_shapes)
        return self.num_hidden_layers * layer

    @property
    def linear_shapes(self) -> tuple[tuple[int, int], ...]:
        """Outputs and inputs of a layer's matrices as they are executed: qkv, o, gate_up, down."""
        return (
            (self.q_size + 2 * self.kv_size, self.hidden_size),
            (self.hidden_size, self.q_size),
            (2 * self.intermediate_size, self.hidden_size),
            (self.hidden_size, self.intermediate_size),
        )

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding (the head has as many again unless tied)."""
        return self.vocab_size * self.hidden_size

    @property
    def vector_parameters(self) -> int:
        """Norm weights and biases, which stay in fp32."""
        h, q, kv = self.hidden_size, self.q_size, self.kv_size
        norms = (4 if self.norms == "sandwich" else 2) * h
        norms += {"none": 0, "head": 2 * self.head_dim, "full": q + kv}[self.qk_norm]
        biases = (q + 2 * kv) * self.qkv_bias + h * self.o_bias
        biases += (2 * self.intermediate_size + h) * self.mlp_bias
        return self.num_hidden_layers * (norms + biases) + h

    @property
    def parameters(self) -> int:
        """Parameters as Hugging Face counts them: a tied head is counted once."""
        heads = 1 if self.tie_word_embeddings else 2
        return self.linear_parameters + heads * self.embedding_parameters + self.vector_parameters

    def weight_bytes(self, linear_bits: float, head_bits: float | None = None) -> int:
        """Bytes of all weights at so many bits per matrix element (scales included in the bits)."""
        head_bits = linear_bits if head_bits is None else head_bits
        heads = 1 if self.tie_word_embeddings else 2
        bits = self.linear_parameters * linear_bits + heads * self.embedding_parameters * head_bits
        return math.ceil(bits / 8) + 4 * self.vector_parameters

    def kv_bytes_per_token(self, element_bytes: float) -> int:
        """Bytes that one more token of context adds to the key-value cache of one sequence."""
        return math.ceil(2 * self.num_hidden_layers * self.kv_size * element_bytes)

    def flops_per_token(self, context: int = 0) -> int:
        """Floating-point operations to process one token that sees `context` earlier ones."""
        matmuls = 2 * (self.linear_parameters + self.embedding_parameters)
        seen = sum(min(context + 1, layer.window or context + 1) for layer in self.layers)
        return matmuls + 4 * self.q_size * seen


class _Reader:
    """Reads one configuration; every Hugging Face spelling is resolved here and nowhere else."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        model_type = config.get("model_type")
        if model_type not in FAMILIES:
            known = ", ".join(sorted(FAMILIES))
            raise UnknownName(
                f"unknown architecture {model_type!r} in config.json; known: {known}. "
                "Mixture-of-experts and multimodal models are not supported"
            )
        self.name = str(model_type)
        self.family = FAMILIES[self.name]
        # A field left out means the family's default; an explicit null means "none".
        merged = {**self.family.defaults, **config}
        self.config = {key: value for key, value in merged.items() if value is not None}

    def spec(self) -> DecoderSpec:
        heads = self.positive("num_attention_heads")
        hidden = self.positive("hidden_size")
        head_dim = int(self.config.get("head_dim") or hidden // heads)
        kv_heads = int(self.config.get("num_key_value_heads") or heads)
        if heads % kv_heads:
            raise BadCheckpoint(
                f"config.json: num_attention_heads {heads} is not a multiple of "
                f"num_key_value_heads {kv_heads}"
            )
        attention_bias = bool(self.config.get("attention_bias", False))
        return DecoderSpec(
            family=self.name,
            num_hidden_layers=self.positive("num_hidden_layers"),
            hidden_size=hidden,
            intermediate_size=self.positive("intermediate_size"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=self.positive("vocab_size"),
            max_position_embeddings=self.positive("max_position_embeddings"),
            tie_word_embeddings=bool(self.config.get("tie_word_embeddings", False)),
            hidden_act=self.activation(),
            rms_norm_eps=float(self.config.get("rms_norm_eps", 1e-6)),
            norms=self.family.norms,
            norm_plus_one=self.family.norm_plus_one,
            qk_norm=self.family.qk_norm,
            qkv_bias=self.family.qkv_bias or attention_bias,
            o_bias=attention_bias and not self.family.qkv_bias,
            mlp_bias=bool(self.config.get("mlp_bias", False)),
            fused_projections=self.family.fused_projections,
            attention_scale=self.attention_scale(head_dim),
            layers=self.layers(head_dim),
            attention_softcap=self.config.get("attn_logit_softcapping"),
            logits_softcap=self.config.get("final_logit_softcapping"),
            embedding_multiplier=self.embedding_multiplier(hidden),
            residual_multiplier=float(self.config.get("residual_multiplier", 1.0)),
            logits_divisor=float(self.config.get("logits_scaling", 1.0)),
        )

    def positive(self, field: str) -> int:
        value = self.config.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadCheckpoint(
                f"config.json: {field} is {value!r}, expected a positive integer; "
                "is this the configuration of a text model?"
            )
        return value

    def activation(self) -> Activation:
        name = self.config.get("hidden_activation") or self.config.get("hidden_act", "silu")
        if name not in _ACTIVATIONS:
            raise UnknownName(
                f"unknown activation {name!r} in config.json; known: {', '.join(_ACTIVATIONS)}"
            )
        return _ACTIVATIONS[name]

    def attention_scale(self, head_dim: int) -> float:
        if "attention_multiplier" in self.config:
            return float(self.config["attention_multiplier"])
        return 1.0 / math.sqrt(float(self.config.get("query_pre_attn_scalar", head_dim)))

    def embedding_multiplier(self, hidden: int) -> float:
        if self.family.scales_embedding:
            return math.sqrt(hidden)
        return float(self.config.get("embedding_multiplier", 1.0))

    def layers(self, head_dim: int) -> tuple[LayerSpec, ...]:
        count = self.positive("num_hidden_layers")
        sliding = self.sliding(count)
        rotated = self.rotated(count)
        window = self.config.get("sliding_window")
        return tuple(
            LayerSpec(
                rope=self.rope(head_dim, local=slides) if rotates else None,
                window=int(window) if slides and window else None,
            )
            for slides, rotates in zip(sliding, rotated, strict=True)
        )

    def sliding(self, count: int) -> list[bool]:
        """Which layers see only a window."""
        if self.family.opts_into_windows and not self.config.get("use_sliding_window"):
            return [False] * count
        if types := self.config.get("layer_types"):
            self.same_length("layer_types", types, count)
            return [kind == "sliding_attention" for kind in types]
        pattern = self.config.get("_sliding_window_pattern") or self.config.get(
            "sliding_window_pattern"
        )
        if pattern:
            return [(layer + 1) % int(pattern) != 0 for layer in range(count)]
        if self.family.opts_into_windows:
            first = int(self.config.get("max_window_layers", count))
            return [layer >= first for layer in range(count)]
        return [bool(self.config.get("sliding_window"))] * count

    def rotated(self, count: int) -> list[bool]:
        """Which layers rotate their queries and keys (SmolLM3 leaves out every fourth)."""
        if flags := self.config.get("no_rope_layers"):
            self.same_length("no_rope_layers", flags, count)
            return [bool(flag) for flag in flags]
        if interval := self.config.get("no_rope_layer_interval"):
            return [(layer + 1) % int(interval) != 0 for layer in range(count)]
        return [True] * count

    def same_length(self, field: str, values: Any, count: int) -> None:
        if len(values) != count:
            raise BadCheckpoint(
                f"config.json: {field} has {len(values)} entries, expected one for each of "
                f"{count} layers"
            )

    def rope(self, head_dim: int, *, local: bool) -> Rope:
        parameters = dict(
            self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        )
        kind = "sliding_attention" if local else "full_attention"
        nested = kind in parameters
        if nested:
            parameters = dict(parameters[kind] or {})
        theta = float(parameters.pop("rope_theta", self.config.get("rope_theta", 10_000.0)))
        if local and not nested and "rope_local_base_freq" in self.config:
            theta, parameters = float(self.config["rope_local_base_freq"]), {}
        if "type" in parameters:  # the spelling of configurations before 2024
            parameters.setdefault("rope_type", parameters.pop("type"))
        partial = float(
            parameters.pop("partial_rotary_factor", self.config.get("partial_rotary_factor", 1.0))
        )
        if parameters.get("rope_type", "default") == "default":
            parameters = {}
        if parameters.get("rope_type") == "longrope":
            original = self.config.get("original_max_position_embeddings")
            parameters.setdefault("original_max_position_embeddings", original)
        return Rope(theta=theta, dim=int(head_dim * partial), scaling=parameters)
