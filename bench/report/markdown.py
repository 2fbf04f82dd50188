"""The report as Markdown: one row per engine, and what the figures mean."""

from edgelm.bench.report.report import Report, Result
from edgelm.devices.sensors import Sensor

_GPU_NOTE = " *GPU MB* is what the process held of a GPU's own memory after all tests."


def markdown(report: Report) -> str:
    """Return the text of `report.md`."""
    machine = report.machine
    lines = [
        f"# {report.source}: edgelm beside its peers",
        "",
        *invalid(report),
        f"{machine.summary}; {machine.system}, Python {machine.python}; "
        f"edgelm {report.edgelm_version}; {report.created}.",
        "",
        f"`{report.command}`",
        "",
        *table(report),
        "",
        *absent(report),
        *sensors(report),
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
        *(["J/token"] if has_energy(report) else []),
        "peak MB",
        *(["GPU MB"] if has_gpu_memory(report) else []),
        "load ms",
        "KV",
        "context",
    ]


def row(report: Report, tests: dict[str, Result]) -> list[str]:
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
        *([_energy(tests)] if has_energy(report) else []),
        f"{any_test.peak_rss_bytes / 1e6:.0f}",
        *([_gpu_memory(any_test)] if has_gpu_memory(report) else []),
        f"{any_test.load_ms:.0f}",
        any_test.kv,
        f"{any_test.context}",
    ]


def table(report: Report) -> list[str]:
    """The Markdown table."""
    return _table(columns(report), [row(report, tests) for tests in engines(report).values()])


def has_energy(report: Report) -> bool:
    """Whether any test knows its energy."""
    return any(result.joules_per_token is not None for result in report.results)


def has_gpu_memory(report: Report) -> bool:
    """Whether any engine's memory on a GPU is known."""
    return any(result.memory.gpu is not None for result in report.results)


def invalid(report: Report) -> list[str]:
    """Why the whole report must not be believed, if so."""
    return [f"> **INVALID**: {why_invalid(report)}", ""] if report.throttled else []


def why_invalid(report: Report) -> str:
    """What throttled, when, and what to do."""
    hit: dict[str, list[str]] = {}
    for result in report.results:
        if result.throttled:
            hit.setdefault(result.engine, []).append(result.test)
    where = "; ".join(f"{engine}: {', '.join(tests)}" for engine, tests in hit.items())
    return (
        f"the machine throttled while it was measured ({_events(report)}); hit: {where}. Cool it "
        "or raise its power limit, and measure again."
    )


def absent(report: Report) -> list[str]:
    """Peers that were asked for and did not run."""
    if not report.absent:
        return []
    return ["Not measured:", "", *(f"- {name}: {reason}" for name, reason in report.absent), ""]


def sensor_cells(report: Report) -> list[list[str]]:
    """Heading and rows of what the sensors saw; nothing without them."""
    log = report.sensors
    shown = [sensor for sensor in log.sensors if sensor.kind != "throttle"] if log else []
    if not shown:
        return []
    energy = any(sensor.energy_j is not None for sensor in shown)
    head = ["sensor", "unit", "min", "median", "max", *(["energy J"] if energy else [])]
    return [head, *(_sensor_row(sensor, energy) for sensor in shown)]


def sensor_notes(report: Report) -> list[str]:
    """What throttled, and what could not be read; one line each."""
    log = report.sensors
    if log is None:
        return []
    watchers = sum(sensor.kind == "throttle" for sensor in log.sensors)
    lost = "; ".join(f"{unread.what}: {unread.why}" for unread in log.unread)
    return [
        *([f"Throttling, warm-up included: {_events(report) or 'none'}."] if watchers else []),
        *([f"Not read: {lost}."] if lost else []),
    ]


def sensors(report: Report) -> list[str]:
    """The sensors' table and what is to say about it."""
    cells = sensor_cells(report)
    lines = ["Sensors:", "", *_table(cells[0], cells[1:]), ""] if cells else []
    return lines + [line for note in sensor_notes(report) for line in (note, "")]


def notes(report: Report) -> list[str]:
    """What the columns mean."""
    return [
        f"Speeds are medians of {report.rounds} rounds with p10–p90 in brackets, engines taking "
        "turns within each round after a warm-up round; sampling and tokenizing are left out. "
        "KL (nats a token) and top-1 compare logits with the source's in fp32 on "
        f"{report.quality_tokens:,} tokens of {report.quality_text}. *Of bound*: for each "
        "generation test, bytes that a step must read over measured bandwidth, as a share of the "
        "time it took; caches can lift it above what memory alone allows. *Peak* is the resident "
        "memory of the engine's process over all tests; *load* is until the model could run, files "
        "in the page cache, without hashing, and without the tokenizer where it is apart."
        + (_GPU_NOTE if has_gpu_memory(report) else ""),
        *_energy_note(report),
        "",
        "Options: " + "; ".join(f"{name}: {_options(t)}" for name, t in engines(report).items()),
    ]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *(["---:"] * (len(head) - 1))]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def _gpu_memory(result: Result) -> str:
    return "–" if result.memory.gpu is None else f"{result.memory.gpu / 1e6:.0f}"


def _events(report: Report) -> str:
    events = report.sensors.throttle_events if report.sensors else {}
    return ", ".join(f"{name} {count}×" for name, count in events.items())


def _sensor_row(sensor: Sensor, energy: bool) -> list[str]:
    values = [f"{value:.1f}" for value in (sensor.min, sensor.median, sensor.max)]
    joules = "–" if sensor.energy_j is None else f"{sensor.energy_j:.1f}"
    return [sensor.name, sensor.unit, *values, *([joules] if energy else [])]


def _energy_note(report: Report) -> list[str]:
    if not has_energy(report):
        return []
    drawn = " + ".join(report.energy_sensors)
    if report.machine.gpu:
        drawn += ", the GPU's for engines that compute there,"
    return [
        "",
        f"*J/token*, for each generation test: energy by {drawn} while tokens were generated, idle "
        "draw included, over the tokens; unknown for a round of fewer than five readings.",
    ]


def _energy(tests: dict[str, Result]) -> str:
    decode = [result for result in tests.values() if result.test.startswith("tg")]
    return " / ".join(
        "–" if result.joules_per_token is None else f"{result.joules_per_token:.3g}"
        for result in decode
    )


def _speed(result: Result) -> str:
    rate = result.tokens_per_second
    return f"{rate.median:.1f} ({rate.p10:.0f}–{rate.p90:.0f})"


def _options(tests: dict[str, Result]) -> str:
    result = next(iter(tests.values()))
    return f"{result.engine_version}, {result.options}"
