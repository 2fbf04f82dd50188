"""Assistants of tiny Gemma 4 models, random, and what they draft, of Transformers' own classes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma4AssistantConfig,
    Gemma4AssistantForCausalLM,
    Gemma4TextConfig,
)

from tests.checkpoints.models import randomize
from tests.checkpoints.tiny_chat import save_tiny_chat

_SLIDING, _FULL = "sliding_attention", "full_attention"
_CONTEXT, _WEIGHTS = "max_position_embeddings", "model.safetensors"


@contextmanager
def all_layers_shared() -> Iterator[None]:
    """Let Transformers 5.23 build decoders whose layers all read other caches.

    Its check that a layer of each kind stores keys refuses these, which assistants are.
    """
    checked: Any = Gemma4TextConfig.kv_sharing_modes

    def modes(config: Any) -> list[str | None]:
        if config.num_kv_shared_layers == config.num_hidden_layers:
            return ["reuse"] * config.num_hidden_layers
        found: list[str | None] = checked.fget(config)
        return found

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
        assistant: Any = Gemma4AssistantForCausalLM(found)
    randomize(assistant, seed=seed)
    if centroids is not None:
        order = torch.randperm(config["vocab_size"], generator=torch.Generator().manual_seed(seed))
        assistant.masked_embedding.token_ordering.copy_(order)
    assistant.save_pretrained(folder)
    return folder


class TorchAssistant:
    """A model and its assistant, as Transformers computes them, without caches of their own."""

    def __init__(self, model: Path, assistant: Path) -> None:
        options: Any = {"trust_remote_code": False, "attn_implementation": "eager"}
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, **options)
        with all_layers_shared():
            self.assistant: Any = Gemma4AssistantForCausalLM.from_pretrained(assistant, **options)
        self.window = self.model.config.sliding_window

    @torch.no_grad()
    def logits(self, history: list[int], count: int) -> torch.Tensor:
        """Logits [count, vocab_size] of the tokens that it drafts behind a history.

        The windowed layers read as many rows as Transformers' cache holds after a run of one token.
        """
        past, position = torch.tensor(history[:-1])[None], torch.tensor([[len(history) - 1]])
        cache: Any = DynamicCache()
        hidden = self.model.model(past, past_key_values=cache).last_hidden_state[:, -1:]
        kinds = self.model.config.layer_types[: len(cache.layers)]
        pairs = zip(kinds, cache.layers, strict=True)
        shared: dict[str, Any] = {kind: (one.keys, one.values) for kind, one in pairs}
        shared[_SLIDING] = tuple(one[:, :, -self.window :] for one in shared[_SLIDING])
        token, found = torch.tensor(history[-1:])[None], []
        for _ in range(count):
            embedded = self.model.get_input_embeddings()(token)
            given = self.assistant(
                inputs_embeds=torch.cat([embedded, hidden], dim=-1),
                position_ids=position,
                shared_kv_states=shared,
            )
            found.append(given.logits[0, 0])
            token, hidden = given.logits.argmax(-1), given.last_hidden_state
        return torch.stack(found)

    def propose(self, history: list[int], count: int) -> list[int]:
        """The tokens that it drafts."""
        tokens: list[int] = self.logits(history, count).argmax(-1).tolist()
        return tokens


def save_certain(folder: Path, *, context: int = 256) -> tuple[Path, Path]:
    """A tiny Gemma 4, and an assistant that is always right.

    The layers of both add nothing to the embedding of the last token.
    """
    options: dict[str, Any] = {"vocab_size_per_layer_input": 320, "tie_word_embeddings": False}
    model = save_tiny_chat(folder / "model", "gemma4", context=context, **options)
    assistant = save_assistant(
        folder / "assistant", model, text={"hidden_size": 64}, tie_word_embeddings=False
    )
    ours, theirs = (load_file(one / _WEIGHTS) for one in (model, assistant))
    for name, tensor in (*ours.items(), *theirs.items()):
        if name.endswith(("o_proj.weight", "down_proj.weight", "per_layer_projection.weight")):
            tensor.zero_()
        if name.endswith(("post_attention_layernorm.weight", "layer_scalar")):
            tensor.fill_(1.0)
    size = len(ours["model.norm.weight"])
    for name in ("lm_head.weight", "model.norm.weight"):
        theirs[name] = ours[name].clone()
    theirs["pre_projection.weight"] = torch.eye(size, 2 * size)
    save_file(ours, model / _WEIGHTS, {"format": "pt"})
    save_file(theirs, assistant / _WEIGHTS, {"format": "pt"})
    return model, assistant
