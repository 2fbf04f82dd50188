"""The time of a Mamba-2 decoder, compared with one with attention of the same size.

    python -m bench.studies.speed.mamba_step [--precision int8]

Eight layers in the shape of Granite 4 H 350M, seven of them with Mamba-2, and eight layers of
attention whose matrices have as many values; random weights, a small vocabulary, one thread.
Printed are processor times: the best of 150 tokens, and of two prompts of 512.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgelm.checkpoint.source import open_checkpoint
from edgelm.quantize.precision import PRECISIONS
from tests.export import graphs

_LAYERS, _PROMPT, _TOKENS = 8, 512, 150
_COMMON: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": _LAYERS,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
_HYBRID: dict[str, Any] = {
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "shared_intermediate_size": 2048,
    "num_local_experts": 0,
    "layer_types": ["linear_attention"] * (_LAYERS - 1) + ["full_attention"],
    "mamba_n_heads": 48,
    "mamba_d_head": 32,
    "mamba_d_state": 128,
    "mamba_n_groups": 1,
}
# 768 x 3,376 and 1,536 x 768 values of a Mamba layer.
_ATTENTION: dict[str, Any] = {
    "num_attention_heads": 28,
    "num_key_value_heads": 7,
    "head_dim": 64,
}
_MODELS = {
    "hybrid": ("granitemoehybrid", _COMMON | _HYBRID),
    "attention": ("granite", _COMMON | _ATTENTION),
}


def _best(run: Callable[[int], object], times: int) -> float:
    """Milliseconds of processor time."""
    seconds = []
    for number in range(times):
        begun = time.process_time()
        run(number)
        seconds.append(time.process_time() - begun)
    return 1e3 * min(seconds)


def measure(name: str, folder: Path, precision: str) -> str:
    """A row of the table."""
    kind, values = _MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **values)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.save_pretrained(folder / "model")
    checkpoint = open_checkpoint(folder / "model")
    tokens = np.random.default_rng(0).integers(3, 1000, _PROMPT)
    graph = folder / "graph"
    built = graphs.build_session(checkpoint, graph, PRECISIONS[precision], chunk=_PROMPT)
    with built as session:

        def prompt(_: int) -> None:
            session.rewind(0)
            session.advance(tokens)

        prompt_ms = _best(prompt, 2)
        step_ms = _best(lambda at: session.advance(tokens[at : at + 1]), _TOKENS)
    nodes = len(onnx.load(graph / "model.onnx", load_external_data=False).graph.node)
    return f"| {name} | {step_ms:.1f} | {prompt_ms:,.0f} | {nodes} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="bench.studies.speed.mamba_step")
    parser.add_argument("--precision", default="int8", help="of the weights (default: int8)")
    precision = parser.parse_args().precision
    graphs.CONTEXT = 1024
    print("| layers | decode step (ms) | prompt of 512 (ms) | nodes |\n|---|---:|---:|---:|")
    for name in _MODELS:
        with TemporaryDirectory() as folder:
            print(measure(name, Path(folder), precision), flush=True)


if __name__ == "__main__":
    main()
