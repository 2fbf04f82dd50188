"""The table of engines and tests: one row per engine, for the page and for Markdown."""

from edgelm.bench.report.page.glossary import TERMS, test_meaning
from edgelm.bench.report.records import Report, Result
from edgelm.bench.report.selection import engines, test_names, test_of, typical_decode
from edgelm.bench.report.statistics import outliers
from edgelm.page.table import Cell, Column


def columns(report: Report) -> list[Column]:
    """Headings, with what they mean."""
    by_name = {result.test: result for result in report.results}
    speeds = [
        Column(f"{name} t/s", f"{test_meaning(by_name[name])} {TERMS['t/s']}")
        for name in test_names(report)
    ]
    return [
        _column("engine", text=True),
        *(_column(name) for name in ("MB", "bits/weight", "KL", "top-1")),
        *speeds,
        _column("of bound"),
        *([_column("J/token")] if has_energy(report) else []),
        _column("peak MB"),
        *([_column("GPU MB")] if has_gpu_memory(report) else []),
        *(_column(name) for name in ("load ms", "KV", "context")),
    ]


def rows(report: Report) -> list[list[Cell]]:
    """The cells of every engine."""
    return [_row(report, tests) for tests in engines(report).values()]


def has_energy(report: Report) -> bool:
    """Whether any test knows its energy."""
    return any(result.joules_per_token is not None for result in report.results)


def has_gpu_memory(report: Report) -> bool:
    """Whether any engine's memory on a GPU is known."""
    return any(result.memory.gpu is not None for result in report.results)


def _column(name: str, *, text: bool = False) -> Column:
    return Column(name, TERMS[name], text)


def _row(report: Report, tests: dict[str, Result]) -> list[Cell]:
    any_test = next(iter(tests.values()))
    gpu = any_test.memory.gpu
    return [
        Cell(any_test.engine),
        _number(any_test.weight_bytes / 1e6, ".1f"),
        _number(any_test.bits_per_weight, ".2f"),
        _number(any_test.kl, ".4f"),
        _number(any_test.top1, ".1%"),
        *(_speed(tests.get(name)) for name in test_names(report)),
        _bound(tests),
        *([_energy(tests)] if has_energy(report) else []),
        _number(any_test.peak_rss_bytes / 1e6, ",.0f"),
        *([_number(None if gpu is None else gpu / 1e6, ",.0f")] if has_gpu_memory(report) else []),
        _number(any_test.load_ms, ",.0f"),
        Cell(any_test.kv),
        _number(any_test.context, ",d"),
    ]


def _number(value: float | None, shape: str) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:{shape}}", value)


def _speed(result: Result | None) -> Cell:
    if result is None:
        return Cell("–")
    rate = result.tokens_per_second
    text, low, high = f"{rate.median:.1f}", f"{rate.p10:.0f}", f"{rate.p90:.0f}"
    if low != high:
        text += f" ({low}–{high})"
    apart = outliers(rate.samples)
    if not apart:
        return Cell(text, rate.median)
    listed = ", ".join(f"{one:.1f}" for one in apart)
    return Cell(f"{text} †", rate.median, f"far from the other rounds: {listed} tokens/s")


def _bound(tests: dict[str, Result]) -> Cell:
    shares = [one.bound_share for one in tests.values() if one.bound_share is not None]
    typical = typical_decode(list(tests.values()))
    text = " / ".join(f"{share:.0%}" for share in shares) or "–"
    return Cell(text, typical.bound_share if typical else None)


def _energy(tests: dict[str, Result]) -> Cell:
    decode = [one for one in tests.values() if test_of(one).kind == "tg"]
    typical = typical_decode(decode)
    shown = [
        "–" if one.joules_per_token is None else f"{one.joules_per_token:.3g}" for one in decode
    ]
    return Cell(" / ".join(shown) or "–", typical.joules_per_token if typical else None)
