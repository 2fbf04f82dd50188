"""What it gains to embed several texts in one run, and how far their vectors are from single ones.

    python -m bench.studies.sequences.embedding_batches BUNDLE [--tokens 4,8,16,32,64] [--texts 64]

For each number of tokens, and for lengths that are mixed evenly up to the largest, the same texts
run together and one by one, in turns. Times are of the processor, which other work on the machine
changes little.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

import edgelm
from edgelm.runtime import LanguageModel

Texts = list[npt.NDArray[np.int64]]


def random_texts(lengths: list[int], vocab_size: int) -> Texts:
    """Tokens without a meaning, of these lengths."""
    random = np.random.default_rng(0)
    return [random.integers(4, vocab_size, count) for count in lengths]


def seconds(work: Callable[[], object]) -> float:
    """The processor time of a call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(together: LanguageModel, alone: LanguageModel, texts: Texts, rounds: int) -> str:
    """Milliseconds per text of both ways, their ratio, and the largest cosine distance."""
    ours, theirs = together.embed(texts), alone.embed(texts)
    distance = float((1 - (ours.astype(np.float64) * theirs).sum(1)).max())
    equal = int((ours == theirs).all(1).sum())
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for lm, found in zip((together, alone), times, strict=True):
            found.append(seconds(partial(lm.embed, texts)))
    fast, slow = (1e3 * statistics.median(found) / len(texts) for found in times)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    return (
        f"{fast:8.3f} {slow:8.3f} {ratio:6.2f}   {equal} of {len(texts)} equal, "
        f"distance {max(0.0, distance):.1g}"
    )


def main() -> None:
    """Print a line for each number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", default="4,8,16,32,64")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    counts = [int(one) for one in given.tokens.split(",")]
    with (
        edgelm.load(given.bundle, threads=given.threads) as together,
        edgelm.load(given.bundle, threads=given.threads, batching=False) as alone,
    ):
        vocab = together.manifest.spec.vocab_size
        print("tokens   ms together, alone; ratio")
        for count in counts:
            texts = random_texts([count] * given.texts, vocab)
            print(f"{count:6}", compare(together, alone, texts, given.rounds), flush=True)
        mixed = [1 + number * max(counts) // given.texts for number in range(given.texts)]
        texts = random_texts(mixed, vocab)
        print(" mixed", compare(together, alone, texts, given.rounds), flush=True)


if __name__ == "__main__":
    main()
