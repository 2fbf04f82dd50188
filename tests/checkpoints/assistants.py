"""Assistants of tiny Gemma 4 models, random, and what they draft, of Transformers' own classes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import (
    Gemma4AssistantConfig,
    Gemma4AssistantForCausalLM,
    Gemma4TextConfig,
)

from tests.checkpoints.models import randomize

_SLIDING, _FULL = "sliding_attention", "full_attention"
_CONTEXT = "max_position_embeddings"


@contextmanager
def all_layers_shared() -> Iterator[None]:
    """Let Transformers 5.23 build decoders whose layers all read other caches.

    Its check that a layer of each kind stores keys refuses these, which assistants are.
    """
    checked = Gemma4TextConfig.kv_sharing_modes

    def modes(config: Any) -> list[str | None]:
        if config.num_kv_shared_layers == config.num_hidden_layers:
            return ["reuse"] * config.num_hidden_layers
        return checked.fget(config)  # type: ignore[no-any-return]

    with patch.object(Gemma4TextConfig, "kv_sharing_modes", property(modes)):
        yield


def save_assistant(
    folder: Path,
    model: Path,
    *,
    seed: int = 1,
    centroids: tuple[int, int] | None = None,
    text: dict[str, Any] | None = None,
    **over: Any,
) -> Path:
    """Save an assistant of a saved model.

    Args:
        folder: where to.
        model: the model's folder.
        seed: of its weights.
        centroids: their number, and how many are active; None: logits of all tokens.
        text: fields of its decoder that differ.
        over: other fields of its configuration.
    """
    config = json.loads((model / "config.json").read_text())
    dense = config["num_kv_shared_layers"] == 0
    own = {
        "model_type": "gemma4_text",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "layer_types": [_SLIDING, _SLIDING, _FULL, _FULL],
        "num_kv_shared_layers": 4,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
        "final_logit_softcapping": 3.0,  # which Transformers does not compute for assistants
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "global_head_dim": 32,
        **({"attention_k_eq_v": True, "num_global_key_value_heads": 1} if dense else {}),
        **{name: config[name] for name in ("vocab_size", "sliding_window", _CONTEXT)},
    }
    named: dict[str, Any] = {"backbone_hidden_size": config["hidden_size"]}
    if centroids is not None:
        named |= {"use_ordered_embeddings": True, "num_centroids": centroids[0]}
        named |= {"centroid_intermediate_top_k": centroids[1]}
    torch.manual_seed(seed)
    found = Gemma4AssistantConfig(text_config=own | (text or {}), **(named | over))
    with all_layers_shared():
        assistant = Gemma4AssistantForCausalLM(found)
    randomize(assistant, seed=seed)
    if centroids is not None:
        order = torch.randperm(config["vocab_size"], generator=torch.Generator().manual_seed(seed))
        assistant.masked_embedding.token_ordering.copy_(order)
    assistant.save_pretrained(folder)
    return folder
