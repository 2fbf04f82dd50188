"""The last stages: alignment of the student, and evaluation of all models."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgelm.checkpoint.source import open_checkpoint
from edgelm.checkpoint.student import Figure, StageRecord
from edgelm.compress.evaluation.evaluate import evaluate_items, score_of
from edgelm.compress.evaluation.metrics import Metric, perplexity_of
from edgelm.compress.evaluation.task_names import parse_tasks
from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.compress.evaluation.tasks.text_quality import agreement_metrics, text_losses
from edgelm.compress.model import Model, gather_full_model, save_model
from edgelm.compress.recipe.tables import Align
from edgelm.compress.run.distributed import world_size
from edgelm.compress.run.run_folder import task_hashes
from edgelm.compress.stages.state import Progress, State, stage_record


def align_student(state: State, settings: Align) -> None:
    """Fine-tune the student on chat data."""
    from edgelm.compress.alignment.align import align

    request = settings.request(state.recipe.seed)
    context = state.source.spec.max_position_embeddings
    # The batch of a step does not depend on the number of processes.
    share = max(1, request.batch_size // world_size())
    request = replace(request, max_length=min(request.max_length, context), batch_size=share)

    def work(folder: Path) -> StageRecord:
        student = state.load_student()
        done = align(student, state.tokenizer, request, Path(settings.data), folder / "run")
        student = gather_full_model(student)
        save_model(student, state.tokenizer, folder / "model", torch.float32)
        figures = {"steps": done.steps, "examples": done.examples, "loss": done.loss}
        return stage_record("align", settings, figures)

    inputs = state.inputs(settings, "student") | {"data": state.hashes_of(settings.data)}
    folder, key = state.run.stage("align", inputs, work, collective=True)
    state.use_student(folder, key)


def evaluate_models(state: State) -> dict[str, dict[str, Figure]]:
    """Evaluate teacher, pruned model and student; figures by task and model."""
    settings = state.recipe.evaluate
    assert settings is not None
    tasks = parse_tasks(settings.tasks)
    held_out = state.held_out()
    models: dict[str, Path | None] = {
        "teacher": state.original.path,
        "corrected": state.teacher.path if state.recipe.correct else None,
        "pruned": state.pruned,
        "student": state.student,
    }

    def work(folder: Path) -> StageRecord:
        dtype = _evaluated_in(state)
        others = {path for path in models.values() if path not in (None, state.teacher.path)}
        sizes = [open_checkpoint(path).spec.parameters for path in others]
        teacher = state.load_to_run(state.teacher, dtype, beside=max(sizes, default=0))
        model: Model | None = None
        figures: dict[str, Any] = {}
        of_teacher: dict[str, Metric | Score] = {}
        for name, path in models.items():
            if path is None:
                continue
            loaded = path == state.teacher.path
            model = None  # before the room for the next one is measured
            model = teacher if loaded else state.load_to_run(open_checkpoint(path), dtype)
            shown = partial(_show, state.progress, name)
            compared = teacher if name in ("pruned", "student") else None
            scores: dict[str, Metric | Score] = {
                "held-out perplexity": perplexity_of(text_losses(model, held_out))
            }
            if compared is not None:
                agreement = agreement_metrics(model, compared, held_out)
                scores |= {f"held-out {key}": score for key, score in agreement.items()}
            scores |= evaluate_items(
                model,
                state.tokenizer,
                tasks,
                teacher=compared,
                limit=settings.limit,
                progress=shown,
                shared=True,
            )
            if name == "teacher":
                of_teacher = scores
            for task, one in scores.items():
                figure = _figure(one, None if name == "teacher" else of_teacher.get(task))
                figures.setdefault(task, {})[name] = json.loads(msgspec.json.encode(figure))
        return stage_record("evaluate", settings, figures)

    inputs = state.inputs(settings, "student")
    inputs["files"] = task_hashes(settings.tasks)
    inputs["dtype"] = str(_evaluated_in(state))
    state.run.stage("evaluate", inputs, work, collective=True)
    return msgspec.convert(state.run.records[-1].figures, dict[str, dict[str, Figure]])


def _figure(found: Metric | Score, teacher: Metric | Score | None) -> Figure:
    """A figure, and its ratio to the teacher's on the same items."""
    score = score_of(found)
    ratio = None
    if isinstance(found, Metric) and isinstance(teacher, Metric):
        ratio = found.ratio(teacher)
    return Figure(
        score.value, score.error, score.n, score.better, score.is_share, *(ratio or (None, None))
    )


def _evaluated_in(state: State) -> torch.dtype:
    """bf16 only for a student that is written in bf16, on a machine that is fast in it.

    In bf16, a student of quantization-aware distillation would leave its quantization levels.
    """
    recipe = state.recipe
    written_in_bf16 = recipe.dtype == "bfloat16" and not (recipe.qad and not recipe.align)
    return state.compute if written_in_bf16 else torch.float32


def _show(progress: Progress, who: str, what: str) -> None:
    progress(f"evaluate: {who}, {what}")
