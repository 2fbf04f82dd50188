"""What several sequences of one model gain, and what a saved state saves.

    python -m bench.studies.sequences.several_sequences BUNDLE [--sequences 4] [--prompt 4096]

Rounds with one generation and with several alternate, so that other work on the machine slows both.
"""

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import edgelm
from edgelm.runtime import LanguageModel
from edgelm.runtime.saved.session_file import read_session, write_session

_TOKENS = 40
_ROUNDS = 6
_PROMPT = 32


def decode_rates(lm: LanguageModel, sequences: int) -> tuple[list[float], list[float]]:
    """Tokens per second of one generation, and of several together, in alternating rounds."""
    ends = {token: float("-inf") for token in lm.eos_token_ids}
    prompts = np.random.default_rng(1).integers(5, lm.session.vocab_size, (sequences, _PROMPT))

    def generate(prompt: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
        lm.generate(prompt, max_tokens=_TOKENS, logit_bias=ends, speculation="off")

    def rate(pool: ThreadPoolExecutor, count: int) -> float:
        started = time.perf_counter()
        list(pool.map(generate, prompts[:count]))
        return count * _TOKENS / (time.perf_counter() - started)

    with ThreadPoolExecutor(sequences) as pool:
        rate(pool, sequences)  # warm-up: the prompts are in the caches afterwards
        pairs = [(rate(pool, 1), rate(pool, sequences)) for _ in range(_ROUNDS)]
    return [one for one, _ in pairs], [several for _, several in pairs]


def restore_seconds(bundle: str, length: int) -> tuple[float, float, float, int]:
    """Seconds to prefill a prompt, to save its state, and to restore it; and the file's size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.session"
        with edgelm.load(bundle) as lm:
            tokens = np.random.default_rng(2).integers(5, lm.session.vocab_size, length).tolist()
            prefill = _seconds_of_first_token(lm, tokens)
            started = time.perf_counter()
            held, state = lm.snapshot(tokens)
            saved = write_session(path, lm.identity, held, state)
            save = time.perf_counter() - started
        with edgelm.load(bundle) as lm:
            started = time.perf_counter()
            header, state = read_session(path, lm.identity)
            lm.preload(header.tokens, state)
            _seconds_of_first_token(lm, tokens)
            restore = time.perf_counter() - started
    return prefill, save, restore, saved.bytes


def _seconds_of_first_token(lm: LanguageModel, tokens: list[int]) -> float:
    started = time.perf_counter()
    lm.generate(tokens, max_tokens=1)
    return time.perf_counter() - started


def main(bundle: str, sequences: int, prompt: int) -> None:
    """Print both."""
    with edgelm.load(bundle, sequences=sequences) as lm:
        one, several = (statistics.median(rates) for rates in decode_rates(lm, sequences))
        length = min(prompt, lm.context - 1)
    print(f"decode: 1 sequence {one:.1f} tokens/s, {sequences} together {several:.1f}")
    print(f"ratio: {several / one:.2f}")
    prefill, save, restore, size = restore_seconds(bundle, length)
    print(f"{length} tokens: prefill {prefill:.2f} s, save {save:.2f} s ({size / 1e6:.1f} MB)")
    print(f"restore and first token {restore:.3f} s, ratio {prefill / restore:.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=4096)
    given = parser.parse_args()
    main(given.bundle, given.sequences, given.prompt)
