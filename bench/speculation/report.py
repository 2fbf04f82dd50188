"""The table of `edge-bench --speculation`, and the file for it."""

import statistics
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
    low, high = result.gain_interval
    off, on = statistics.median(result.rates_off), statistics.median(result.rates_on)
    return (
        f"| {result.work} | {result.answers} | {off:.1f} | {on:.1f} "
        f"| {result.gain:.2f}× ({low:.2f} to {high:.2f}) | {result.accepted} of {result.drafted} "
        f"| {result.tokens_per_run:.2f} | {result.different} of {result.tasks} "
        f"| {result.loops} of {result.tasks} |"
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
