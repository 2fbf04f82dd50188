"""How often an answer with speculation differs from the one without.

    python -m bench.studies.speculation_exact BUNDLE... [--generations 250] [--tokens 60]

Prompts are random tokens with parts that occur again, so that drafts are tried and often rejected.
Each is answered greedily from an empty cache, with and without speculation; where an answer
differs, the probabilities of the two tokens at the first difference are printed.
"""

import argparse
from pathlib import Path

import numpy as np

import edgelm
from edgelm.runtime import LanguageModel, Reply
from edgelm.speculation import SpeculationMode


def prompt(lm: LanguageModel, seed: int) -> list[int]:
    """Random tokens, a part of which occurs twice and begins a third time."""
    rng = np.random.default_rng(seed)
    count = lm.session.vocab_size
    part = rng.integers(0, count, int(rng.integers(8, 40))).tolist()
    middle = rng.integers(0, count, int(rng.integers(1, 12))).tolist()
    return [*part, *middle, *part, *middle[:1], *part[: int(rng.integers(2, 8))]]


def answer(lm: LanguageModel, mode: SpeculationMode, tokens: list[int], count: int) -> Reply:
    """A greedy answer from an empty cache."""
    lm.session.rewind(0)
    return lm.generate(tokens, temperature=0, speculation=mode, max_tokens=count, logprobs=2)


def compare(folder: Path, mode: SpeculationMode, generations: int, count: int) -> str:
    """One line about a bundle."""
    different = drafted = accepted = tokens = 0
    with edgelm.load(folder, threads=1) as lm:
        for seed in range(generations):
            ids = prompt(lm, seed)
            plain, other = answer(lm, "off", ids, count), answer(lm, mode, ids, count)
            drafted += other.timings.drafted
            accepted += other.timings.accepted
            tokens += len(other.tokens)
            if plain.tokens != other.tokens:
                different += 1
                _print_difference(seed, plain, other)
    return (
        f"{folder.name}: {different} of {generations} answers differ; {tokens} tokens, "
        f"{drafted} drafted, {accepted} accepted"
    )


def _print_difference(seed: int, plain: Reply, other: Reply) -> None:
    pairs = zip(plain.chunks, other.chunks, strict=False)
    for number, (one, two) in enumerate(pairs):
        if one.token != two.token:
            best = [round(top.logprob, 4) for top in one.top_logprobs]
            print(f"  seed {seed}, token {number}: the two best had {best}")
            return


def main() -> None:
    """Print a line for each bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--generations", type=int, default=250)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--mode", default="auto", choices=["auto", "lookup"])
    arguments = parser.parse_args()
    for folder in arguments.bundles:
        print(compare(folder, arguments.mode, arguments.generations, arguments.tokens), flush=True)


if __name__ == "__main__":
    main()
