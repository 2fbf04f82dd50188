"""Whether edgelm reads GGUF files as llama.cpp does.

    make peers && python -m bench.studies.agreement.gguf

Of every architecture a tiny random model is converted by llama.cpp's own converter. Its logits are
computed by transformers from the checkpoint, by llama.cpp from the file, and by transformers from
what edgelm reads of the file. Printed are the largest differences, relative to the largest logit.
"""

import argparse
import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from edgelm.bench.peers.install import converter, interpreter
from edgelm.checkpoint.source import open_checkpoint
from edgelm.compress.model import load_model
from tests.checkpoints.models import decide_clearly, soften_attention, tiny_model

_YARN: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}
_YARN |= {"original_max_position_embeddings": 32}
_PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
_GROWTH = {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
_NTK = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 1.0, "alpha": 1000.0}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0}
_LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_DELTA = {
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_value_head_dim": 16,  # that of keys
}
_NO_BIAS = dict.fromkeys(
    ("attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias"), False
)
_EVERY_FOURTH = (["sliding_attention"] * 3 + ["full_attention"]) * 16
# Tiny models have all biases; llama.cpp knows those of the published ones. Its EXAONE 4 has windows
# at 64 layers, and its HunYuan asks for a context that is published. It rounds where YaRN begins
# and ends, which the published gpt-oss does not.
_MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 16},  # the size of a head, as llama.cpp assumes
    "phi3": {"sliding_window": 128},  # llama.cpp does not apply a shorter one
    "granite": {},
    "smollm3": {},
    "arcee": {"mlp_bias": False},
    "ministral3": {"rope_parameters": _YARN | _GROWTH},
    "olmo2": {},
    "olmo3": {"rope_parameters": {"full_attention": _YARN, "sliding_attention": _PLAIN}},
    "exaone4": {"num_hidden_layers": 64, "layer_types": _EVERY_FOURTH},
    "seed-oss": {"attention_out_bias": False, "mlp_bias": False},
    "hunyuan": {
        "attention_bias": False,
        "max_position_embeddings": 32_768,
        "rope_parameters": _NTK,
    },
    "ernie4.5": {"use_bias": False},
    "glm4": {},
    "lfm2": {"conv_bias": False},
    "apertus": {"rope_parameters": _LLAMA3},
    "starcoder2": {"sliding_window": None},
    "stablelm": {},
    "stablelm-parallel": {},
    # Sizes that llama.cpp has as constants; it divides a variance by one number less.
    "gemma3n": {
        "num_hidden_layers": 25,
        "num_kv_shared_layers": 5,
        "layer_types": None,
        "laurel_rank": 64,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": 128,
        "activation_sparsity_pattern": None,
        "intermediate_size": 4096,
        "final_logit_softcapping": 30.0,
    },
    "cohere": {},
    "cohere2": {"attention_bias": False, "sliding_window": 64},
    "phi": {"num_key_value_heads": 4, "intermediate_size": 256},  # as its converter assumes
    "gpt-neox": {},
    "gpt-neox-sequential": {"attention_bias": True, "tie_word_embeddings": False},
    "gemma4": {"final_logit_softcapping": 30.0},  # which llama.cpp computes with if there is no key
    "gemma4-dense": {},
    "qwen3-moe": {"mlp_only_layers": []},
    "olmoe": {"num_key_value_heads": 4},
    "gpt-oss": {"swiglu_limit": 7.0, "rope_parameters": _PLAIN},
    "lfm2-moe": {"conv_bias": False, "routed_scaling_factor": 1.0},
    "granite-moe": {},
    "qwen3.5": _DELTA,
    "qwen3.5-moe": _DELTA,
    "granite-hybrid": {"mamba_proj_bias": False, "mamba_d_state": 32, "intermediate_size": 96},
    "granite-hybrid-moe": {"mamba_d_state": 32},
    "nemotron-h": {
        "mlp_bias": False,
        "use_bias": False,
        "ssm_state_size": 32,
        "mamba_head_dim": 16,
    },
    "falcon-h1": _NO_BIAS,
}
_OLDER_KINDS = {"linear_attention": "mamba", "full_attention": "attention"}
_LETTERS = {"linear_attention": "M", "full_attention": "*", "mlp": "-"}
_TOKENS = torch.arange(3, 43) * 7 % 120 + 3


def _logits(model: Any) -> np.ndarray:
    model.eval()
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        logits: np.ndarray = model(_TOKENS[None]).logits[0].numpy()
    return logits


def _save(name: str, folder: Path) -> None:
    model = tiny_model(name, **_MODELS[name])
    soften_attention(model)
    decide_clearly(model)
    with torch.no_grad():
        for parameter in model.base_model.layers.parameters():
            if parameter.ndim > 1:
                parameter *= 0.3  # else a rounding error grows tenfold on its way
    model.save_pretrained(folder)
    _write_published_config(name, folder)
    np.save(folder / "tokens.npy", _TOKENS.numpy())
    np.save(folder / "transformers.npy", _logits(model))


def _write_published_config(name: str, folder: Path) -> None:
    """Write layers as published configurations do, which the converter reads."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if name.startswith("granite-hybrid"):
        config["layer_types"] = [_OLDER_KINDS[kind] for kind in config["layer_types"]]
        config.pop("layers_block_type", None)
        config["num_experts_per_tok"] *= bool(config["num_local_experts"])
    if name == "cohere2":
        config["rotary_pct"] = 1.0
    if name.startswith("gpt-neox"):
        rope = config["rope_parameters"]
        config |= {"rotary_pct": rope["partial_rotary_factor"], "rope_theta": rope["rope_theta"]}
    if name == "nemotron-h":
        kinds = config.pop("layers_block_type", None) or config.pop("layer_types")
        config["hybrid_override_pattern"] = "".join(_LETTERS[kind] for kind in kinds)
        config["norm_eps"] = config["layer_norm_epsilon"]
        config["num_hidden_layers"] = len(kinds)
        mixture = ("n_group", "topk_group", "layer_types")
        config = {
            key: value
            for key, value in config.items()
            if "expert" not in key and not key.startswith("moe_") and key not in mixture
        }
    if name == "gemma3n":
        _add_unused_keys(folder, config)
    if name.startswith("gemma4"):
        config.setdefault("moe_intermediate_size", None)
    if name.startswith(("gemma3n", "gemma4")):
        words = {f"word {index}": index for index in range(config["vocab_size"])}
        tokenizer = {"model": {"vocab": words}, "added_tokens": []}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    path.write_text(json.dumps(config), encoding="utf-8")


def _add_unused_keys(folder: Path, config: dict[str, Any]) -> None:
    """Add keys and values to layers that share others, which published checkpoints have."""
    path, head = folder / "model.safetensors", config["head_dim"]
    sizes = (config["num_key_value_heads"] * head, config["hidden_size"])
    shapes = {"k_proj": sizes, "v_proj": sizes, "k_norm": (head,)}
    count = config["num_hidden_layers"]
    unused = {
        f"model.layers.{layer}.self_attn.{part}.weight": torch.ones(shape)
        for layer in range(count - config["num_kv_shared_layers"], count)
        for part, shape in shapes.items()
    }
    save_file(load_file(path) | unused, path, {"format": "pt"})


def main() -> None:
    """Print a row for every architecture."""
    program = Path(__file__).with_name("llama_cpp_logits.py")
    with TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in _MODELS}
        for name, folder in folders.items():
            _save(name, folder)
        command = [interpreter(), program, converter().parent, *folders.values()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"llama.cpp failed (make peers installs it):\n{done.stderr[-2000:]}")
        print("| model | llama.cpp | edgelm |\n|---|---:|---:|")
        for name, folder in folders.items():
            expected = np.load(folder / "transformers.npy")
            read = _logits(load_model(open_checkpoint(folder / "model.gguf")))
            errors = [
                np.abs(found - expected).max() / np.abs(expected).max()
                for found in (np.load(folder / "llama_cpp.npy"), read)
            ]
            print(f"| {name} | {errors[0]:.1g} | {errors[1]:.1g} |")


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    main()
