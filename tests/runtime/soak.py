"""Many short generations on a tiny model, in threads, with cancelled ones: memory must be flat.

python -m tests.runtime.soak BUNDLE [GENERATIONS]

200,000 stand for a day of an assistant.
"""

import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import edgelm
from edgelm.runtime import LanguageModel

THREADS = 4
PROMPTS = [f"{number} The miller waits" for number in range(50)]


def soak(
    lm: LanguageModel, generations: int, report: Callable[[int, float], None] = lambda *_: None
) -> list[float]:
    """Generate in four threads; return the process's memory in MB, twenty times.

    `report` is called with each of them, and about how many generations were made before it.
    """
    sizes: list[float] = []
    failed: list[BaseException] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        for done in range(generations // THREADS):
            try:
                _one(lm, chance)
            except BaseException as error:
                failed.append(error)
                return
            if number == 0 and done % (generations // THREADS // 20) == 0:
                sizes.append(_rss_mb())
                report(done * THREADS, sizes[-1])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sizes


def _one(lm: LanguageModel, chance: random.Random) -> None:
    kind = chance.random()
    prompt, seed = chance.choice(PROMPTS), chance.randrange(1 << 30)
    if kind < 0.8:
        lm.generate(prompt, max_tokens=2, temperature=1.0, seed=seed)
    elif kind < 0.9:
        stream = lm.stream(prompt, max_tokens=20)
        next(stream)
        stream.cancel()
        stream.read()
    elif kind < 0.95:
        next(lm.stream(prompt))  # dropped
    else:
        lm.chat("Be brief.").send(prompt, max_tokens=2).read()


def _rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1e3
    return float("nan")


def main(bundle: str, generations: int) -> None:
    """Print the time and the memory on the way."""
    started = time.perf_counter()

    def report(done: int, size: float) -> None:
        print(f"{done:7,} after {time.perf_counter() - started:5.0f} s: {size:.1f} MB", flush=True)

    with edgelm.load(bundle, threads=1, sequences=2) as lm:
        sizes = soak(lm, generations, report)
        sizes.append(_rss_mb())
        assert (lm.running, lm.waiting) == (0, 0)
    print(f"{generations} generations in {time.perf_counter() - started:.0f} s")
    print("memory (MB):", " ".join(f"{size:.1f}" for size in sizes))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200_000)
