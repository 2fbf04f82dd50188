"""A checkpoint of random weights in the shape of Llama-3.1-Minitron-4B-Width, in shards.

    python -m bench.studies.builds.big_checkpoint SOURCE OUT

To measure an export of a realistic size. The tokenizer is the source's, so that real text can be
used for calibration and the gate. It takes 9 GB on disk and is written layer by layer.
"""

import argparse
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from bench.studies.builds.random_checkpoint import save_random_checkpoint
from edgelm.checkpoint.source import open_checkpoint
from edgelm.export.bundle.text.tokenizer_files import write_tokenizer_files

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 3072,
    "intermediate_size": 9216,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def write_checkpoint(source: Path, folder: Path) -> int:
    """Write the checkpoint; returns its number of parameters."""
    parameters = save_random_checkpoint(AutoConfig.for_model(**CONFIG), folder)
    write_tokenizer_files(open_checkpoint(source), folder)
    return parameters


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="a model whose tokenizer is used")
    parser.add_argument("out", type=Path, help="folder of the checkpoint")
    given = parser.parse_args()
    print(f"{write_checkpoint(given.source, given.out):,} parameters")
