"""Progress lines of an export."""

import time
from collections import Counter
from collections.abc import Callable, Mapping

from edgelm.bundle.records.behavior import Behavior
from edgelm.bundle.records.gates import Figures
from edgelm.perplexity import ratio_text
from edgelm.quantize.precision import WeightPrecision, describe

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
    """The gate's three figures, with their standard errors where they are known."""
    kl = "" if figures.kl_error is None else f" ± {figures.kl_error:.4f}"
    top1 = "" if figures.top1_error is None else f" ± {100 * figures.top1_error:.1f}"
    error = figures.perplexity_ratio_error
    ratio = "" if error is None else f" ± {error:.3f}" if error < 1e6 else f" ± {error:.1e}"
    return (
        f"KL {figures.kl:.4f}{kl}, top-1 {figures.top1:.1%}{top1}, perplexity "
        f"{ratio_text(figures.perplexity_ratio)}{ratio}"
    )


def behavior_text(behavior: Behavior) -> str:
    """The shares of sampled answers, source and bundle, with the error of their difference."""
    shares = ", ".join(
        f"{one.trait} {one.source:.0%} → {one.bundle:.0%} (± {100 * one.error:.0f})"
        for one in behavior.traits
    )
    verdict = "passed" if behavior.passed else "failed"
    return f"behavior of {behavior.prompts} sampled answers: {shares}: {verdict}"


def summary(assignment: Mapping[str, WeightPrecision]) -> str:
    """How many groups have which precision."""
    counts = Counter(describe(precision) for precision in assignment.values())
    return " + ".join(f"{count} × {name}" for name, count in sorted(counts.items()))
