"""The time to verify several tokens in one run, and the acceptance that a draft needs to pay.

    python -m bench.studies.speculation.verification_cost BUNDLE
        [--depths 128,512] [--drafts FOLDER...] [--threads 2]

Milliseconds of runs of 1 to 16 tokens behind a prompt, with logits for each, after which the
session is as before. With `--drafts` (bundles), also those of a run of one token of each, and the
share of drafted tokens that must be accepted for a gain of 1.3. All runs alternate, so that other
work on the machine slows all of them.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edgelm.bundle import read_manifest
from edgelm.runtime.engines.open import open_session
from edgelm.runtime.engines.session import Session
from edgelm.speculation import expected_tokens

_SIZES = (1, 2, 3, 4, 5, 7, 8, 16)
_DRAFTED = (1, 2, 3, 4, 6)
_ROUNDS, _WARM_UP = 60, 5
_GAIN = 1.3


def open_bundle(folder: Path, threads: int | None) -> Session:
    """A session on a bundle that may hold its whole context."""
    manifest = read_manifest(folder)
    return open_session(folder, manifest, capacity=manifest.limits.context, threads=threads)


def run_seconds(
    target: Session, drafts: Sequence[Session], depth: int
) -> tuple[dict[int, float], list[float]]:
    """Median seconds of a run of the target by its number of tokens, and of one of each draft."""
    tokens = np.random.default_rng(0).integers(5, target.vocab_size, depth + max(_SIZES))
    work = [*((target, size) for size in _SIZES), *((draft, 1) for draft in drafts)]
    for session in (target, *drafts):
        session.rewind(0)
        session.advance(tokens[:depth] % session.vocab_size)
    seconds = np.empty((_WARM_UP + _ROUNDS, len(work)))
    for turn in seconds:
        for number, (session, size) in enumerate(work):
            begun = time.perf_counter()
            session.advance(tokens[depth : depth + size] % session.vocab_size, logits=size)
            turn[number] = time.perf_counter() - begun
            session.rewind(depth)
    medians = [statistics.median(times) for times in seconds[_WARM_UP:].T]
    return dict(zip(_SIZES, medians, strict=False)), medians[len(_SIZES) :]


def needed_acceptance(cost: float, drafted: int, gain: float = _GAIN) -> float | None:
    """The share of accepted tokens that gives `gain` if a run with its drafts costs `cost`."""
    shares = (step / 1000 for step in range(1001))
    return next((s for s in shares if expected_tokens(s, drafted) / cost >= gain), None)


def _print_draft(name: str, ratios: dict[int, float], ratio: float) -> None:
    """What acceptance a draft needs, whose run takes `ratio` of the target's."""
    print(f"\n{name}: a run takes {ratio:.3f} of one of the target\n")
    print(f"| drafted | runs | tokens per run for {_GAIN}× | accepted |\n|---:|---:|---:|---:|")
    for drafted in _DRAFTED:
        cost = ratios[drafted + 1] + drafted * ratio
        needed = needed_acceptance(cost, drafted)
        share = "more than all" if needed is None else f"{needed:.0%}"
        print(f"| {drafted} | {cost:.2f} | {_GAIN * cost:.2f} | {share} |")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--depths", type=_numbers, default=[512], help="tokens before")
    parser.add_argument("--drafts", type=Path, nargs="+", default=[])
    parser.add_argument("--threads", type=int, help="threads (default: physical cores)")
    options = parser.parse_args()
    with ExitStack() as stack:
        target, *drafts = (
            stack.enter_context(open_bundle(folder, options.threads))
            for folder in (options.bundle, *options.drafts)
        )
        for depth in options.depths:
            seconds, others = run_seconds(target, drafts, depth)
            ratios = {size: found / seconds[1] for size, found in seconds.items()}
            print(f"\n| tokens | ms at depth {depth} | times one |\n|---:|---:|---:|")
            for size, ratio in ratios.items():
                print(f"| {size} | {1e3 * seconds[size]:.1f} | {ratio:.2f} |")
            for folder, found in zip(options.drafts, others, strict=True):
                _print_draft(folder.name, ratios, found / seconds[1])


if __name__ == "__main__":
    main()
