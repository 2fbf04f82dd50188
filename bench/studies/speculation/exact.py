"""How often an answer with speculation differs from the one without.

    python -m bench.studies.speculation.exact BUNDLE... [--generations 250] [--tokens 60]
        [--mode auto] [--prompts PROMPTS.jsonl] [--always]

Prompts are random tokens with parts that occur again, so that drafts are tried and often rejected;
with `--prompts`, the `prompt` of each line of a file. `--always` drafts even where it is slower.
Each is answered greedily from an empty cache, with and without speculation; where an answer
differs, the probabilities of the two tokens at the first difference are printed.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgelm
from edgelm.runtime import LanguageModel, Reply
from edgelm.runtime.speculation.costs import SIZES, StepCosts
from edgelm.runtime.text.messages import Message
from edgelm.speculation import SpeculationMode

Prompt = Sequence[int] | Sequence[Message]


class FreeDrafts(StepCosts):
    """Costs by which drafting always pays, whatever is accepted."""

    def ratio(self, size: int) -> float:
        """Little enough to pay if nothing is accepted; short drafts pay best while few are."""
        return 0.4 + 0.1 * min(size, 4)

    def usable(self) -> list[int]:
        """All sizes."""
        return list(SIZES)

    def draft_ratio(self) -> float:
        """Nothing."""
        return 0.0


def prompt(lm: LanguageModel, seed: int) -> list[int]:
    """Random tokens, a part of which occurs twice and begins a third time."""
    rng = np.random.default_rng(seed)
    count = lm.session.vocab_size
    part = rng.integers(0, count, int(rng.integers(8, 40))).tolist()
    middle = rng.integers(0, count, int(rng.integers(1, 12))).tolist()
    return [*part, *middle, *part, *middle[:1], *part[: int(rng.integers(2, 8))]]


def answer(lm: LanguageModel, mode: SpeculationMode, question: Prompt, count: int) -> Reply:
    """A greedy answer from an empty cache."""
    lm.session.rewind(0)
    options: Any = {"temperature": 0, "speculation": mode, "max_tokens": count, "logprobs": 2}
    return lm.generate(question, **options)


def compare(
    folder: Path,
    mode: SpeculationMode,
    generations: int,
    count: int,
    *,
    prompts: Path | None = None,
    always: bool = False,
) -> str:
    """One line about a bundle."""
    different = drafted = accepted = tokens = 0
    questions = None if prompts is None else _questions(prompts)[:generations]
    generations = generations if questions is None else len(questions)
    with edgelm.load(folder, threads=1, speculation=mode) as lm:
        if always:
            lm._sequences.speculation.costs = FreeDrafts()
        for seed in range(generations):
            question: Prompt = prompt(lm, seed) if questions is None else questions[seed]
            plain, other = answer(lm, "off", question, count), answer(lm, mode, question, count)
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


def _questions(path: Path) -> list[list[Message]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[Message(role="user", content=json.loads(line)["prompt"])] for line in lines]


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
    parser.add_argument("--mode", default="auto", choices=["auto", "lookup", "draft"])
    parser.add_argument("--prompts", type=Path, help="instead of random tokens")
    parser.add_argument("--always", action="store_true", help="draft even where it is slower")
    arguments = parser.parse_args()
    for folder in arguments.bundles:
        line = compare(
            folder,
            arguments.mode,
            arguments.generations,
            arguments.tokens,
            prompts=arguments.prompts,
            always=arguments.always,
        )
        print(line, flush=True)


if __name__ == "__main__":
    main()
