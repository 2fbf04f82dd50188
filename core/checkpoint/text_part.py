"""The text decoder inside a multimodal checkpoint: its configuration and its tensors.

The decoder is taken and the towers for images are left out. Positions of text alone are the same in
all sections of a multimodal rotation (Qwen3-VL), so the decoder is then a plain one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edgelm.checkpoint.refused_models import REFUSED
from edgelm.checkpoint.weights.safetensors_header import StoredTensor
from edgelm.errors import BadCheckpoint, UnknownName
from edgelm.files.json_files import shown

Stored = Mapping[str, StoredTensor]


@dataclass(frozen=True)
class _Wrapper:
    """A multimodal `model_type`.

    text: the `model_type` of its decoder, where the configuration does not name one.
    tied: whether the head is the embedding, likewise.
    defaults: of the decoder's configuration class, beyond those of a model of text.
    """

    text: str
    tied: bool
    defaults: dict[str, Any] = field(default_factory=dict)


_WRAPPERS = {
    "gemma3": _Wrapper(
        "gemma3_text",
        True,
        {
            "num_attention_heads": 8,
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
        },
    ),
    "gemma3n": _Wrapper(
        "gemma3n_text",
        True,
        {
            "num_attention_heads": 8,
            "num_hidden_layers": 35,
            "hidden_size": 2048,
            "intermediate_size": 16_384,
            "vocab_size": 262_400,
        },
    ),
    "gemma4": _Wrapper(
        "gemma4_text",
        True,
        {
            "num_attention_heads": 8,
            "vocab_size": 262_144,
            "max_position_embeddings": 131_072,
        },
    ),
    "gemma4_unified": _Wrapper(
        "gemma4_unified_text",
        True,
        {
            "num_attention_heads": 8,
            "vocab_size": 262_144,
            "max_position_embeddings": 262_144,
        },
    ),
    "mistral3": _Wrapper("mistral", True),
    "qwen3_5": _Wrapper("qwen3_5_text", False),
    "qwen3_5_moe": _Wrapper("qwen3_5_moe_text", False),
    "qwen3_vl": _Wrapper("qwen3", False, {"rope_theta": 500_000.0}),
}
# Decoders that compute on text what another family does.
_SAME_AS = {"qwen3_vl_text": "qwen3"}
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_DECODER = re.compile(
    r"^(?:model\.)?language_model\.(?:model\.)?"
    r"(?=layers\.|norm\.|embed_tokens\.|embed_tokens_per_layer\.|per_layer_|altup_)"
)
_HEAD = re.compile(r"^language_model\.(?=lm_head\.)")
DRAFT_HEAD = "mtp"
_TOWERS = re.compile(
    r"^(?:model\.)?(mtp|vision_tower|multi_modal_projector|visual|vision_model|audio_tower"
    r"|embed_vision|vision_embedder|embed_audio)\."
)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the text decoder; a model of text alone is its own.

    Raises:
        UnknownName: a multimodal model whose decoder edgelm does not support.
        BadCheckpoint: `text_config` is not an object.
    """
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in REFUSED:
        raise UnknownName(f"config.json: {kind} is not supported: {REFUSED[kind]}")
    wrapper = _WRAPPERS.get(kind) if isinstance(kind, str) else None
    if wrapper is None:
        return dict(config)
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        raise BadCheckpoint(
            f"config.json: text_config is {shown(inner)}, expected the configuration of the text "
            f"decoder inside this {kind} model"
        )
    text = wrapper.defaults | {"model_type": wrapper.text} | inner
    if text["model_type"] in _SAME_AS:
        text["model_type"] = _SAME_AS[text["model_type"]]
    tied = config.get("tie_word_embeddings", inner.get("tie_word_embeddings", wrapper.tied))
    text["tie_word_embeddings"] = tied
    for name in _TOKEN_IDS:
        if text.get(name) is None and config.get(name) is not None:
            text[name] = config[name]
    return _without_sections(text)


class TextTensors(NamedTuple):
    """The decoder's tensors under the names of a model of text, and the modules left out.

    `draft_head` are tensors of one of these modules, by their names within it.
    """

    stored: Stored
    left_out: tuple[str, ...]
    draft_head: Stored


def text_tensors(stored: Stored) -> TextTensors:
    """Tensors of a multimodal checkpoint; those of a model of text pass through unchanged.

    Raises:
        BadCheckpoint: two tensors get the same name.
    """
    if not any(_DECODER.match(name) or name.startswith("mtp.") for name in stored):
        return TextTensors(stored, (), {})
    named: dict[str, StoredTensor] = {}
    draft_head: dict[str, StoredTensor] = {}
    left_out: dict[str, None] = {}
    for name, tensor in stored.items():
        if tower := _TOWERS.match(name):
            left_out[tower[1]] = None
            if tower[1] == DRAFT_HEAD:
                draft_head[name[tower.end() :]] = tensor
            continue
        ours = canonical_text_name(name)
        if ours in named:
            raise BadCheckpoint(f"{tensor.path} holds {shown(ours)} under two names; keep one")
        named[ours] = tensor
    return TextTensors(named, tuple(left_out), draft_head)


def canonical_text_name(name: str) -> str:
    """The name, in a model of text, of a tensor of the decoder in a multimodal one."""
    return _HEAD.sub("", _DECODER.sub("model.", name))


def _without_sections(text: dict[str, Any]) -> dict[str, Any]:
    """Without the sections of a multimodal rotation, which differ for images only."""
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(rope := text.get(name), dict):
            kept = {key: value for key, value in rope.items() if not key.startswith("mrope_")}
            if kept.get("rope_type", kept.get("type")) == "mrope":
                kept |= {"rope_type": "default"}
                kept.pop("type", None)
            text[name] = kept
    return text
