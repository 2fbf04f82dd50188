"""An evaluation as lines of text, as Markdown and as rows of a page."""

import math
from typing import NamedTuple

from edgelm.bench.evaluation.results.records import Evaluation
from edgelm.compress.evaluation.metrics import Difference
from edgelm.compress.evaluation.tasks.scores import Score

_LARGE = 1e7  # a perplexity beyond it is that of a broken model


class Line(NamedTuple):
    """One figure: its name, the model's value, the source's, and the difference."""

    name: str
    ours: str
    theirs: str
    difference: str
    verdict: str


def table_lines(evaluation: Evaluation) -> list[Line]:
    """A line per figure."""
    lines = []
    for result in evaluation.tasks:
        for name, score in result.figures.items():
            other, gap = result.against.get(name), result.differences.get(name)
            lines.append(
                Line(
                    name,
                    score_text(score),
                    "" if other is None else score_text(other),
                    "" if gap is None else difference_text(gap, score),
                    "" if gap is None else _verdict(gap, score),
                )
            )
    return lines


def score_text(score: Score) -> str:
    """A value with its standard error and count; shares in percent."""
    scale, unit, digits = _scale(score)
    error = "" if score.error is None else f" ± {_number(score.error * scale, digits)}"
    return f"{_number(score.value * scale, digits)}{error}{unit} (n {score.n:,})"


def difference_text(gap: Difference, score: Score) -> str:
    """A paired difference with its standard error."""
    if gap.ratio is not None and gap.ratio_error is not None:
        return f"×{_number(gap.ratio, 4)} ± {_number(gap.ratio_error, 4)}"
    scale, unit, digits = _scale(score)
    points = " points" if unit else ""
    return f"{gap.value * scale:+.{digits}f} ± {gap.error * scale:.{digits}f}{points}"


def _number(value: float, digits: int) -> str:
    """Digits after the point, or a power of ten where no digit before it says anything."""
    return f"{value:.2e}" if abs(value) >= _LARGE else f"{value:.{digits}f}"


def _verdict(gap: Difference, score: Score) -> str:
    if not gap.significant:
        return "no difference seen"
    return "better" if (gap.value > 0) == (score.better == "higher") else "worse"


def _scale(score: Score) -> tuple[float, str, int]:
    if score.is_share:
        return 100, "%", 1
    size = abs(score.value)
    if not 0 < size < 1:
        return 1, "", 2 if size else 4
    return 1, "", max(4, 1 - math.floor(math.log10(size)))  # two significant digits


def text_table(evaluation: Evaluation) -> str:
    """Aligned columns for a terminal."""
    head = Line("", evaluation.subject.name, "", "", "")
    if evaluation.against is not None:
        head = Line("", evaluation.subject.name, evaluation.against.name, "paired difference", "")
    rows = [head, *table_lines(evaluation)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def markdown_table(evaluation: Evaluation) -> str:
    """A table for a model card or a results page."""
    lines = ["| | model |", "|---|---:|"]
    if evaluation.against is not None:
        lines = ["| | model | source | paired difference | |", "|---|---:|---:|---:|---|"]
    for row in table_lines(evaluation):
        cells = row if evaluation.against is not None else row[:2]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
