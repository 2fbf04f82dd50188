"""What an export says of itself while it runs."""

import time
from collections import Counter
from collections.abc import Callable, Mapping

from edgelm.gates import Figures
from edgelm.precision import WeightPrecision, describe

Progress = Callable[[str], None]


class Timed:
    """Progress lines with the seconds since the start; updates at most one in two."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.start = self.last = time.monotonic()

    def __call__(self, line: str) -> None:
        self.last = time.monotonic()
        self.progress(f"[{self.last - self.start:5.1f} s] {line}")

    def update(self, line: str) -> None:
        if time.monotonic() - self.last >= 2.0:
            self(line)


def figures_text(figures: Figures) -> str:
    """The gate's three figures."""
    return (
        f"KL {figures.kl:.4f}, top-1 {figures.top1:.1%}, perplexity ×{figures.perplexity_ratio:.3f}"
    )


def summary(assignment: Mapping[str, WeightPrecision]) -> str:
    """How many groups have which precision."""
    counts = Counter(describe(precision) for precision in assignment.values())
    return " + ".join(f"{count} × {name}" for name, count in sorted(counts.items()))
