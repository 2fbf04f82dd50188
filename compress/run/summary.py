"""The page of a run: what came out, at what quality, and the curves between, in one HTML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgelm.checkpoint.student import Figure, StudentRecord
from edgelm.compress.run.plots import importance_plots, puzzle_plots, search_plot, training_plots
from edgelm.compress.search.candidates import Candidate
from edgelm.files.staging import replace_file
from edgelm.page.axes import short_number
from edgelm.page.page import (
    Statement,
    Tile,
    figures,
    page,
    paragraph,
    section,
    statements,
    tiles,
)
from edgelm.page.table import Cell, Column, table
from edgelm.planning import short

_MODELS = ("teacher", "corrected", "pruned", "student")


def write_summary(folder: Path, record: StudentRecord, candidates: Sequence[Candidate]) -> Path:
    """Write `summary.html` into a run's folder; what the run does not have is left out."""
    ranked = [one for one in candidates if one.loss != float("inf")]
    body = [
        paragraph(_headline(record), "lead"),
        tiles(_tiles(record, ranked)),
        statements(_recovery(record)),
        section("Quality", _quality(record)),
        section("Shape", _shapes(record)),
        section("Stages", _stages(record)),
        section("Training", figures(training_plots(folder))),
        section("Search", *([figures([search_plot(ranked)]), _search(ranked)] if ranked else [])),
        section("Puzzle", figures(puzzle_plots(folder, record))),
        section(
            "Importance",
            figures(importance_plots(folder / "importance" / "importance.safetensors", record)),
        ),
    ]
    text = page(f"A student of {record.teacher}", "".join(body), f"edgelm {record.edgelm_version}")
    path = folder / "summary.html"
    replace_file(path, text.encode())
    return path


def _headline(record: StudentRecord) -> str:
    size = (
        f"{record.parameters / 1e6:,.1f} M parameters, {_share(record):.0%} of the teacher's "
        f"{record.teacher_parameters / 1e6:,.1f} M."
    )
    compared = [
        f"{task}: {by_model['student'].text} (teacher {by_model['teacher'].text}, "
        f"{by_model['student'].better} is better)"
        for task, by_model in record.evaluation.items()
        if {"teacher", "student"} <= set(by_model)
    ]
    return f"{size} {'; '.join(compared)}{'.' if compared else ''}".strip()


def _share(record: StudentRecord) -> float:
    return record.parameters / record.teacher_parameters


def _recovery(record: StudentRecord) -> list[Statement]:
    """Whether training made the pruned model better, over the tasks that saw both."""
    pairs = {
        task: (by_model["pruned"], by_model["student"])
        for task, by_model in record.evaluation.items()
        if {"pruned", "student"} <= set(by_model)
    }
    if not pairs:
        return []
    better = [
        task
        for task, (pruned, student) in pairs.items()
        if (student.value < pruned.value) == (student.better == "lower")
    ]
    reason = "; ".join(
        f"{task}: {pruned.text} after pruning, {student.text} after training"
        for task, (pruned, student) in pairs.items()
    )
    holds = {len(pairs): True, 0: False}.get(len(better))
    answer = f"{len(better)} of {len(pairs)} measures improved."
    return [Statement("Did training recover quality?", answer, f"{reason}.", holds)]


def _tiles(record: StudentRecord, ranked: Sequence[Candidate]) -> list[Tile]:
    tokens = short_number(sum(one.tokens for one in record.stages))
    seconds = sum(one.seconds for one in record.stages)
    duration = f"{seconds / 60:,.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    size = f"{record.parameters / 1e6:,.1f} M parameters"
    shown = [
        Tile("Size", f"{_share(record):.0%}", "of the teacher", size),
        Tile("Training", tokens, "tokens", f"{duration} in all stages"),
    ]
    if ranked:
        rate = short_number(ranked[0].tokens_per_second)
        shown.append(Tile("Predicted speed", rate, "tokens/s", "on the recipe's target"))
    return shown


def _quality(record: StudentRecord) -> str:
    if not record.evaluation:
        return ""
    columns = [
        Column("task", text=True),
        *(Column(name) for name in _MODELS),
        Column("student / teacher", "1 where the student is as good; for errors less is better."),
        Column("better", text=True),
    ]
    rows = [_task(task, by_model) for task, by_model in record.evaluation.items()]
    return table("Evaluation, ± standard error", columns, rows, sortable=True)


def _task(task: str, by_model: dict[str, Figure]) -> list[Cell]:
    cells = [Cell(task), *(_figure(by_model.get(name)) for name in _MODELS)]
    teacher, student = by_model.get("teacher"), by_model.get("student")
    ratio = student.value / teacher.value if teacher and student and teacher.value else None
    error = student.ratio_error if student else None
    paired = "" if error is None else f" ± {error:.3f}"
    cells.append(Cell("–") if ratio is None else Cell(f"{ratio:.3f}{paired}", ratio))
    return [*cells, Cell(next((one.better for one in by_model.values()), "–"))]


def _figure(figure: Figure | None) -> Cell:
    if figure is None:
        return Cell("–")
    text = figure.text
    if figure.error:
        error = short(100 * figure.error) if figure.is_share else short(figure.error)
        text = f"{text.removesuffix('%')} ± {error}{'%' if figure.is_share else ''}"
    return Cell(text, figure.value)


def _shapes(record: StudentRecord) -> str:
    rows = [
        [size.replace("_", " "), f"{record.teacher_shape[size]:,}", f"{value:,}"]
        for size, value in record.shape.items()
    ]
    columns = [Column("size", text=True), Column("teacher"), Column("student")]
    return table("Sizes of the teacher and the student", columns, rows)


def _stages(record: StudentRecord) -> str:
    rows = [
        [
            one.name,
            f"{one.tokens:,}" if one.tokens else "–",
            f"{one.seconds:,.0f}",
            _results(one.figures),
        ]
        for one in record.stages
    ]
    columns = [
        Column("stage", text=True),
        Column("training tokens"),
        Column("seconds"),
        Column("results", text=True),
    ]
    return table("Stages in the order in which they ran", columns, rows)


def _results(figures: dict[str, Any]) -> str:
    shown = []
    for name, value in figures.items():
        if isinstance(value, float):
            shown.append(f"{name.replace('_', ' ')} {value:.4g}")
        elif isinstance(value, int | str):
            shown.append(f"{name.replace('_', ' ')} {value}")
    return "; ".join(shown) or "–"


def _search(ranked: Sequence[Candidate]) -> str:
    columns = [
        Column("shape", text=True),
        Column("tokens/s", "Predicted by the planner."),
        Column("MB", "Memory that the planner predicts."),
        Column("KL, pruned", "Divergence from the teacher before training, nats per token."),
        Column("KL, distilled", "The same after each round of the short distillation."),
    ]
    rows = [
        [
            Cell(str(one.shape)),
            Cell(f"{one.tokens_per_second:.1f}", one.tokens_per_second),
            Cell(f"{one.memory_bytes / 1e6:,.0f}", float(one.memory_bytes)),
            Cell("–") if one.pruned is None else Cell(f"{one.pruned:.3f}", one.pruned),
            Cell(", ".join(f"{loss:.3f}" for loss in one.distilled) or "–", _last(one.distilled)),
        ]
        for one in ranked
    ]
    return table("Candidates, best first", columns, rows, own=[0], sortable=True)


def _last(losses: Sequence[float]) -> float | None:
    return losses[-1] if losses else None
