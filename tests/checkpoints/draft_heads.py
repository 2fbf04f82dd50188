"""Draft heads of tiny Qwen3.5 checkpoints, and what they compute, of Transformers' own layers."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5DecoderLayer,
    Qwen3_5RMSNorm,
    Qwen3_5TextRotaryEmbedding,
)

from tests.checkpoints.models import randomize
from tests.checkpoints.tiny_chat import save_tiny_chat

WEIGHTS = "model.safetensors"


class TorchHead(torch.nn.Module):
    """A draft head, as vLLM's `qwen3_5_mtp.py` describes it, that computes all pairs at once."""

    def __init__(self, source: Path) -> None:
        super().__init__()
        config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
        config._attn_implementation = "eager"
        size, attends = config.hidden_size, config.layer_types.index("full_attention")
        self.fc = torch.nn.Linear(2 * size, size, bias=False)
        self.layers = torch.nn.ModuleList([Qwen3_5DecoderLayer(config, attends)])
        self.norm = Qwen3_5RMSNorm(size, config.rms_norm_eps)
        self.pre_fc_norm_embedding = Qwen3_5RMSNorm(size, config.rms_norm_eps)
        self.pre_fc_norm_hidden = Qwen3_5RMSNorm(size, config.rms_norm_eps)
        self._rotary = Qwen3_5TextRotaryEmbedding(config)
        tensors = load_file(source / WEIGHTS)
        self._table = tensors["model.embed_tokens.weight"]
        self._output = tensors.get("lm_head.weight", self._table)

    def load(self, source: Path) -> "TorchHead":
        """Take its weights from the checkpoint."""
        own = {
            name.removeprefix("mtp."): tensor
            for name, tensor in load_file(source / WEIGHTS).items()
            if name.startswith("mtp.")
        }
        self.load_state_dict(own)
        return self.eval()

    @torch.no_grad()
    def forward(self, tokens: list[int], hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [T, vocab_size] and hidden states [T, H] of pairs of tokens and hidden [T, H]."""
        embedded = self.pre_fc_norm_embedding(self._table[torch.tensor(tokens)])
        x = self.fc(torch.cat([embedded, self.pre_fc_norm_hidden(hidden)], dim=-1))[None]
        count = len(tokens)
        mask = torch.full((count, count), float("-inf")).triu(1)[None, None]
        positions = torch.arange(count)[None]
        x = self.layers[0](
            x,
            position_embeddings=self._rotary(x, positions[None]),
            attention_mask=mask,
            position_ids=positions,
        )
        states = self.norm(x)[0]
        return states @ self._output.T, states


def save_with_draft_head(folder: Path, *, context: int = 256, seed: int = 0, **over: Any) -> Path:
    """A tiny Qwen3.5 with a random draft head."""
    source = save_tiny_chat(folder, "qwen3.5", context=context, **over)
    head = TorchHead(source)
    randomize(head, seed=seed)
    store_head(source, head)
    return source


def store_head(source: Path, head: TorchHead) -> None:
    """Write a head's weights beside those of its model."""
    own = {f"mtp.{name}": one.contiguous() for name, one in head.state_dict().items()}
    tensors = {name: one for name, one in load_file(source / WEIGHTS).items() if name not in own}
    save_file(tensors | own, source / WEIGHTS, {"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"mtp_num_hidden_layers": 1}
    (source / "config.json").write_text(json.dumps(config))


def save_certain(folder: Path, *, context: int = 256) -> Path:
    """A tiny Qwen3.5 whose draft head is always right.

    The layers of both add nothing to the embedding of the last token, and the head's input is that
    of the token that it is given.
    """
    source = save_with_draft_head(folder, context=context)
    tensors = load_file(source / WEIGHTS)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
            tensor.zero_()
        if name.startswith("mtp.pre_fc_norm"):
            tensor.zero_()
    size = len(tensors["mtp.norm.weight"])
    tensors["mtp.norm.weight"] = tensors["model.norm.weight"].clone()
    tensors["mtp.fc.weight"] = torch.eye(size, 2 * size)
    save_file(tensors, source / WEIGHTS, {"format": "pt"})
    return source
