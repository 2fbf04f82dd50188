"""Whether edgelm reads GGUF files as llama.cpp does.

    make peers && python -m bench.studies.gguf_agreement

Of every architecture a tiny random model is converted by llama.cpp's own converter. Its logits are
computed by transformers from the checkpoint, by llama.cpp from the file, and by transformers from
what edgelm reads of the file. Printed are the largest differences, relative to the largest logit.
"""

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from edgelm.bench.peers.install import converter, interpreter
from edgelm.checkpoint.source import open_checkpoint
from edgelm.compress.model import load_model
from tests.checkpoints.models import tiny_model

_YARN: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}
_YARN |= {"original_max_position_embeddings": 32}
_PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
_GROWTH = {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
_NTK = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 1.0, "alpha": 1000.0}
_EVERY_FOURTH = (["sliding_attention"] * 3 + ["full_attention"]) * 16
# Tiny models have all biases; llama.cpp knows those of the published ones. Its EXAONE 4 has windows
# at 64 layers, and its HunYuan asks for a context that is published.
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
}
_TOKENS = torch.arange(3, 43) * 7 % 120 + 3


def _logits(model: Any) -> np.ndarray:
    model.eval()
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        logits: np.ndarray = model(_TOKENS[None]).logits[0].numpy()
    return logits


def _save(name: str, folder: Path) -> None:
    model = tiny_model(name, **_MODELS[name])
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.ndim > 1:
                parameter *= 0.3  # else a rounding error grows tenfold on its way
    model.save_pretrained(folder)
    np.save(folder / "tokens.npy", _TOKENS.numpy())
    np.save(folder / "transformers.npy", _logits(model))


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
    main()
