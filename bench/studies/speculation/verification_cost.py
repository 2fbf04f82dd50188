"""The time to verify several tokens in one run, compared with decoding one.

    python -m bench.studies.speculation.verification_cost BUNDLE [--depth 512] [--threads 2]

Milliseconds of runs of 1 to 16 tokens behind a prompt, with logits for each, after which the
session is as before. The sizes alternate, so that other work on the machine slows all of them.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from edgelm.bundle import read_manifest
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine

_SIZES = (1, 2, 4, 8, 16)
_ROUNDS, _WARM_UP = 60, 5


def run_seconds(session: EngineSession, depth: int) -> dict[int, float]:
    """Median seconds of a run by its number of tokens."""
    tokens = np.random.default_rng(0).integers(5, session.vocab_size, depth + max(_SIZES))
    session.advance(tokens[:depth])
    seconds: dict[int, list[float]] = {size: [] for size in _SIZES}
    for turn in range(_WARM_UP + _ROUNDS):
        for size, times in seconds.items():
            begun = time.perf_counter()
            session.advance(tokens[depth : depth + size], logits=size)
            if turn >= _WARM_UP:
                times.append(time.perf_counter() - begun)
            session.rewind(depth)
    return {size: statistics.median(times) for size, times in seconds.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="bench.studies.speculation.verification_cost")
    parser.add_argument("bundle", type=Path, help="a bundle for a CPU")
    parser.add_argument("--depth", type=int, default=512, help="tokens before (default: 512)")
    parser.add_argument("--threads", type=int, help="threads (default: physical cores)")
    options = parser.parse_args()
    manifest = read_manifest(options.bundle)
    limits = manifest.limits
    engine = OrtEngine(
        options.bundle,
        manifest.graph,
        capacity=limits.context,
        prefill_chunk=limits.prefill_chunk,
        threads=options.threads,
    )
    with EngineSession(engine) as session:
        seconds = run_seconds(session, options.depth)
    print(f"| tokens | ms at depth {options.depth} | times one |\n|---:|---:|---:|")
    for size, found in seconds.items():
        print(f"| {size} | {1e3 * found:.1f} | {found / seconds[1]:.2f} |")


if __name__ == "__main__":
    main()
