"""How long a prompt and a decode step take on a GPU, in a minute, where edge-bench takes many.

`python -m edgelm.bench.gpu_steps BUNDLE... [--transformers FOLDER]`: one engine after the other,
so that a difference of a few percent means nothing. FOLDER is the source as a Hugging Face folder,
for transformers with a static cache and torch.compile.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from edgelm.bench.engines.protocol import Engine, synthetic
from edgelm.bench.workload import Test, context_needed

_WARM, _STEPS = 8, 48


class Steps(NamedTuple):
    """Milliseconds of a prompt of `depth` tokens, and of a step after it (the median)."""

    depth: int
    prompt_ms: float
    step_ms: float


def measure_steps(engine: Engine, depths: list[int], vocab_size: int) -> Iterator[Steps]:
    """Measure a loaded engine; everything has run once before it counts."""
    tokens = synthetic(_WARM + _STEPS, vocab_size, seed=2).tolist()
    for depth in depths:
        prompt = synthetic(depth, vocab_size, seed=0)
        for _ in range(2):
            engine.reset()
            prompt_ms = _milliseconds(lambda prompt=prompt: engine.prefill(prompt))  # type: ignore[misc]
        steps = [_milliseconds(lambda token=token: engine.step(token)) for token in tokens]  # type: ignore[misc]
        yield Steps(depth, prompt_ms, median(steps[_WARM:]))


def _milliseconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def _engines(arguments: argparse.Namespace) -> Iterator[tuple[str, Engine, Path]]:
    from edgelm.bench.engines.edgelm_worker import EdgeLM

    for folder in arguments.bundles:
        yield folder.name, EdgeLM(), folder
    if arguments.transformers:
        from edgelm.bench.engines.static_cache_worker import StaticCacheTransformers

        yield "transformers", StaticCacheTransformers(), arguments.transformers


def main() -> None:
    """Print a row for every engine and depth."""
    parser = argparse.ArgumentParser(description="A quick look at speed on a GPU.")
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--transformers", type=Path, metavar="FOLDER")
    parser.add_argument("--depths", nargs="+", type=int, default=[512, 4096])
    arguments = parser.parse_args()
    tests = [Test("tg", _WARM + _STEPS, depth) for depth in arguments.depths]
    options = {"context": context_needed(tests), "threads": None}
    print("| engine | depth | prompt ms | step ms | tokens/s |\n|---|---:|---:|---:|---:|")
    for name, engine, path in _engines(arguments):
        loaded = engine.load({**options, "path": path})
        for one in measure_steps(engine, arguments.depths, loaded["vocab_size"]):
            rate = 1e3 / one.step_ms
            cells = f"{one.depth:,} | {one.prompt_ms:.1f} | {one.step_ms:.3f} | {rate:,.0f}"
            print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
