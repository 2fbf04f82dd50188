"""The plots of a report; one that has nothing to show is left out."""

from edgelm.bench.report.records import Report, Result
from edgelm.bench.report.selection import (
    engines,
    is_own,
    own_results,
    test_of,
    typical_decode,
    typical_prompt,
)
from edgelm.bench.report.statistics import outliers
from edgelm.bench.report.verdict import READING_TOKENS_PER_SECOND
from edgelm.page.axes import Axis
from edgelm.page.bar_chart import Bar, horizontal_bars
from edgelm.page.svg import Plot
from edgelm.page.xy_plot import Guide, Series, xy_plot

_MIN_KL = 1e-5  # a logarithmic axis has no zero


def plots(report: Report) -> list[Plot]:
    """Speed against quality first, then speed by depth, prompts and memory."""
    drawn = (
        _speed_by_quality(report),
        _speed_by_depth(report),
        _prompts(report),
        _memory(report),
    )
    return [plot for plot in drawn if plot]


def _speed_by_quality(report: Report) -> Plot | None:
    typical = typical_decode(own_results(report) or list(report.results))
    if typical is None:
        return None
    # An engine without a figure keeps its place, and so its color in every plot.
    series = [
        _quality_point(name, tests.get(typical.test)) for name, tests in engines(report).items()
    ]
    if not any(one.points for one in series):
        return None
    guides = []
    if report.gate:
        limit = report.gate.threshold.max_kl
        guides = [Guide(f"gate limit {limit:g}", x=limit)]
    return xy_plot(
        "Speed against quality",
        Axis("KL to the source model, nats per token (lower is better)", log=True),
        Axis(f"tokens/s, {typical.test} (higher is better)", from_zero=True),
        series,
        guides=guides,
        note="Best is top left: fast, and close to the source model.",
    )


def _quality_point(name: str, result: Result | None) -> Series:
    if result is None or result.kl is None:
        return Series(name, (), style="points")
    rate = result.tokens_per_second.median
    title = f"{name}: {rate:.1f} tokens/s, KL {result.kl:.4f}, {result.weight_bytes / 1e6:.0f} MB"
    return Series(name, ((max(result.kl, _MIN_KL), rate),), (title,), style="points")


def _speed_by_depth(report: Report) -> Plot | None:
    series = [_depths(name, tests, report.rounds) for name, tests in engines(report).items()]
    if max((len(one.points) for one in series), default=0) < 2:
        return None
    notes = (
        ["Lines from the 10th to the 90th percentile of the rounds."] if report.rounds > 1 else []
    )
    if any(one.outliers for one in series):
        notes.append("A cross is a round far from the others.")
    return xy_plot(
        "Decoding speed by context",
        Axis("tokens in the cache"),
        Axis("tokens/s (higher is better)", from_zero=True),
        series,
        guides=[Guide("reading speed", y=READING_TOKENS_PER_SECOND)],
        note=" ".join(notes),
    )


def _depths(name: str, tests: dict[str, Result], rounds: int) -> Series:
    decode = sorted(
        (one for one in tests.values() if test_of(one).kind == "tg"),
        key=lambda one: test_of(one).depth,
    )
    rates = [(test_of(one).depth, one.tokens_per_second) for one in decode]
    return Series(
        name,
        tuple((float(depth), rate.median) for depth, rate in rates),
        spread=tuple((rate.p10, rate.p90) for _, rate in rates) if rounds > 1 else (),
        outliers=tuple(
            (float(depth), sample) for depth, rate in rates for sample in outliers(rate.samples)
        ),
        bold=is_own(name),
    )


def _prompts(report: Report) -> Plot | None:
    typical = typical_prompt(own_results(report) or list(report.results))
    if typical is None:
        return None
    bars = [
        Bar(name, (tests[typical.test].tokens_per_second.median,), bold=is_own(name))
        for name, tests in engines(report).items()
        if typical.test in tests
    ]
    title = f"Prompt of {test_of(typical).tokens:,} tokens"
    return horizontal_bars(title, "tokens/s", ["median"], bars, note="Tokens/s; higher is better.")


def _memory(report: Report) -> Plot | None:
    bars = []
    for name, tests in engines(report).items():
        memory = next(iter(tests.values())).memory
        loaded = max(memory.loaded, memory.base)
        stacked = (memory.base, loaded - memory.base, max(0, memory.peak - loaded))
        bars.append(Bar(name, tuple(part / 1e6 for part in stacked), bold=is_own(name)))
    if not bars:
        return None
    parts = ["process before loading", "weights and set-up", "cache in use and workspace"]
    note = "MB; lower is better."
    return horizontal_bars("Peak resident memory", "MB", parts, bars, note=note)
