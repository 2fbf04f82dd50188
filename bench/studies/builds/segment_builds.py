"""Memory and time that TensorRT-RTX takes to compile a graph whole, and cut into segments.

    python -m bench.studies.builds.segment_builds minitron-4b OUT -n 1 2 4 8

Writes the graph of a shape with random int4 weights, compiles it ahead of time for a GPU, which
need not be there, and prints a row for each number of segments. Every segment is compiled in a
process of its own; with `--together`, one process compiles all of them.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.studies.builds.compile_parts import Build
from bench.studies.builds.random_weights import RandomQuantizer, RandomWeights, random_checkpoint
from edgelm.bundle import GraphContract
from edgelm.devices.kernels import KERNELS
from edgelm.devices.tensorrt_versions import RTX
from edgelm.export.graph.write import GraphFormat, write_graph
from edgelm.export.precision.legalize import legalize
from edgelm.quantize.precision import Int4

_LLAMA = {
    "model_type": "llama",
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "hidden_act": "silu",
    "vocab_size": 128_256,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        **_LLAMA,
        "head_dim": 64,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "vocab_size": 49_152,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "minitron-4b": {**_LLAMA, "hidden_size": 3072, "intermediate_size": 9216},
    "llama-8b": {**_LLAMA, "hidden_size": 4096, "intermediate_size": 14_336},
}


def write(shape: str, folder: Path, segments: int, *, context: int, dialect: str) -> GraphContract:
    """Write a shape's graph in int4, groups of 64."""
    weights = RandomWeights(random_checkpoint(SHAPES[shape]))
    columns = {group: weights.columns(group) for group in weights.groups()}
    int4 = dict.fromkeys(columns, Int4(group_size=64, symmetric=True))
    form = GraphFormat(dialect, "fp16", "fp16", context, segments=segments)
    folder.mkdir(parents=True, exist_ok=True)
    quantizer = RandomQuantizer(weights, positive_scales=True)
    return write_graph(folder, quantizer, legalize(int4, columns, KERNELS[RTX]), form).contract


def _compile_apart(folder: Path, numbers: Sequence[int], sm: int) -> Build:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "bench.studies.builds.compile_parts", str(folder), str(sm)]
    command += [str(number) for number in numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Build(*json.loads(done.stdout))


def _row(folder: Path, contract: GraphContract, sm: int, *, together: bool) -> str:
    numbers = range(len(contract.parts))
    groups = [list(numbers)] if together else [[number] for number in numbers]
    builds = [_compile_apart(folder, group, sm) for group in groups]
    weights = (folder / contract.data).stat().st_size
    largest = max((part.weight_bytes for part in contract.segments), default=weights)
    peak = max(build.peak_bytes for build in builds)
    return (
        f"| {len(contract.parts)} | {weights / 1e6:,.0f} | {largest / 1e6:,.0f} | "
        f"{sum(build.engine_bytes for build in builds) / 1e6:,.0f} | {peak / 1e6:,.0f} | "
        f"{peak / weights:.2f} | {sum(build.seconds for build in builds):.1f} |"
    )


def main() -> None:
    """Print a row for every number of segments."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.builds.segment_builds",
        description="Memory and time to compile a graph in segments.",
    )
    add = parser.add_argument
    add("shape", nargs="?", choices=SHAPES, help="what to compile")
    add("output", nargs="?", type=Path, help="folder for graphs, removed by you")
    add("-n", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of segments")
    add("--context", type=int, default=4096, help="tokens the cache holds")
    add("--dialect", default="standard", help="standard or decomposed")
    add("--sm", type=int, default=89, help="compute capability, times ten")
    add("--together", action="store_true", help="compile all segments in one process")
    given = parser.parse_args()
    print("| segments | weights MB | largest MB | engines MB | peak MB | of weights | s |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for count in given.n:
        folder = given.output / f"{given.shape}-{count}"
        contract = write(given.shape, folder, count, context=given.context, dialect=given.dialect)
        (folder / "graph.json").write_bytes(msgspec.json.encode(contract))
        print(_row(folder, contract, given.sm, together=given.together), flush=True)


if __name__ == "__main__":
    main()
