"""The description of a decoder, read once from a Hugging Face configuration.

Export, planner, cost model, runtime and pruning use the spec, never the configuration. It gives the
parameter count, weight bytes, KV bytes per token and FLOPs per token for every estimate.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from edgelm.errors import BadCheckpoint, UnknownName
from edgelm.files.json_files import shown
from edgelm.spec.config_fields import MAX_LAYERS, MAX_NUMBER, MAX_POSITIONS, MAX_WIDTH, Fields
from edgelm.spec.families import FAMILIES
from edgelm.spec.family import Bias, NormPlacement, QKNorm
from edgelm.spec.layer_fields import layer_thetas, layer_windows, rotated_layers
from edgelm.spec.rope_fields import read_query_growth, read_rope

Activation = Literal["silu", "gelu_tanh", "gelu", "relu2", "xielu"]

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "relu2": "relu2",
    "xielu": "xielu",
}
# Defaults of most configuration classes.
_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
# Field -> the value that has no effect, and what other values mean.
_UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "is_causal": (True, "models that see later tokens"),
    "use_bidirectional_attention": (False, "models that see later tokens"),
    "per_layer_config": (None, "layers that differ in their sizes"),
    "is_encoder_decoder": (False, "models with an encoder"),
}


class Rope(msgspec.Struct, frozen=True):
    """Rotary position embedding of one layer kind (Su et al. 2021, arXiv 2104.09864).

    `scaling` is Hugging Face's `rope_parameters` without the base, e.g.
    `{"rope_type": "llama3", "factor": 8.0, ...}`; empty means unscaled. With `interleaved`, the
    checkpoint's rows of queries and keys pair channels 2i and 2i + 1, otherwise i and i + dim / 2.
    """

    theta: float
    dim: int
    scaling: dict[str, Any] = {}
    interleaved: bool = False


class LayerSpec(msgspec.Struct, frozen=True):
    """What differs between the layers of one decoder."""

    rope: Rope | None
    window: int | None = None
    """Number of keys that a query sees, including the current one; None means all."""
    query_growth: tuple[float, int] | None = None
    """Beta and period of the factor 1 + beta * log(1 + position // period) on queries (Llama 4)."""


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
    gated_mlp: bool = True
    qk_norm_after_rope: bool = False
    attention_sinks: bool = False
    fused_gate_up: bool = False

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "DecoderSpec":
        """Read the contents of a `config.json`.

        Raises:
            UnknownName: the family is not one of `FAMILIES`.
            BadCheckpoint: a field is missing or has an invalid value.
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
        """Parameters in the matrices of all layers, which weight quantization affects."""
        layer = sum(outputs * inputs for outputs, inputs in self.linear_shapes)
        return self.num_hidden_layers * layer

    @property
    def linear_shapes(self) -> tuple[tuple[int, int], ...]:
        """Outputs and inputs of a layer's matrices as executed: qkv, o, gate_up (or up), down."""
        return (
            (self.q_size + 2 * self.kv_size, self.hidden_size),
            (self.hidden_size, self.q_size),
            (self.mlp_inputs * self.intermediate_size, self.hidden_size),
            (self.hidden_size, self.intermediate_size),
        )

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
        return self.norm_plus_one or self.hidden_act in ("relu2", "xielu")

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding; an untied head has the same number."""
        return self.vocab_size * self.hidden_size

    @property
    def vector_parameters(self) -> int:
        """Norm weights and biases, which are stored in fp32."""
        h, q, kv = self.hidden_size, self.q_size, self.kv_size
        norms = (4 if self.norms == "sandwich" else 2) * h
        norms += {"none": 0, "head": 2 * self.head_dim, "full": q + kv}[self.qk_norm]
        biases = (q + 2 * kv) * self.qkv_bias + h * self.o_bias
        biases += (self.mlp_inputs * self.intermediate_size + h) * self.mlp_bias
        others = self.num_attention_heads * self.attention_sinks + 2 * (self.hidden_act == "xielu")
        return self.num_hidden_layers * (norms + biases + others) + h

    @property
    def parameters(self) -> int:
        """Parameters as Hugging Face counts them: a tied head is counted once."""
        heads = 1 if self.tie_word_embeddings else 2
        return self.linear_parameters + heads * self.embedding_parameters + self.vector_parameters

    def weight_bytes(self, linear_bits: float, head_bits: float | None = None) -> int:
        """Bytes of all weights, from bits per matrix element, scales included."""
        head_bits = linear_bits if head_bits is None else head_bits
        heads = 1 if self.tie_word_embeddings else 2
        bits = self.linear_parameters * linear_bits + heads * self.embedding_parameters * head_bits
        return math.ceil(bits / 8) + 4 * self.vector_parameters

    def kv_bytes_per_token(self, element_bytes: float) -> int:
        """Bytes of the KV cache per token of one sequence."""
        return math.ceil(2 * self.num_hidden_layers * self.kv_size * element_bytes)

    def flops_per_token(self, context: int = 0) -> int:
        """Floating-point operations for one token after `context` earlier ones."""
        matmuls = 2 * (self.linear_parameters + self.embedding_parameters)
        seen = sum(min(context + 1, layer.window or context + 1) for layer in self.layers)
        return matmuls + 4 * self.q_size * seen


class _Reader:
    """Reads one configuration; only this class handles Hugging Face's spellings."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.name = _family_name(config)
        self.family = FAMILIES[self.name]
        self.fields = Fields(config, _DEFAULTS | self.family.defaults)

    def spec(self) -> DecoderSpec:
        self.refuse_unsupported()
        fields, family = self.fields, self.family
        hidden, heads, kv_heads, head_dim = self.widths()
        return DecoderSpec(
            family=self.name,
            num_hidden_layers=fields.required("num_hidden_layers", most=MAX_LAYERS),
            hidden_size=hidden,
            intermediate_size=fields.required("intermediate_size"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=fields.required("vocab_size"),
            max_position_embeddings=fields.required("max_position_embeddings", most=MAX_POSITIONS),
            tie_word_embeddings=fields.flag("tie_word_embeddings"),
            hidden_act=self.activation(),
            rms_norm_eps=self.number("rms_norm_eps", most=1.0, zero=True),
            norms=family.norms,
            norm_plus_one=family.norm_plus_one,
            qk_norm=family.qk_norm,
            qkv_bias=self.bias(family.qkv_bias),
            o_bias=self.bias(family.o_bias),
            mlp_bias=self.bias(family.mlp_bias),
            fused_projections=family.fused_qkv,
            fused_gate_up=family.fused_gate_up,
            gated_mlp=family.gated_mlp,
            qk_norm_after_rope=family.qk_norm_after_rope,
            attention_sinks=family.attention_sinks,
            attention_scale=self.attention_scale(head_dim),
            layers=self.layers(head_dim),
            attention_softcap=self.softcap("attn_logit_softcapping", read=family.attention_softcap),
            logits_softcap=self.softcap("final_logit_softcapping", read=family.logits_softcap),
            **self.multipliers(hidden),
        )

    def refuse_unsupported(self) -> None:
        """Reject fields that change the computation in ways that this decoder does not support."""
        for field, (harmless, meaning) in _UNSUPPORTED.items():
            value = self.fields.values.get(field, harmless)
            if value is not None and value is not harmless:
                raise BadCheckpoint(
                    f"config.json: {field} is {shown(value)}: {meaning} are not supported"
                )
        for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
            self.check_token_ids(field)

    def check_token_ids(self, field: str) -> None:
        value = self.fields.values.get(field)
        ids = value if isinstance(value, list) and field == "eos_token_id" else [value]
        for one in ids:
            whole = isinstance(one, int) and not isinstance(one, bool)
            if one is not None and not (whole and -1 <= one < MAX_WIDTH):
                raise self.fields.wrong(field, "a token's id")

    def widths(self) -> tuple[int, int, int, int]:
        """Hidden size, query heads, key heads, channels of a head."""
        fields = self.fields
        heads, hidden = fields.required("num_attention_heads"), fields.required("hidden_size")
        kv_heads = fields.integer("num_key_value_heads") or heads
        if heads % kv_heads:
            raise BadCheckpoint(
                f"config.json: num_attention_heads {heads} is not a multiple of "
                f"num_key_value_heads {kv_heads}"
            )
        if self.family.even_heads and hidden % heads:
            raise BadCheckpoint(
                f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads "
                f"{heads}, which the {self.name} architecture requires"
            )
        head_dim = fields.integer("head_dim") or hidden // heads
        if head_dim % 2 or not head_dim:
            raise BadCheckpoint(
                f"config.json: head_dim is {head_dim}, expected an even number (without the field "
                f"it is hidden_size / num_attention_heads, {hidden} / {heads})"
            )
        return hidden, heads, kv_heads, head_dim

    def number(self, field: str, *, most: float = MAX_NUMBER, zero: bool = False) -> float:
        """A number that must be present."""
        value = self.fields.number(field, most=most, zero=zero)
        if value is None:
            raise self.fields.wrong(field, "a number")
        return value

    def bias(self, rule: Bias) -> bool:
        return rule if isinstance(rule, bool) else self.fields.flag(rule)

    def activation(self) -> Activation:
        field = self.family.activation_field
        name = self.fields.values.get(field)
        if name == "gelu" and self.family.gelu_is_tanh:
            name = "gelu_pytorch_tanh"
        known = [one for one in _ACTIVATIONS if one != "xielu" or not self.family.gated_mlp]
        if not isinstance(name, str) or name not in known:
            raise UnknownName(
                f"unknown activation {shown(name)} in config.json, {field}; known: "
                f"{', '.join(known)}"
            )
        return _ACTIVATIONS[name]

    def attention_scale(self, head_dim: int) -> float:
        if self.family.multipliers:
            return self.number("attention_multiplier")
        scalar = self.number("query_pre_attn_scalar") if self.family.query_scalar else head_dim
        return 1.0 / math.sqrt(scalar)

    def softcap(self, field: str, *, read: bool) -> float | None:
        return self.fields.number(field) if read else None

    def multipliers(self, hidden: int) -> dict[str, float]:
        if self.family.scales_embedding:
            return {"embedding_multiplier": math.sqrt(hidden)}
        if not self.family.multipliers:
            return {}
        return {
            "embedding_multiplier": self.number("embedding_multiplier"),
            "residual_multiplier": self.number("residual_multiplier"),
            "logits_divisor": self.number("logits_scaling"),
        }

    def layers(self, head_dim: int) -> tuple[LayerSpec, ...]:
        count = self.fields.required("num_hidden_layers", most=MAX_LAYERS)
        fields, family = self.fields, self.family
        rotated = rotated_layers(fields, family, count)
        windows = layer_windows(fields, family, rotated)
        if family.rotation == "windowed" and fields.values.get("sliding_window") is not None:
            rotated = [window is not None for window in windows]
        ropes = {
            local: Rope(
                *read_rope(fields, family, head_dim, local=local),
                interleaved=family.interleaved_rope,
            )
            for local in {window is not None for window in windows}
        }
        thetas = layer_thetas(fields, family, count)
        growth = read_query_growth(fields) if family.scaled_queries else None
        layers = []
        for window, rotates, theta in zip(windows, rotated, thetas, strict=True):
            rope = ropes[window is not None]
            if theta is not None:
                rope = msgspec.structs.replace(rope, theta=theta)
            layers.append(LayerSpec(rope if rotates else None, window, growth))
        return tuple(layers)


def _family_name(config: Mapping[str, Any]) -> str:
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnknownName(
            f"unknown architecture {shown(name)} in config.json; known: {known}. "
            "Mixtures of experts and other multimodal models are not supported"
        )
    # The rule of AutoConfig.from_pretrained: Mistral's class has no layer types.
    return "ministral" if name == "mistral" and "layer_types" in config else name
