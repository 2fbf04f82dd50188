"""The trainings: teacher correction, distillation, quantization-aware distillation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgelm.checkpoint.student import StageRecord
from edgelm.compress.distillation.cache_settings import CacheSettings
from edgelm.compress.distillation.checkpoints import obstacle, steps_done
from edgelm.compress.distillation.loss.layer_map import default_map
from edgelm.compress.distillation.metrics import FILE as METRICS
from edgelm.compress.distillation.metrics import Metrics, read_metrics
from edgelm.compress.distillation.milestones import Milestones
from edgelm.compress.distillation.settings import LENGTH, Distillation
from edgelm.compress.distillation.teacher_cache import TeacherCache, build_cache, cache_bytes
from edgelm.compress.distillation.train import distill
from edgelm.compress.evaluation.held_out import HeldOut, held_out_divergence
from edgelm.compress.evaluation.next_token import mean_loss
from edgelm.compress.model import Model, gather_full_model, save_model
from edgelm.compress.qad.precisions import qad_precisions
from edgelm.compress.recipe.tables import Correct, DistillStage, Qad
from edgelm.compress.run.distributed import is_main_process
from edgelm.compress.run.run_folder import Length
from edgelm.compress.stages.draft import freeze_shared
from edgelm.compress.stages.state import BATCH, State, plain, stage_record
from edgelm.quantize.precision import Int4, Int8, describe

_CHECKPOINTS = "checkpoints"


def correct_teacher(state: State, settings: Correct) -> None:
    """Fine-tune the teacher on the data."""
    rate = state.recipe.correction_rate
    distillation = state.training(settings)
    inputs = state.inputs(settings, "teacher") | {"learning_rate": rate}
    inputs["within_documents"] = distillation.within_documents

    def work(folder: Path) -> StageRecord:
        model = state.load(state.teacher, torch.float32)
        before = mean_loss(model, state.held_out().split(BATCH))
        figures = _train(state, "correct", model, None, distillation, folder)
        model = gather_full_model(model)
        after = mean_loss(model, state.held_out().split(BATCH))
        save_model(model, state.tokenizer, folder / "model", torch.float32)
        figures |= {"held_out_loss_before": before, "held_out_loss": after}
        return stage_record("correct", settings, figures, tokens=distillation.trained_tokens)

    length = _length(distillation)
    folder, key = state.run.stage("correct", inputs, work, collective=True, length=length)
    state.use_teacher(folder / "model", key)


def distill_student(state: State, table: DistillStage) -> None:
    """Distill the teacher into the student."""
    settings = state.training(table)
    if table.hidden_states and not settings.layer_map:
        layers = (spec.num_hidden_layers for spec in (state.student_spec, state.teacher.spec))
        settings = msgspec.structs.replace(settings, layer_map=default_map(*layers))
    cache = table.cache
    cached = _cache(state, cache) if cache else None

    def work(folder: Path) -> StageRecord:
        student = state.load_student()
        if state.recipe.draft:
            freeze_shared(student)
        teacher: Model | TeacherCache = TeacherCache(cached) if cached else state.load_teacher()
        live = None if isinstance(teacher, TeacherCache) else teacher
        if live is None and table.evaluate_every:
            live = state.load_measured_teacher()
        watch = Milestones(
            folder,
            student,
            settings.step_tokens,
            settings.last_step,
            settings.steps,
            held_out=HeldOut(live, state.held_out(), shared=True) if table.evaluate_every else None,
            every=table.evaluate_every or settings.tokens,
            milestones=table.milestones,
            save=lambda model, path: save_model(model, state.tokenizer, path, torch.float32),
        )
        figures = _train(state, "distill", student, teacher, settings, folder, watch=watch)
        student = gather_full_model(student)
        save_model(student, state.tokenizer, folder / "model", torch.float32)
        # With a cache, the teacher takes no memory while the student trains.
        live = live or state.load_measured_teacher()
        figures["held_out_divergence"] = held_out_divergence(
            student, live, state.held_out(), shared=True
        )
        return stage_record("distill", settings, figures, tokens=settings.trained_tokens)

    inputs = state.inputs(settings, "student") | {"cache": plain(cache)["settings"]}
    if settings.layer_map:  # its weight follows the losses of each micro-batch
        inputs["micro_batch"] = settings.micro_batch
    length = _length(settings, settings.trained_tokens)
    folder, key = state.run.stage("distill", inputs, work, collective=True, length=length)
    state.use_student(folder, key)


def _cache(state: State, settings: CacheSettings) -> Path:
    """Store the teacher's predictions for all rows, divided over all processes."""

    def work(folder: Path) -> StageRecord:
        teacher, data = state.load_to_run(state.teacher), state.data()
        size = cache_bytes(data, teacher.config.vocab_size, settings)
        if is_main_process():
            state.run.report(f"cache: the teacher's predictions will take {size / 1e6:,.0f} MB")

        def shown(rows: int) -> None:
            state.progress(f"cache: {rows} of {len(data)} rows")

        place = folder / "cache"
        build_cache(teacher, state.teacher_key, data, settings, place, shown, shared=True)
        return stage_record("cache", settings, {"bytes": size}, tokens=data.tokens)

    inputs = state.inputs(settings, "teacher")
    folder, _ = state.run.stage("cache", inputs, work, collective=True)
    return folder / "cache"


def quantization_aware_distill(state: State, settings: Qad) -> None:
    """Distill with quantized weights, for the grid that export will use."""
    layers, head = qad_precisions(state.recipe, state.student_spec)
    kernels = state.recipe.target.kernels
    if kernels.has_zero_points:  # as export will quantize it
        head = kernels.for_table(head, state.student_spec.hidden_size)
    distillation = state.training(settings)
    inputs = state.inputs(settings, "student")
    inputs["precisions"] = [describe(layers), describe(head)]
    inputs["within_documents"] = distillation.within_documents

    def work(folder: Path) -> StageRecord:
        teacher = state.load_teacher()
        student = state.load_student()
        figures = _train(state, "qad", student, teacher, distillation, folder, (layers, head))
        student = gather_full_model(student)
        figures["held_out_divergence"] = held_out_divergence(
            student, teacher, state.held_out(), shared=True
        )
        # In fp32, the only type that holds four bits times an fp16 scale exactly.
        save_model(student, state.tokenizer, folder / "model", torch.float32)
        return stage_record("qad", settings, figures, tokens=distillation.trained_tokens)

    length = _length(distillation)
    folder, key = state.run.stage("qad", inputs, work, collective=True, length=length)
    state.use_student(folder, key)


def _length(settings: Distillation, stop: int | None = None) -> Length:
    """A training can be made longer or shorter while its steps keep their learning rates."""

    def problem(folder: Path) -> str | None:
        checkpoints = folder / _CHECKPOINTS
        if (folder / "model").exists() and not steps_done(checkpoints):
            return "its checkpoints were removed"  # the result would be overwritten
        return obstacle(checkpoints, settings) if checkpoints.is_dir() else None

    return Length(LENGTH, problem, stop)


def _train(
    state: State,
    name: str,
    student: Model,
    teacher: Model | TeacherCache | None,
    settings: Distillation,
    folder: Path,
    precision: tuple[Int4 | Int8, Int4 | Int8] | None = None,
    *,
    watch: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Run a training and log every step; returns its final figures."""
    checkpoints = folder / _CHECKPOINTS
    with Metrics(folder, settings.last_step) as metrics:
        for step in distill(
            student,
            teacher,
            state.data(),
            settings,
            checkpoints,
            precision=precision,
            after_step=watch,
        ):
            metrics.write(step)
            minutes = step.eta_seconds / 60
            state.progress(
                f"{name}: step {step.step}/{step.steps}, loss {step.loss:.3f}, "
                f"{step.tokens_per_second:.0f} tokens/s, {minutes:.0f} min left"
            )
    # Read from the log, since a run interrupted after its last step yields no more steps.
    rows = read_metrics(folder / METRICS)
    return {name: rows[-1].get(name) for name in ("loss", "tokens")} if rows else {}
