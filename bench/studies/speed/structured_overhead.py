"""What a grammar costs per token, at a vocabulary of 152,000 tokens.

    python -m bench.studies.speed.structured_overhead

A model of random weights, smaller than any published one with such a vocabulary, is exported to
int8 and generates with and without a JSON schema, in blocks of steps that alternate. The steps of a
larger model take longer, so its share is smaller.
"""

import argparse
import math
import random
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

import edgelm
from edgelm.export.pipeline import export_model
from edgelm.runtime import LanguageModel
from edgelm.runtime.generation.options import Options

VOCAB = 151_936  # Qwen's
_ROUNDS, _BLOCKS, _BLOCK_STEPS = 3, 8, 8
# It does not end; and a token is a step: none is drafted.
_ALL: Options = {"logit_bias": {VOCAB - 1: -math.inf}, "speculation": "off"}
_SAMPLINGS: dict[str, Options] = {
    "greedy": {**_ALL},
    "top-p": {**_ALL, "temperature": 1.0, "top_p": 0.9},
}
_SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 400},
        "count": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["title", "count", "tags"],
    "additionalProperties": False,
}


def large_tokenizer() -> Tokenizer:
    """A byte-level BPE of `VOCAB` - 1 random pieces of up to ten bytes, and an end token."""
    rng = random.Random(0)
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [piece for piece in pieces if piece.isascii() and piece.isalpha()]
    vocabulary, merges = {piece: at for at, piece in enumerate(pieces)}, []
    while len(vocabulary) < VOCAB - 1:
        # Mostly words of letters, as a real vocabulary's.
        left, right = rng.choice(pieces), rng.choice(letters if rng.random() < 0.8 else pieces)
        if len(left + right) <= 10 and left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
            pieces.append(left + right)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def save_source(folder: Path) -> None:
    """Save a random model of 8 layers with that vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=VOCAB - 1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    large_tokenizer().save(str(folder / "tokenizer.json"))


def compare(left: LanguageModel, right: LanguageModel, sampling: Options) -> tuple[float, float]:
    """Median milliseconds of a step without and with the schema, in blocks that alternate."""
    schema = {"type": "json_schema", "json_schema": {"schema": _SCHEMA, "strict": True}}
    bound: Options = {**sampling, "response_format": schema}
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        streams = [
            left.stream(list(range(300, 332)), **sampling),
            right.stream(list(range(300, 332)), **bound),
        ]
        for _ in range(_BLOCKS):
            for stream, seconds in zip(streams, times, strict=True):
                next(stream)  # reads what the other model has left in the processor's cache
                for _ in range(_BLOCK_STEPS):
                    started = time.perf_counter()
                    next(stream)
                    seconds.append(time.perf_counter() - started)
    free, constrained = (1e3 * median(seconds) for seconds in times)
    return free, constrained


def main() -> None:
    """Run the study."""
    with tempfile.TemporaryDirectory(prefix="edgelm-structured-") as folder:
        source, bundle = Path(folder) / "source", Path(folder) / "bundle"
        save_source(source)
        export_model(source, bundle, precision="int8", method="rtn", gate="off")
        with edgelm.load(bundle) as left, edgelm.load(bundle) as right:
            print("sampling  free ms  schema ms  overhead")
            for name, sampling in _SAMPLINGS.items():
                free, bound = compare(left, right, sampling)
                print(f"{name:8}  {free:7.2f}  {bound:9.2f}  {bound / free - 1:+8.1%}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    main()
