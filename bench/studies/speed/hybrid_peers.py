"""Hybrids and mixtures beside llama.cpp and onnxruntime-genai, from one random checkpoint each.

    edge-bench --setup-peers
    python -m bench.studies.speed.hybrid_peers prepare lfm2-350m FOLDER
    python -m bench.studies.speed.hybrid_peers measure lfm2-350m FOLDER

`prepare` writes a checkpoint in the shape of a published model, with its vocabulary, and what each
engine reads: bundles of int4 (in groups of 128, and of 32) and int8, GGUF files of Q4_0 and Q8_0
(every matrix, also the output, in that type), and a folder of onnxruntime-genai's builder in int4.
Peers have a scale per 32 weights. `--files int4 Q4_0.gguf` prepares or measures these alone.

Where a peer cannot convert the checkpoint, `prepare` prints its message. `measure` runs them round
by round, so that a slow moment of the machine affects all of them, each in a process of its own.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from bench.studies.builds.random_checkpoint import save_random_checkpoint
from edgelm.bench.machine import describe_machine
from edgelm.bench.measure import Samples, measure
from edgelm.bench.peers.conversions import build_genai, convert_to_gguf, quantize_gguf
from edgelm.bench.peers.engines import MeasuredEngine
from edgelm.bench.peers.install import interpreter
from edgelm.bench.random_model import save_byte_tokenizer
from edgelm.bench.workload import context_needed, workload
from edgelm.errors import EdgeLMError
from edgelm.export.pipeline import export_model

# Like LiquidAI/LFM2-350M and Qwen/Qwen3.5-0.8B (its text part), not compared with their files. The
# mixture has the proportions of Qwen/Qwen3-30B-A3B at half its width, with half the experts.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2-350m": (
        "lfm2",
        {
            "hidden_size": 1024,
            "block_ff_dim": 6656,
            "block_auto_adjust_ff_dim": True,
            "block_ffn_dim_multiplier": 1.0,
            "block_multiple_of": 256,
            "intermediate_size": 6656,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "conv_L_cache": 3,
            "layer_types": [
                "full_attention" if layer in (2, 5, 8, 10, 12, 14) else "conv"
                for layer in range(16)
            ],
            "vocab_size": 65536,
            "max_position_embeddings": 128000,
        },
    ),
    "qwen3.5-0.8b": (
        "qwen3_5_text",
        {
            "hidden_size": 1024,
            "intermediate_size": 3584,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 16,
            "linear_conv_kernel_dim": 4,
            "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 6,
            "vocab_size": 248320,
            "max_position_embeddings": 262144,
        },
    ),
    "qwen3-moe-1b": (
        "qwen3_moe",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "moe_intermediate_size": 384,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
        },
    ),
}
_TESTS = workload([512], [64], [0, 512])
_BUNDLES: dict[str, tuple[str, int | None]] = {  # precision and group size; int4's own is 128
    "int4": ("int4", None),
    "int4-g32": ("int4", 32),
    "int8": ("int8", 32),
}
_FILE_TYPES = ("Q4_0", "Q8_0")
FILES = {  # of each engine, in the folder of a shape: the engine's name in the table, its worker
    **{name: (f"edgelm {name}", "edgelm_worker") for name in _BUNDLES},
    **{f"{kind}.gguf": (f"llama.cpp {kind}", "llama_cpp_worker") for kind in _FILE_TYPES},
    "genai": ("onnxruntime-genai int4", "genai_worker"),
}


def prepare(shape: str, folder: Path, files: Sequence[str]) -> None:
    """Write the checkpoint and these of the `FILES`; those that are there stay."""
    source = folder / "checkpoint"
    if not source.exists():
        kind, values = SHAPES[shape]
        config = AutoConfig.for_model(kind, **values, tie_word_embeddings=True, dtype="bfloat16")
        save_random_checkpoint(config, source)
        save_byte_tokenizer(source)
    # One sequence of bytes, for the scales of the cache: speed does not depend on them.
    text = folder / "calibration.jsonl"
    text.write_text(json.dumps({"text": "The miller waits for the wind. " * 20}), encoding="utf-8")
    for name, (precision, group_size) in _BUNDLES.items():
        if name in files and not (bundle := folder / name).exists():
            export_model(
                source,
                bundle,
                precision=precision,
                group_size=group_size,
                context=context_needed(_TESTS),
                method="rtn",
                gate="none",  # of random weights: a gate would take most of the time
                calibration=text,
                work=folder / "work",
                progress=partial(print, flush=True),
            )
    half = folder / "source.gguf"
    kinds = [kind for kind in _FILE_TYPES if f"{kind}.gguf" in files]
    if kinds:
        _try(half, lambda to: convert_to_gguf(source, to, "bf16", vocabulary=False))
    for kind in kinds if half.exists() else ():
        _try(folder / f"{kind}.gguf", partial(quantize_gguf, half, kind=kind, pure=True))
    if "genai" in files:
        _try(folder / "genai", partial(build_genai, source))


def _try(target: Path, make: Callable[[Path], None]) -> None:
    """Make a peer's file or folder, or print why that does not work."""
    if target.exists():
        return
    try:
        make(target)
    except EdgeLMError as error:
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        print(f"{target.name}: {error}", flush=True)


def engines(folder: Path, files: Sequence[str]) -> Iterator[MeasuredEngine]:
    """Those of these files that `prepare` could make."""
    for file in files:
        if (path := folder / file).exists():
            name, worker = FILES[file]
            python = None if worker == "edgelm_worker" else interpreter()
            yield MeasuredEngine(
                name, f"edgelm.bench.engines.{worker}", python, partial(Path, path)
            )


def row(samples: Samples) -> str:
    """Tokens/s: the median of the rounds; of a decode, of all its tokens."""
    prompts = [statistics.median(times) for times in samples.prefill_ms.values()]
    steps = [statistics.median(chain.from_iterable(runs)) for runs in samples.steps_ms.values()]
    figures = [512e3 / ms for ms in prompts] + [1e3 / ms for ms in steps]
    peak = samples.memory["peak_rss_bytes"] / 1e6
    cells = [f"{figure:.1f}" for figure in figures]
    return f"| {samples.engine.name} | {' | '.join(cells)} | {peak:,.0f} |"


def main() -> None:
    """Prepare the files of a shape, or measure them and print the table."""
    parser = argparse.ArgumentParser(prog="bench.studies.speed.hybrid_peers")
    parser.add_argument("action", choices=("prepare", "measure"))
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--files", nargs="+", choices=list(FILES), default=list(FILES), help="only these"
    )
    parser.add_argument("--threads", type=int, default=2, help="of each engine (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="after a warm-up (default: 3)")
    given = parser.parse_args()
    folder = given.folder / given.shape
    if given.action == "prepare":
        prepare(given.shape, folder, given.files)
        return
    results, failed = measure(
        list(engines(folder, given.files)),
        _TESTS,
        rounds=given.rounds,
        context=context_needed(_TESTS),
        threads=given.threads,
        quality=None,
    )
    print(describe_machine(given.threads).summary)
    print("| engine | prompt 512 (tok/s) | decode (tok/s) | decode at 512 (tok/s) | peak MB |")
    print("|---|---:|---:|---:|---:|")
    for samples in results:
        print(row(samples))
    for one in failed:
        print(f"{one.name}: {one.reason}")


if __name__ == "__main__":
    main()
