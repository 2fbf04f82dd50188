"""Read a Hugging Face configuration as a DecoderSpec; only this module handles its spellings."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from edgelm.errors import BadCheckpoint, UnknownName
from edgelm.files.json_files import shown
from edgelm.spec.config.config_fields import (
    MAX_LAYERS,
    MAX_NUMBER,
    MAX_POSITIONS,
    MAX_WIDTH,
    Fields,
    check_labels,
)
from edgelm.spec.config.expert_fields import layer_experts
from edgelm.spec.config.layer_fields import layer_thetas, layer_windows, rotated_layers
from edgelm.spec.config.layer_sizes import (
    altup,
    layer_heads,
    per_layer_inputs,
    with_keys_as_values,
    with_mlp_sizes,
    with_shared_keys,
    with_sparse_activations,
)
from edgelm.spec.config.mixer_fields import feed_forward_size, layer_mixers
from edgelm.spec.config.parallel_mamba import multipliers, parallel_mamba
from edgelm.spec.config.rope_fields import read_query_growth, read_rope
from edgelm.spec.config.single_sublayers import sublayer_kinds, sublayers
from edgelm.spec.decoder import Activation, DecoderSpec, LayerSpec, Rope
from edgelm.spec.families.family import Bias
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.layers.heads import HeadSizes
from edgelm.spec.own_sizes import with_own_sizes

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
    "enable_moe_block": (False, "layers with both an MLP and experts (Gemma 4 26B-A4B)"),
    "is_encoder_decoder": (False, "models with an encoder"),
    "qk_layernorm": (False, "LayerNorms of queries and keys (such as StableLM 2 12B)"),
    "clip_qkv": (None, "clipped queries, keys and values"),
}


def read_decoder(config: Mapping[str, Any]) -> DecoderSpec:
    """Read the contents of a `config.json`.

    Raises:
        UnknownName: the family is not one of `FAMILIES`.
        BadCheckpoint: a field is missing or has an invalid value.
    """
    return _Reader(config).spec()


class _Reader:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self.name = _family_name(config)
        self.family = FAMILIES[self.name]
        self.fields = Fields(config, _DEFAULTS | self.family.defaults)
        if self.family.single_sublayers:
            self.count = len(sublayer_kinds(self.fields))
        else:
            self.count = self.fields.required("num_hidden_layers", most=MAX_LAYERS)

    def spec(self) -> DecoderSpec:
        self.refuse_unsupported()
        fields, family = self.fields, self.family
        hidden, heads, kv_heads, head_dim = self.widths()
        return DecoderSpec(
            family=self.name,
            num_hidden_layers=self.count,
            hidden_size=hidden,
            intermediate_size=feed_forward_size(fields, family),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=fields.required("vocab_size"),
            max_position_embeddings=fields.required("max_position_embeddings", most=MAX_POSITIONS),
            tie_word_embeddings=self.tied(),
            hidden_act=self.activation(),
            rms_norm_eps=self.number(family.eps_field, most=1.0, zero=True),
            norms=family.norms,
            norm_plus_one=family.norm_plus_one,
            layer_norm=family.layer_norm,
            norm_bias=family.norm_bias,
            parallel_mlp=self.bias(family.parallel_mlp),
            parallel_norm=family.parallel_norm,
            head_bias=family.head_bias,
            qk_norm=family.qk_norm,
            qkv_bias=self.bias(family.qkv_bias),
            o_bias=self.bias(family.o_bias),
            mlp_bias=self.bias(family.mlp_bias),
            fused_projections=family.fused_qkv,
            qkv_by_head=family.qkv_by_head,
            fused_gate_up=family.fused_gate_up,
            gated_mlp=family.gated_mlp,
            qk_norm_after_rope=family.qk_norm_after_rope,
            attention_sinks=family.attention_sinks,
            attention_gate=family.attention_gate,
            attention_scale=self.attention_scale(head_dim),
            layers=self.layers(head_dim),
            value_norm=family.value_norm,
            layer_scalars=family.layer_scalars,
            single_sublayers=family.single_sublayers,
            multipliers=multipliers(fields) if family.parallel_mamba else None,
            per_layer_inputs=per_layer_inputs(fields, family),
            altup=altup(fields, family),
            lists_mlp_sizes=family.listed_ffn,
            laurel_rank=fields.required("laurel_rank") if family.laurel else 0,
            attention_softcap=self.softcap("attn_logit_softcapping", read=family.attention_softcap),
            logits_softcap=self.softcap("final_logit_softcapping", read=family.logits_softcap),
            **self.multipliers(hidden),
        )

    def refuse_unsupported(self) -> None:
        """Reject fields that change the computation in ways that this decoder does not support.

        Raises:
            BadCheckpoint: such a field.
        """
        own = {field: (False, meaning) for field, meaning in self.family.refused.items()}
        for field, (harmless, meaning) in (_UNSUPPORTED | own).items():
            value = self.fields.values.get(field, harmless)
            if field == "per_layer_config" and self.family.global_heads:
                continue
            if field == "use_bidirectional_attention" and value == "vision":
                continue  # of the tokens of images alone
            if value is not None and value is not harmless:
                raise BadCheckpoint(
                    f"config.json: {field} is {shown(value)}: {meaning} are not supported"
                )
        for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
            self.check_token_ids(field)
        check_labels(self.fields.values)

    def check_token_ids(self, field: str) -> None:
        value = self.fields.values.get(field)
        ids = value if isinstance(value, list) and field == "eos_token_id" else [value]
        for one in ids:
            whole = isinstance(one, int) and not isinstance(one, bool)
            if one is not None and not (whole and -1 <= one < MAX_WIDTH):
                raise self.fields.wrong(field, "a token's id")

    def widths(self) -> tuple[int, int, int, int]:
        """Hidden size, query heads, key heads, channels of a head.

        Raises:
            BadCheckpoint: sizes that do not divide each other as the architecture requires.
        """
        fields = self.fields
        heads, hidden = fields.required("num_attention_heads"), fields.required("hidden_size")
        grouped = None if self.family.qkv_by_head else fields.integer("num_key_value_heads")
        kv_heads = grouped or heads
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
        own = None if self.family.derived_heads else fields.integer("head_dim")
        head_dim = own or hidden // heads
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

    def tied(self) -> bool:
        older = "tie_embedding" if self.family.mixer == "short_conv" else ""
        return self.fields.flag(older if older in self.fields else "tie_word_embeddings")

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
        if self.family.attention_scale is not None:
            return self.family.attention_scale
        scalar = self.number("query_pre_attn_scalar") if self.family.query_scalar else head_dim
        return 1.0 / math.sqrt(scalar)

    def softcap(self, field: str, *, read: bool) -> float | None:
        return self.fields.number(field) if read else None

    def multipliers(self, hidden: int) -> dict[str, Any]:
        if self.family.scales_embedding:
            return {"embedding_multiplier": math.sqrt(hidden)}
        if self.family.logits_factor is not None:
            embedded = self.number("embedding_multiplier") if self.family.parallel_mamba else 1.0
            return {
                "embedding_multiplier": embedded,
                "logits_divisor": 1 / self.number(self.family.logits_factor),
            }
        if not self.family.multipliers:
            return {}
        return {
            "embedding_multiplier": self.number("embedding_multiplier"),
            "residual_multiplier": self.number("residual_multiplier"),
            "logits_divisor": self.number("logits_scaling"),
        }

    def layers(self, head_dim: int) -> tuple[LayerSpec, ...]:
        fields, family, count = self.fields, self.family, self.count
        if family.single_sublayers:
            return sublayers(fields)
        rotated = rotated_layers(fields, family, count)
        windows = layer_windows(fields, family, rotated)
        has_window = fields.values.get("sliding_window") is not None
        if family.rotation == "sliding" or (family.rotation == "windowed" and has_window):
            rotated = [window is not None for window in windows]
        if family.global_heads:
            windows[-1] = None  # whatever `layer_types` says
        heads = layer_heads(fields, family, windows)
        kinds = {
            (window is not None, own.get("head_dim") or head_dim)
            for window, own in zip(windows, heads, strict=True)
        }
        ropes = {
            (local, dim): Rope(
                *read_rope(fields, family, dim, local=local),
                interleaved=family.interleaved_rope,
            )
            for local, dim in kinds
        }
        thetas = layer_thetas(fields, family, count)
        mixers = layer_mixers(fields, family, count)
        beside = parallel_mamba(fields) if family.parallel_mamba else None
        growth = read_query_growth(fields) if family.scaled_queries else None
        mlps = layer_experts(fields, family, count)
        layers = []
        for window, rotates, theta, mixer, mlp, own in zip(
            windows, rotated, thetas, mixers, mlps, heads, strict=True
        ):
            if mixer is not None:
                layers.append(LayerSpec(None, mixer=mixer, mlp=mlp))
                continue
            rope = ropes[window is not None, own.get("head_dim") or head_dim]
            if theta is not None:
                rope = msgspec.structs.replace(rope, theta=theta)
            rope_of_layer = rope if rotates else None
            layers.append(LayerSpec(rope_of_layer, window, growth, mlp=mlp, beside=beside, **own))
        size = feed_forward_size(fields, family)
        if family.listed_ffn:
            sized = with_mlp_sizes(fields, family, tuple(layers))
        else:
            all_heads = HeadSizes(*self.widths()[1:])
            sized = with_own_sizes(fields, family, tuple(layers), size, all_heads)
        sized = with_sparse_activations(fields, family, sized)
        return with_shared_keys(fields, family, with_keys_as_values(fields, family, sized))


def _family_name(config: Mapping[str, Any]) -> str:
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnknownName(
            f"unknown architecture {shown(name)} in config.json; known: {known}. "
            "Other multimodal models are not supported"
        )
    # The rule of AutoConfig.from_pretrained: Mistral's class has no layer types.
    return "ministral" if name == "mistral" and "layer_types" in config else name
