"""Convert a GGUF file's metadata to a `config.json`, read as llama.cpp reads it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from edgelm.checkpoint.gguf.config import experts, mixers
from edgelm.checkpoint.gguf.config.gemma3n import gemma3n
from edgelm.checkpoint.gguf.config.gemma4 import gemma4
from edgelm.checkpoint.gguf.config.keys import Keys
from edgelm.checkpoint.gguf.config.rope import Factors, rope_scaling
from edgelm.checkpoint.gguf.layout.architectures import ARCHITECTURES
from edgelm.checkpoint.gguf.metadata import GgufMetadata
from edgelm.errors import BadCheckpoint
from edgelm.spec.families.table import FAMILIES

_GROWTH = "llama_4_scaling_beta"
# Layers of Gemma 2 27B and Gemma 3 27B, whose attention is scaled by hidden/heads. There is no key
# for it: llama.cpp uses the number of layers.
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}
# Which layer of how many has no window, in files without flags.
_PATTERNS = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "olmo2": 4,
    "exaone4": 4,
    "gpt-oss": 2,
    "cohere2": 4,
}
# Keys that change the computation and are not supported.
_UNSUPPORTED = (
    "expert_count",
    "expert_used_count",
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
)
# What files of some architectures have besides.
_MORE: dict[str, tuple[Callable[[Keys], dict[str, Any]], ...]] = {
    "qwen3moe": (experts.qwen3moe,),
    "olmoe": (experts.olmoe,),
    "gpt-oss": (experts.gpt_oss,),
    "granitemoe": (experts.granite,),
    "lfm2": (mixers.lfm2,),
    "lfm2moe": (mixers.lfm2, experts.lfm2moe),
    "qwen35": (mixers.qwen35,),
    "qwen35moe": (mixers.qwen35, experts.qwen35moe),
    "granitehybrid": (mixers.granite_hybrid, experts.granite),
    "nemotron_h": (mixers.nemotron_h,),
    "falcon-h1": (mixers.falcon_h1,),
    "gemma3n": (gemma3n,),
}
_LAYER_NORMS = (
    *("nemotron_h", "stablelm", "starcoder2"),
    *("command-r", "cohere2", "phi2", "gptneox"),
)
# Whose configuration in Hugging Face has a scaling of RoPE where none is given.
_SCALED_BY_DEFAULT = ("apertus", "gpt-oss")


def read_config(keys: Keys, factors: Mapping[str, Factors]) -> dict[str, Any]:
    """Read the configuration.

    Args:
        keys: of the file (of a split file, the first part's); its shapes are of all tensors, under
            Hugging Face's names.
        factors: tensors that scale RoPE, under llama.cpp's names.

    Raises:
        BadCheckpoint: a value is missing, of the wrong type or not supported.
    """
    return _Reader(keys, factors).config()


class _Reader:
    def __init__(self, keys: Keys, factors: Mapping[str, Factors]) -> None:
        self.keys = keys
        self.metadata = keys.metadata
        self.architecture = keys.architecture
        self.shapes = keys.shapes
        self.factors = factors
        self.row = ARCHITECTURES[keys.architecture]

    def config(self) -> dict[str, Any]:
        self.refuse_unsupported()
        layers = self.layer_count()
        hidden, heads = self.keys.size("embedding_length"), self.keys.size("attention.head_count")
        head_dim = self.head_dim(hidden, heads)
        context = self.keys.size("context_length", most=2**31 - 1)
        more: dict[str, Any] = {}
        for read in _MORE.get(self.architecture, ()):
            more |= read(self.keys)
        if self.architecture == "gemma4":
            more = gemma4(self.keys, self.factors)
        config = {
            "model_type": self.row.model_type,
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "head_dim": head_dim,
            "vocab_size": self.vocab_size(),
            "max_position_embeddings": context,
            "rms_norm_eps": self.epsilon(),
            "tie_word_embeddings": "lm_head.weight" not in self.shapes,
            "attention_bias": False,
            "mlp_bias": self.keys.has("mlp.down_proj.bias"),
            **{field: self.keys.has(bias) for field, bias in self.row.biases.items()},
            **self.row.fields,
            **self.rope(head_dim, context),
            **self.windows(layers),
            **self.scales(head_dim),
            **self.token_ids(),
            **more,
        }
        # Hybrids have arrays of these.
        if "intermediate_size" not in config:
            config["intermediate_size"] = self.keys.size("feed_forward_length")
        if "num_key_value_heads" not in config:
            config["num_key_value_heads"] = self.keys.size("attention.head_count_kv", heads)
        config |= self.variant(config, layers, hidden, heads, head_dim)
        # Elsewhere null and a missing field are the same.
        return {
            key: value
            for key, value in config.items()
            if value is not None or key == "sliding_window"
        }

    def variant(
        self, config: dict[str, Any], layers: int, hidden: int, heads: int, head_dim: int
    ) -> dict[str, Any]:
        """What only files of one architecture have."""
        if self.architecture in _GEMMA_27B:
            return self.gemma_scales(layers, hidden, heads, head_dim)
        if self.architecture == "olmo2" and config["sliding_window"]:
            return olmo3(config)
        if self.architecture == "mistral3":
            return ministral3(config)
        own: dict[str, Any] = {}
        if self.architecture in _LAYER_NORMS:
            own[FAMILIES[self.row.model_type].eps_field] = config["rms_norm_eps"]
        if self.architecture == "stablelm":
            parallel = not self.keys.has("post_attention_layernorm.weight")  # as in llama.cpp
            own["use_parallel_residual"] = parallel
        if self.architecture == "gptneox":
            stored = self.metadata.flag(self.keys.key("use_parallel_residual"))
            if stored is None:
                raise self.keys.missing("use_parallel_residual")
            own["use_parallel_residual"] = stored
        if self.architecture in ("command-r", "cohere2"):
            own["logit_scale"] = config.get("logit_scale") or 1.0  # 0 is none
        return own

    def epsilon(self) -> float:
        """The norms'; Nemotron-H's files, too, have the key of layer norms."""
        rms, other = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
        if self.architecture in _LAYER_NORMS and rms not in self.keys:
            return self.keys.number(other)
        return self.keys.number(rms)

    def scales(self, head_dim: int) -> dict[str, float]:
        values = {
            field: self.metadata.number(self.keys.key(key))
            for key, field in self.row.scales.items()
        }
        if values.get("attention_multiplier", 1.0) is None:  # as in llama.cpp
            values["attention_multiplier"] = head_dim**-0.5
        return {field: value for field, value in values.items() if value is not None}

    def refuse_unsupported(self) -> None:
        experts = ("expert_count", "expert_used_count")
        supported = experts if "ffn_gate_exps.weight" in self.row.joined else ()
        for name in set(_UNSUPPORTED) - {*self.row.scales, *supported}:
            value = self.metadata.values.get(self.keys.key(name))
            if value is not None and not (isinstance(value, int | float) and value == 0):
                models = "mixture-of-experts models of this architecture are"
                what = models if "expert" in name else "it is"
                raise BadCheckpoint(
                    f"{self.metadata.path}: {self.keys.key(name)} is set, and {what} not supported"
                )
        causal, pooling = self.keys.key("attention.causal"), self.keys.key("pooling_type")
        if self.metadata.flag(causal) is False:
            raise BadCheckpoint(
                f"{self.metadata.path} is an encoder ({causal} is false); only decoders are "
                "supported"
            )
        # 0 is none; llama.cpp writes others for embedding models and rerankers.
        if self.metadata.integer(pooling, 0):
            raise BadCheckpoint(
                f"{self.metadata.path} is an embedding model or a reranker ({pooling} is set); "
                "export an embedding model from its folder of sentence-transformers"
            )

    def layer_count(self) -> int:
        layers = self.keys.layers
        # Checked before anything is built per layer.
        names = (name.split(".") for name in self.shapes)
        present = {parts[2] for parts in names if parts[1:2] == ["layers"]}
        if not self.shapes:
            raise BadCheckpoint(
                f"{self.metadata.path} has no weights, only a vocabulary; use the model's file"
            )
        if layers > len(present):
            raise BadCheckpoint(
                f"{self.metadata.path}: {self.keys.key('block_count')} is {layers}, the file has "
                f"tensors of {len(present)} layers; download it again"
            )
        return layers

    def vocab_size(self) -> int:
        name = self.row.top.get("token_embd.weight", "model.embed_tokens.weight")
        shape = self.shapes.get(name, ())
        if len(shape) != 2:
            found = f"has shape {list(shape)}, expected two dimensions" if shape else "is missing"
            raise BadCheckpoint(
                f"{self.metadata.path}: the embedding token_embd.weight {found}; is this a "
                "complete file of a text model?"
            )
        return shape[0]

    def head_dim(self, hidden: int, heads: int) -> int:
        head_dim = self.keys.size("attention.key_length", max(1, hidden // heads))
        value_dim = self.keys.size("attention.value_length", head_dim)
        if value_dim != head_dim:
            raise BadCheckpoint(
                f"{self.metadata.path}: heads with {head_dim} key channels and {value_dim} value "
                "channels are not supported; they must be equal"
            )
        if head_dim % 2:
            raise BadCheckpoint(
                f"{self.metadata.path}: heads of {head_dim} channels, expected an even number"
            )
        return head_dim

    def rope(self, head_dim: int, context: int) -> dict[str, Any]:
        if not self.row.rotates:
            return {}
        theta = self.metadata.number(self.keys.key("rope.freq_base"), 10_000.0) or 10_000.0
        rotated = self.keys.size("rope.dimension_count", head_dim)
        partial = self.row.partial_rotation
        if rotated % 2 or rotated > head_dim or (rotated != head_dim and not partial):
            expected = "an even number up to" if partial else "the size of a head,"
            raise BadCheckpoint(
                f"{self.metadata.path}: {self.keys.key('rope.dimension_count')} is {rotated}, "
                f"expected {expected} {head_dim}"
            )
        scaling = rope_scaling(
            self.metadata,
            self.architecture,
            self.factors,
            theta=theta,
            dim=rotated,
            context=context,
        )
        if self.architecture in _SCALED_BY_DEFAULT and scaling is None:
            scaling = {"rope_type": "default"}
        if self.architecture == "gpt-oss" and scaling and scaling["rope_type"] == "yarn":
            scaling["truncate"] = False  # no key says so; all published models have it
        base_field, share_field = FAMILIES[self.row.model_type].rope_fields
        values: dict[str, Any] = {base_field: theta, "rope_scaling": scaling}
        if partial:
            values[share_field] = _ratio(rotated, head_dim)
        if scaling and scaling["rope_type"] == "longrope":
            original = scaling["original_max_position_embeddings"]
            values["original_max_position_embeddings"] = original
        if self.architecture in ("gemma3", "gemma3n"):
            base = self.metadata.number(self.keys.key("rope.freq_base_swa"), 10_000.0)
            values["rope_local_base_freq"] = base
        return values

    def windows(self, layers: int) -> dict[str, Any]:
        """Windows, where llama.cpp computes with them."""
        if self.row.windows == "none":
            return {}
        key = self.keys.key("attention.sliding_window")
        window = self.metadata.integer(key, 4096 if self.architecture == "gemma2" else None)
        if self.row.windows == "all":
            return {"sliding_window": window or None}
        if window is None and self.row.windows == "pattern":
            raise self.keys.missing("attention.sliding_window")
        slides = self.sliding_layers(layers) if window else [False] * layers
        kinds = ["sliding_attention" if local else "full_attention" for local in slides]
        if self.row.windows == "flags" and not any(slides):
            window = None  # EXAONE 4 then rotates every layer
        return {"sliding_window": window or None, "layer_types": kinds}

    def sliding_layers(self, layers: int) -> list[bool]:
        name = self.keys.key("attention.sliding_window_pattern")
        stored = self.metadata.values.get(name)
        if stored is not None and not isinstance(stored, int):
            flags = self.metadata.numbers(name, "b") or []
            if len(flags) != layers:
                raise self.metadata.wrong(name, f"one flag for each of {layers} layers")
            return flags
        pattern = self.metadata.integer(name, _PATTERNS[self.architecture])
        return [not pattern or layer % pattern < pattern - 1 for layer in range(layers)]

    def gemma_scales(self, layers: int, hidden: int, heads: int, head_dim: int) -> dict[str, Any]:
        large = layers == _GEMMA_27B[self.architecture]
        caps = ("attn_logit_softcapping", "final_logit_softcapping")
        return {
            "query_pre_attn_scalar": hidden // heads if large else head_dim,
            **{cap: self.metadata.number(self.keys.key(cap)) for cap in caps},
        }

    def token_ids(self) -> dict[str, int | None]:
        names = {"bos": "bos", "eos": "eos", "pad": "padding"}
        return {
            f"{ours}_token_id": token_id(self.metadata, theirs) for ours, theirs in names.items()
        }


def olmo3(config: Mapping[str, Any]) -> dict[str, Any]:
    """OLMo 3, which is OLMo 2 with windows; layers with a window have RoPE without scaling."""
    plain = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    scaled = plain | (config["rope_scaling"] or {})
    return {
        "model_type": "olmo3",
        "rope_parameters": {"full_attention": scaled, "sliding_attention": plain},
        "rope_theta": None,
        "rope_scaling": None,
    }


def ministral3(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ministral 3 if queries grow with their position, else Mistral Small 3: a Llama."""
    growth = config.get(_GROWTH)
    if growth is None:
        return {"model_type": "llama"}
    return {"rope_scaling": {**(config["rope_scaling"] or {}), _GROWTH: growth}, _GROWTH: None}


def token_id(metadata: GgufMetadata, name: str) -> int | None:
    """The id of a special token, e.g. `eos`; None if missing or -1 (all bits set)."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.values.get(key)
    if isinstance(value, int) and value in (-1, 2**32 - 1):
        return None
    return metadata.integer(key)


def _ratio(part: int, whole: int) -> float:
    """A ratio such that `int(ratio * whole)` is exactly `part`."""
    ratio = part / whole
    return ratio if int(ratio * whole) == part else math.nextafter(ratio, 1.0)
