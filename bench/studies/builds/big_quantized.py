"""The checkpoint of big_checkpoint with its layers in AWQ, and what its export needs.

    python -m bench.studies.builds.big_quantized SOURCE OUT [--layers N] [--export BUNDLE]

Writes 3.6 GB: random levels in groups of 128, embedding and head in bf16. `--export BUNDLE` then
writes its graph for a CPU and prints the peak of anonymous memory; the gate's passes run the model
and are not part of it. Layers are read and written one by one, so that fewer of them (`--layers`)
peak at the same.
"""

import argparse
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.studies.builds.big_checkpoint import CONFIG
from edgelm.checkpoint.source import open_checkpoint
from edgelm.export.bundle.text.tokenizer_files import write_tokenizer_files

_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
_HIDDEN, _FFN, _HEADS, _KV, _VOCAB = 3072, 9216, 32 * 128, 8 * 128, 128_256
_LAYER = {
    "self_attn.q_proj": (_HEADS, _HIDDEN),
    "self_attn.k_proj": (_KV, _HIDDEN),
    "self_attn.v_proj": (_KV, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _HEADS),
    "mlp.gate_proj": (_FFN, _HIDDEN),
    "mlp.up_proj": (_FFN, _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _FFN),
}


def write_quantized(source: Path, folder: Path, layers: int) -> None:
    """Write the checkpoint with the tokenizer of another."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = CONFIG | {"quantization_config": _AWQ, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer_files(open_checkpoint(source), folder)
    places: dict[str, str] = {}
    for name, tensors in _shards(layers):
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(layers: int) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    for name in ("model.embed_tokens", "lm_head"):
        table = torch.full((_VOCAB, _HIDDEN), 0.02, dtype=torch.bfloat16)
        yield f"{name}.safetensors", {f"{name}.weight": table}
    yield "norm.safetensors", {"model.norm.weight": torch.ones(_HIDDEN, dtype=torch.bfloat16)}
    for index in range(layers):
        prefix = f"model.layers.{index}"
        tensors = {
            f"{prefix}.{norm}.weight": torch.ones(_HIDDEN, dtype=torch.bfloat16)
            for norm in ("input_layernorm", "post_attention_layernorm")
        }
        for module, (rows, columns) in _LAYER.items():
            groups = columns // 128
            words = {"qweight": (columns, rows // 8), "qzeros": (groups, rows // 8)}
            for part, shape in words.items():
                levels = torch.randint(-(2**31), 2**31, shape, dtype=torch.int64)
                tensors[f"{prefix}.{module}.{part}"] = levels.int()
            scales = torch.full((groups, rows), 0.004, dtype=torch.float16)
            tensors[f"{prefix}.{module}.scales"] = scales
        yield f"layer-{index:02}.safetensors", tensors


def export_and_measure(folder: Path, bundle: Path) -> float:
    """Export for a CPU without running the model; the peak of anonymous memory in GB."""
    from edgelm.devices.kernels import KERNELS
    from edgelm.export.graph.write import GraphFormat, write_graph
    from edgelm.export.precision.source import assign_source
    from edgelm.export.quantize.quantizer import Quantizer
    from edgelm.export.quantize.weights import Weights
    from edgelm.quantize.precision import Fp32

    peak = [0.0]

    def watch() -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            used = next(line for line in status.splitlines() if line.startswith("RssAnon"))
            peak[0] = max(peak[0], float(used.split()[1]) / 1e6)
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    checkpoint = open_checkpoint(folder)
    found = assign_source(checkpoint, KERNELS["onnxruntime"], ["int4", "int8"], Fp32())
    bundle.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    quantizer = Quantizer(Weights(checkpoint))
    written = write_graph(
        bundle, quantizer, found.assignment, GraphFormat("ort", "fp32", "fp32", 4096)
    )
    print(
        f"{len(quantizer.taken_over)} of {len(found.assignment)} matrices taken over, "
        f"{written.weight_bytes / 1e9:.2f} GB written in {time.monotonic() - started:.0f} s"
    )
    return peak[0]


def main() -> None:
    """Write the checkpoint, or export it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    arguments = parser.parse_args()
    if arguments.export is None:
        write_quantized(arguments.source, arguments.folder, arguments.layers)
        return
    print(
        f"peak of anonymous memory {export_and_measure(arguments.folder, arguments.export):.2f} GB"
    )


if __name__ == "__main__":
    main()
