"""A campaign: many cases of every kind, and a table of what came of them."""

import re
import sys
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.kinds import KINDS
from tests.fuzz.outcome import Outcome
from tests.fuzz.session import prepared, run

_REPORT_SECONDS = 5.0
_VARYING = re.compile(r"'[^']*'|\S*/\S*|[-+]?\d[\d.e+-]*|\[.*\]")


class Tally:
    """Counts of one kind, and an example of every failure by place."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.cases = 0
        self.verdicts: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self.examples: dict[str, Outcome] = {}
        self.seconds = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self.cases += 1
        self.verdicts[outcome.verdict] += 1
        if outcome.failed:
            place = where(outcome)
            self.places[place] += 1
            self.examples.setdefault(place, outcome)

    @property
    def failures(self) -> int:
        """Cases that must not end as they did."""
        return sum(self.places.values())


def where(outcome: Outcome) -> str:
    """What failures of one cause have in common."""
    if outcome.verdict == "exception":
        return f"{outcome.detail.partition(':')[0]} at {outcome.place}"
    if outcome.verdict == "wrong":
        return f"wrong: {_VARYING.sub('#', outcome.detail)[:80]}"
    return f"{outcome.verdict} at {outcome.place or 'an unknown place'}"


def campaign(
    kinds: list[str], seed: int, cases: int, *, jobs: int = 2, output: Path | None = None
) -> int:
    """Run `cases` of every kind, print progress, write the summary; 1 where any failed."""
    tallies = [_tally(name, seed, cases, jobs) for name in kinds]
    text = summary(tallies, seed)
    if output:
        output.write_text(text, encoding="utf-8")
    print(text)
    return 1 if any(tally.failures for tally in tallies) else 0


def _tally(name: str, seed: int, cases: int, jobs: int) -> Tally:
    tally = Tally(name)
    with prepared(KINDS[name]) as kind:
        started = shown = time.monotonic()
        for outcome in run(kind, seed, range(cases), jobs=jobs):
            tally.add(outcome)
            tally.seconds = time.monotonic() - started
            if time.monotonic() - shown > _REPORT_SECONDS or tally.cases == cases:
                shown = time.monotonic()
                line = f"{name}: {tally.cases} of {cases}, {tally.failures} failed"
                print(f"{line}, {tally.seconds:.0f} s", file=sys.stderr, flush=True)
    return tally


def summary(tallies: list[Tally], seed: int) -> str:
    """Markdown: a row a kind, then every place of failure with a case that shows it."""
    lines = [
        f"Seed {seed}. refused: an EdgeLMError. equal: opened, and as the independent reader says. "
        "other: opened, where a difference is legitimate or nothing can be compared.",
        "",
        "| kind | cases | refused | equal | other | failed | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_row(tally) for tally in tallies]
    failing = [tally for tally in tallies if tally.failures]
    if failing:
        lines += ["", "| kind | failures | place | example |", "|---|---:|---|---|"]
    for tally in failing:
        for place, count in tally.places.most_common():
            example = tally.examples[place]
            shown = f"case {example.case}: {example.detail} [{example.note}]".replace("|", "\\|")
            lines.append(f"| {tally.kind} | {count} | {place} | {shown} |")
    return "\n".join(lines) + "\n"


def _row(tally: Tally) -> str:
    counts = [tally.cases, *(tally.verdicts[name] for name in ("refused", "equal", "other"))]
    cells = [tally.kind, *(f"{count:,}" for count in (*counts, tally.failures))]
    return f"| {' | '.join(cells)} | {tally.seconds:.0f} |"
