"""The report as Markdown: one row per engine, and what the figures mean."""

from edgelm.bench.report import Report, Result


def markdown(report: Report) -> str:
    """Return the text of `report.md`."""
    machine = report.machine
    lines = [
        f"# {report.source}: edgelm beside its peers",
        "",
        f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads, "
        f"{machine.memory_bytes / 2**30:.0f} GiB, reads {machine.read_gb_s:.0f} GB/s; "
        f"{machine.system}, Python {machine.python}; edgelm {report.edgelm_version}; "
        f"{report.created}.",
        "",
        f"`{report.command}`",
        "",
        *table(report),
        "",
        *absent(report),
        *notes(report),
    ]
    return "\n".join(lines) + "\n"


def engines(report: Report) -> dict[str, dict[str, Result]]:
    """Results by engine, then by test, in the order measured."""
    grouped: dict[str, dict[str, Result]] = {}
    for result in report.results:
        grouped.setdefault(result.engine, {})[result.test] = result
    return grouped


def test_names(report: Report) -> list[str]:
    """Every test that was run."""
    return list(dict.fromkeys(result.test for result in report.results))


def columns(report: Report) -> list[str]:
    """Headings of the table."""
    return [
        "engine",
        "MB",
        "bits/weight",
        "KL",
        "top-1",
        *(f"{name} t/s" for name in test_names(report)),
        "of bound",
        "peak MB",
        "load ms",
        "KV",
        "context",
    ]


def row(tests: dict[str, Result]) -> list[str]:
    """Cells of one engine."""
    any_test = next(iter(tests.values()))
    shares = [t.bound_share for t in tests.values() if t.bound_share is not None]
    return [
        any_test.engine,
        f"{any_test.weight_bytes / 1e6:.1f}",
        f"{any_test.bits_per_weight:.2f}",
        "–" if any_test.kl is None else f"{any_test.kl:.4f}",
        "–" if any_test.top1 is None else f"{any_test.top1:.1%}",
        *(_speed(result) for result in tests.values()),
        " / ".join(f"{share:.0%}" for share in shares) or "–",
        f"{any_test.peak_rss_bytes / 1e6:.0f}",
        f"{any_test.load_ms:.0f}",
        any_test.kv,
        f"{any_test.context}",
    ]


def table(report: Report) -> list[str]:
    """The Markdown table."""
    head = columns(report)
    rows = [row(tests) for tests in engines(report).values()]
    rule = ["---", *(["---:"] * (len(head) - 1))]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def absent(report: Report) -> list[str]:
    """Peers that were asked for and did not run."""
    if not report.absent:
        return []
    return ["Not measured:", "", *(f"- {name}: {reason}" for name, reason in report.absent), ""]


def notes(report: Report) -> list[str]:
    """What the columns mean."""
    return [
        f"Speeds are medians of {report.rounds} rounds with p10–p90 in brackets, engines taking "
        "turns within each round after a warm-up round; sampling and tokenizing are left out. "
        "KL (nats a token) and top-1 compare logits with the source's in fp32 on "
        f"{report.quality_tokens:,} tokens of {report.quality_text}. *Of bound*: for each "
        "generation test, bytes that a step must read over measured bandwidth, as a share of the "
        "time it took; caches can lift it above what memory alone allows. *Peak* is the resident "
        "memory of the engine's process over all tests; *load* is until the model could run, "
        "files in the page cache, without hashing, and without the tokenizer where it is apart.",
        "",
        "Options: " + "; ".join(f"{name}: {_options(t)}" for name, t in engines(report).items()),
    ]


def _speed(result: Result) -> str:
    rate = result.tokens_per_second
    return f"{rate.median:.1f} ({rate.p10:.0f}–{rate.p90:.0f})"


def _options(tests: dict[str, Result]) -> str:
    result = next(iter(tests.values()))
    return f"{result.engine_version}, {result.options}"
