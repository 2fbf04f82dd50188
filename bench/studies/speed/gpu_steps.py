"""The time of a prompt and of a decode step on a GPU, in one minute instead of edge-bench's many.

    python -m bench.studies.speed.gpu_steps BUNDLE... [--transformers FOLDER]

One engine after the other, so that differences of a few percent are not significant. FOLDER is the
source as a Hugging Face folder, for transformers with a static cache and torch.compile.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from edgelm.bench.engines.protocol import Engine, synthetic
from edgelm.bench.gpu import measure_gpu
from edgelm.bench.workload import Test, context_needed

_WARM, _STEPS = 8, 48


class Steps(NamedTuple):
    """Milliseconds of a prompt of `depth` tokens, and of a step after it (the median)."""

    depth: int
    prompt_ms: float
    step_ms: float


def measure_steps(
    engine: Engine, depths: list[int], vocab_size: int, clock: Callable[[], float]
) -> Iterator[Steps]:
    """Measure a loaded engine after a warmup. The clock is in seconds."""
    tokens = synthetic(_WARM + _STEPS, vocab_size, seed=2).tolist()
    for depth in depths:
        prompt = synthetic(depth, vocab_size, seed=0)
        prompts = []
        for _ in range(2):
            engine.reset()
            start = clock()
            engine.prefill(prompt)
            prompts.append(clock() - start)
        steps = []
        for token in tokens:
            start = clock()
            engine.step(token)
            steps.append(clock() - start)
        yield Steps(depth, 1e3 * prompts[1], 1e3 * median(steps[_WARM:]))


def _engines(arguments: argparse.Namespace) -> Iterator[tuple[str, Engine, Path]]:
    from edgelm.bench.engines.edgelm_worker import EdgeLM

    for folder in arguments.bundles:
        yield folder.name, EdgeLM(), folder
    if arguments.transformers:
        from edgelm.bench.engines.static_cache_worker import StaticCacheTransformers

        yield "transformers", StaticCacheTransformers(), arguments.transformers


def main() -> None:
    """Print a row for every engine and depth."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.speed.gpu_steps",
        description="A quick look at prompts and decode steps on a GPU.",
    )
    add = parser.add_argument
    add("bundles", nargs="*", type=Path, help="bundles, one after the other")
    add("--transformers", type=Path, metavar="FOLDER", help="a Hugging Face folder to run as well")
    add("--depths", nargs="+", type=int, default=[512, 4096], help="default: 512 4096")
    arguments = parser.parse_args()
    tests = [Test("tg", _WARM + _STEPS, depth) for depth in arguments.depths]
    options = {"context": context_needed(tests), "threads": None}
    gpu = measure_gpu()
    where = f"{gpu.name}, moves {gpu.gb_s:,.0f} GB/s" if gpu else "no GPU"
    print(f"{where}; medians of {_STEPS} steps, context {options['context']:,}\n")
    print("| engine | version | depth | prompt ms | step ms | tokens/s |")
    print("|---|---|---:|---:|---:|---:|")
    for name, engine, path in _engines(arguments):
        loaded = engine.load({**options, "path": path})
        described = f"{name} | {loaded['version']}"
        for one in measure_steps(engine, arguments.depths, loaded["vocab_size"], time.perf_counter):
            cells = f"{one.depth:,} | {one.prompt_ms:.1f} | {one.step_ms:.3f}"
            print(f"| {described} | {cells} | {1e3 / one.step_ms:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
