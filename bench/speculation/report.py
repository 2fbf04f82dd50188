"""The table of `edge-bench --speculation`, and the file for it."""

import statistics
from itertools import chain
from pathlib import Path

import msgspec

from edgelm.bench.machine import Machine
from edgelm.bench.speculation.measure import WorkResult


class SpeculationReport(msgspec.Struct, frozen=True):
    """What was measured, on what, and by which command."""

    bundle: str
    mode: str
    command: str
    machine: Machine
    costs: dict[int, float]
    results: list[WorkResult]


def speculation_table(report: SpeculationReport) -> str:
    """Markdown: a row for each kind of work."""
    lines = [
        f"Speculation `{report.mode}`, {report.bundle}",
        "",
        "| work | answers | tokens/s without | with | gain (95% interval) | accepted of drafted "
        "| tokens per run | different answers | loops |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        *(_row(result) for result in report.results),
        "",
        "Gain of each task (median of its pairs):",
        "",
        *(_tasks_line(result) for result in report.results),
        "",
        "Time of a run of several tokens, relative to a run of one: "
        + (
            ", ".join(f"{size} tokens {ratio:.2f}" for size, ratio in report.costs.items())
            or "none was measured"
        ),
    ]
    return "\n".join(lines)


def _row(result: WorkResult) -> str:
    speeds = "– | – | –"
    if result.gain is not None and result.gain_interval is not None:
        off, on = (
            statistics.median(chain(*rates)) for rates in (result.rates_off, result.rates_on)
        )
        low, high = result.gain_interval
        speeds = f"{off:.1f} | {on:.1f} | {result.gain:.2f}× ({low:.2f} to {high:.2f})"
    per_run = f"{result.tokens_per_run:.2f}" if result.decoded else "–"
    return (
        f"| {result.work} | {result.answers} | {speeds} "
        f"| {result.accepted} of {result.drafted} | {per_run} "
        f"| {result.different} of {result.tasks} | {result.loops} of {result.tasks} |"
    )


def _tasks_line(result: WorkResult) -> str:
    gains = ", ".join(f"{gain:.2f}" for gain in result.task_gains)
    return f"- {result.work}, {result.answers}: {gains}"


def write_speculation_report(report: SpeculationReport, folder: Path) -> None:
    """Write `speculation.json` and `speculation.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode(report))
    (folder / "speculation.json").write_bytes(data)
    (folder / "speculation.md").write_text(speculation_table(report) + "\n", encoding="utf-8")
