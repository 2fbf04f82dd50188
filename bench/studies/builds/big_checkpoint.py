"""A checkpoint of random weights in the shape of Llama-3.1-Minitron-4B-Width, in shards.

    python -m bench.studies.builds.big_checkpoint SOURCE OUT

To measure an export of a realistic size. The tokenizer is the source's, so that real text can be
used for calibration and the gate. Tensors are written one by one: 9 GB on disk, half a gigabyte in
memory.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from edgelm.checkpoint.source import open_checkpoint
from edgelm.export.bundle.text.tokenizer_files import write_tokenizer_files

CONFIG = {
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
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    write_tokenizer_files(open_checkpoint(source), folder)
    hidden, ffn, heads, kv = 3072, 9216, 32 * 128, 8 * 128
    shards: dict[str, dict[str, tuple[int, ...]]] = {
        "model-embedding": {"model.embed_tokens.weight": (128_256, hidden)},
        "model-head": {"lm_head.weight": (128_256, hidden), "model.norm.weight": (hidden,)},
    }
    for index in range(32):
        prefix = f"model.layers.{index}."
        shards[f"model-layer-{index:02}"] = {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_proj.weight": (heads, hidden),
            f"{prefix}self_attn.k_proj.weight": (kv, hidden),
            f"{prefix}self_attn.v_proj.weight": (kv, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, heads),
            f"{prefix}mlp.gate_proj.weight": (ffn, hidden),
            f"{prefix}mlp.up_proj.weight": (ffn, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, ffn),
        }
    places, parameters = {}, 0
    for name, shapes in shards.items():
        tensors = {key: _random(shape) for key, shape in shapes.items()}
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, f"{name}.safetensors"))
        parameters += sum(tensor.numel() for tensor in tensors.values())
    index_file = {"metadata": {"total_size": 2 * parameters}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    return parameters


def _random(shape: tuple[int, ...]) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="a model whose tokenizer is used")
    parser.add_argument("out", type=Path, help="folder of the checkpoint")
    given = parser.parse_args()
    print(f"{write_checkpoint(given.source, given.out):,} parameters")
