"""The notes on the table: how it was measured, what is missing, what the sensors read."""

from edgelm.bench.report.page.table import has_energy
from edgelm.bench.report.records import Report, Result
from edgelm.bench.report.selection import engines
from edgelm.devices.sensors import Sensor


def why_invalid(report: Report) -> str:
    """What throttled, when, and what to do."""
    hit: dict[str, list[str]] = {}
    for result in report.results:
        if result.throttled:
            hit.setdefault(result.engine, []).append(result.test)
    where = "; ".join(f"{engine}: {', '.join(tests)}" for engine, tests in hit.items())
    return (
        f"the machine throttled while it was measured ({_events(report)}); hit: {where}. Cool "
        "it or raise its power limit, and measure again."
    )


def not_measured(report: Report) -> list[str]:
    """Engines that were requested and did not run, with the reason."""
    return [f"{name}: {reason}" for name, reason in report.absent]


def method(report: Report) -> list[str]:
    """How it was measured; one paragraph each."""
    rounds = "One round" if report.rounds == 1 else f"Medians of {report.rounds} rounds"
    lines = [f"{rounds} after a warm-up round, engines taking turns within each round."]
    if report.quality_tokens:
        tokens, text = report.quality_tokens, report.quality_text
        lines.append(f"KL and top-1 are measured on {tokens:,} tokens of {text}.")
    if has_energy(report):
        lines.append(_energy_sources(report))
    return [" ".join(lines)]


def setting(report: Report) -> str:
    """The machine and the versions."""
    machine = report.machine
    return (
        f"{machine.summary}; {machine.system}, Python {machine.python}; "
        f"edgelm {report.edgelm_version}; {report.created}."
    )


def options(report: Report) -> list[str]:
    """Version and options of every engine."""
    return [f"{name}: {_options(tests)}" for name, tests in engines(report).items()]


def sensor_cells(report: Report) -> list[list[str]]:
    """Heading and rows of what the sensors read; nothing without them."""
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


def _energy_sources(report: Report) -> str:
    drawn = " + ".join(report.energy_sensors)
    if report.machine.gpu:
        drawn += ", the GPU's for engines that compute there,"
    return f"Energy is read from {drawn} while tokens were generated."


def _events(report: Report) -> str:
    events = report.sensors.throttle_events if report.sensors else {}
    return ", ".join(f"{name} {count}×" for name, count in events.items())


def _sensor_row(sensor: Sensor, energy: bool) -> list[str]:
    values = [f"{value:.1f}" for value in (sensor.min, sensor.median, sensor.max)]
    joules = "–" if sensor.energy_j is None else f"{sensor.energy_j:.1f}"
    return [sensor.name, sensor.unit, *values, *([joules] if energy else [])]


def _options(tests: dict[str, Result]) -> str:
    result = next(iter(tests.values()))
    return f"version {result.engine_version}, {result.options}"
