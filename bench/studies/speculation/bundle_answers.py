"""Answers that a bundle gives to prompts, as training data for its draft model.

    python -m bench.studies.speculation.bundle_answers BUNDLE PROMPTS.jsonl --out ANSWERS.jsonl
        [--sequences 8] [--tokens 160] [--minutes 10]

`[synthesize]` writes the same with the checkpoint; here the quantized bundle itself answers, so
that the draft learns from text of the model that it will draft for. Each line of PROMPTS has a
`prompt`. Each line of ANSWERS is a conversation (`messages`). Sampled at temperature 1, top-p 0.95,
several prompts at a time. An existing file is continued after the prompts that it answers.
"""

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import edgelm
from edgelm.runtime import LanguageModel

_LEAST_TOKENS = 16  # a shorter answer has little to learn from


def prompts(path: Path, done: set[str]) -> Iterator[str]:
    """The prompts of a file that are not answered yet, in its order."""
    for line in path.read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)["prompt"]
        if prompt not in done:
            yield prompt


def answered(path: Path) -> set[str]:
    """The prompts that a file answers."""
    if not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["messages"][0]["content"] for line in lines}


def answer(lm: LanguageModel, prompt: str, tokens: int, seed: int) -> tuple[str, int]:
    """A sampled answer, and its number of tokens."""
    messages: Any = [{"role": "user", "content": prompt}]
    options: Any = {"temperature": 1.0, "top_p": 0.95, "top_k": 0, "speculation": "off"}
    reply = lm.generate(messages, max_tokens=tokens, seed=seed, **options)
    return reply.text, len(reply.tokens)


def main() -> None:
    """Write the answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    done = answered(arguments.out)
    end = time.monotonic() + 60 * arguments.minutes
    written = 0
    with (
        edgelm.load(
            arguments.bundle, threads=arguments.threads, sequences=arguments.sequences
        ) as lm,
        arguments.out.open("a", encoding="utf-8") as out,
        ThreadPoolExecutor(arguments.sequences) as pool,
    ):

        def one(pair: tuple[int, str]) -> tuple[str, str, int] | None:
            seed, prompt = pair
            if time.monotonic() > end:
                return None
            return prompt, *answer(lm, prompt, arguments.tokens, seed)

        for result in pool.map(one, enumerate(prompts(arguments.prompts, done), len(done))):
            if result is None or result[2] < _LEAST_TOKENS:
                continue
            prompt, text, count = result
            messages = [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": text},
            ]
            out.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
            out.flush()
            written += count
    print(f"{written} tokens of answers in {arguments.out}")


if __name__ == "__main__":
    main()
