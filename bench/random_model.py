"""Decoders of random weights as Hugging Face folders: shapes to measure, not models to talk to."""

from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from edgelm.quantize.precision import KvType

_CONTEXT = 2048


class RandomShape(NamedTuple):
    """A Llama-like shape and how it is exported."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocabulary: int
    precision: str
    kv: KvType

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.hidden}x{self.ffn} {self.precision}"


def save_random_model(shape: RandomShape, folder: Path) -> Path:
    """Write a checkpoint in bf16 with tied embeddings and a tokenizer of single bytes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    disable_progress_bar()
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    save_byte_tokenizer(folder)
    return folder


def save_byte_tokenizer(folder: Path) -> None:
    """Write a `tokenizer.json` of single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
