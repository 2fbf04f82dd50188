"""The shape: importance scores, the search within the budget, the pruned model."""

import dataclasses
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgelm.checkpoint.student import StageRecord
from edgelm.compress.data.packing import calibration_rows
from edgelm.compress.distillation.checkpoints import fixed_settings, remove
from edgelm.compress.distillation.loss.layer_map import default_map
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.evaluation.evaluate import evaluate
from edgelm.compress.evaluation.held_out import held_out_divergence
from edgelm.compress.evaluation.task_names import parse_tasks
from edgelm.compress.model import Model, save_model
from edgelm.compress.preflight import requested_shape
from edgelm.compress.pruning.aggregation import Aggregation
from edgelm.compress.pruning.importance import score
from edgelm.compress.pruning.indices import most_influential
from edgelm.compress.pruning.layer_removal import (
    Measure,
    layer_losses,
    layers_without_best_block,
    text_loss,
)
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.refit import refitted_parts
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.recipe.tables import DistillStage, ImportanceSettings
from edgelm.compress.run.distributed import is_main_process
from edgelm.compress.run.run_folder import task_hashes
from edgelm.compress.search.candidates import Candidate, CostModel, table
from edgelm.compress.search.search import search
from edgelm.compress.stages.state import BATCH, MOMENTS, State, plain, stage_record
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput
from edgelm.files.staging import replace_file
from edgelm.quantize.hessians import Hessians

_TOKENS_PER_INPUT = 8  # of calibration, for an estimate of second moments
_LAYER_ROWS = 8  # of text, whose loss has a value at every position
_LAYER_TASK_ROWS = 500  # each of which is right or wrong


def score_importance(state: State, settings: ImportanceSettings) -> None:
    """Score heads, neurons, channels and layers on calibration rows."""

    def work(folder: Path) -> StageRecord:
        model = state.load_to_run(state.teacher)
        rows = list(calibration_rows(state.data(), settings.samples, BATCH))
        scores = score(
            model,
            rows,
            Aggregation(settings.sequence_reduction, settings.batch_reduction),
            lambda seen: state.progress(f"importance: {seen}/{settings.samples} samples"),
        )
        if settings.refit and _removes_inputs(state):
            _collect_moments(state, model, folder)
        scores.save(folder / "importance.safetensors")
        if settings.layers == "loss":
            state.progress("importance: the loss without each layer")
            losses = layer_losses(model, _measure(state))
            scores = dataclasses.replace(scores, layers=losses)
            scores.save(folder / "importance.safetensors")
        figures = {"layers": [round(float(value), 4) for value in scores.layers]}
        return stage_record("importance", settings, figures, tokens=sum(map(torch.numel, rows)))

    inputs = state.inputs(settings, "teacher")
    inputs["task"] = task_hashes((settings.layer_task,))
    folder, state.importance_key = state.run.stage("importance", inputs, work)
    state.importance_folder = folder
    _check_scores(state)
    needed = settings.refit and _removes_inputs(state)
    # Scores of a recipe that removed whole layers only have none, and are the same otherwise; those
    # of an earlier version lack matrices that are refitted today.
    if needed and is_main_process() and state.moments() is None:
        _collect_moments(state, state.load_to_run(state.teacher), folder)


def _check_scores(state: State) -> None:
    """Raise BadInput where scores of an earlier version lack those of parts to be removed."""
    scores, spec = state.importance(), state.teacher.spec
    full = Shape.from_spec(spec).sizes
    pruned = list(full)
    if state.recipe.prune:
        shape = requested_shape(state.recipe, spec).sizes
        pruned = [field for field in full if shape[field] != full[field]]
    elif not state.recipe.search:
        return
    lacking = [field for field in pruned if scores.lacks(spec, field)]
    if lacking:
        raise BadInput(
            f"the importance scores in {state.importance_folder} are of an earlier version, which "
            f"did not score what is removed with {' and '.join(lacking)}; remove this folder, and "
            "start the recipe again"
        )


def _removes_inputs(state: State) -> bool:
    """Whether neurons or heads may be removed, so that others can take over."""
    if state.recipe.search or state.recipe.puzzle:
        return True
    spec = state.teacher.spec
    shape, full = requested_shape(state.recipe, spec).sizes, Shape.from_spec(spec).sizes
    fields, parts = ["intermediate_size", "num_attention_heads"], refitted_parts(spec)
    if "mamba.out" in parts:
        fields.append("mamba_num_heads")
    if "conv.out" in parts:
        fields.append("hidden_size")
    return any(shape[field] != full[field] for field in fields)


def _collect_moments(state: State, model: Model, folder: Path) -> None:
    """Write second moments of what is read through pruned axes to a folder, for `refit`."""
    staging = folder / f"{MOMENTS}.partial"
    remove(staging)  # of an interrupted run
    staging.mkdir()
    spec, data = state.teacher.spec, state.data()
    enough = -(-_TOKENS_PER_INPUT * spec.mlp_width // data.length)
    count = min(state.recipe.importance.samples, enough)
    moments = Hessians(staging, spec, parts=refitted_parts(spec))
    seen = 0
    with torch.inference_mode(), moments.watching(model):
        for tokens in calibration_rows(data, count, BATCH):
            model.base_model(input_ids=tokens.to(model.device), use_cache=False)
            seen += len(tokens)
            state.progress(f"importance: inputs of {seen}/{count} samples for least squares")
    moments.sync()
    remove(folder / MOMENTS)
    staging.rename(folder / MOMENTS)


def search_shape(state: State) -> Shape:
    """Search the best shape within the device's budget."""
    recipe = state.recipe
    assert recipe.search is not None
    settings, target = recipe.search, recipe.target
    schedule = settings.schedule(state.training(recipe.distill or DistillStage()))
    cost = CostModel(
        state.teacher.spec, load_profile(target.name), target.budget, _ranked_layers(state)
    )

    def work(folder: Path) -> StageRecord:
        def report(what: str, candidates: Any) -> None:
            state.progress(f"search: {what} {len(candidates)} candidates")
            if what == "distilled":
                state.run.report(table(candidates))

        teacher = state.load(state.teacher, state.compute)
        found = search(
            teacher,
            state.importance(),
            cost,
            state.data(),
            state.selection_rows(settings.held_out_rows),
            settings,
            partial(_with_layer_map, state, schedule),
            folder / "finalists",
            layers=partial(_layers, state, teacher),
            moments=state.moments(),
            report=report,
        )
        replace_file(folder / "candidates.json", msgspec.json.encode(found))
        state.run.report(table(found))
        rounds = sum(len(one.distilled) for one in found)
        tokens = rounds * schedule.tokens // max(1, settings.kd_rounds)
        best = found[0]
        figures = {"shape": str(best.shape), "tokens_per_second": best.tokens_per_second}
        return stage_record("search", settings, figures, tokens=tokens)

    inputs = state.inputs(settings, "importance") | {"target": plain(target)["settings"]}
    inputs["profile"] = plain(cost.profile)["settings"]
    inputs["schedule"] = fixed_settings(schedule)
    if recipe.distill and recipe.distill.hidden_states:  # as in distillation
        inputs["micro_batch"] = schedule.micro_batch
    folder, _ = state.run.stage("search", inputs, work, collective=True)
    content = (folder / "candidates.json").read_bytes()
    state.candidates = msgspec.json.decode(content, type=list[Candidate])
    return state.candidates[0].shape


def _ranked_layers(state: State) -> Callable[[int], list[int]] | None:
    """The layers that students keep by their scores; None where each depth is measured."""
    if state.recipe.importance.layers == "block":
        return None
    return partial(most_influential, state.teacher.spec, state.importance().layers)


def _with_layer_map(state: State, schedule: Distillation, shape: Shape) -> Distillation:
    """The schedule with the layer map of a student of this depth, where [distill] asks for one."""
    table = state.recipe.distill
    if table is None or not table.hidden_states:
        return schedule
    layers = default_map(shape.num_hidden_layers, state.teacher.spec.num_hidden_layers)
    return msgspec.structs.replace(schedule, layer_map=layers)


def prune_teacher(state: State, shape: Shape) -> None:
    """Prune the teacher to the shape."""
    merge = bool(state.recipe.prune and state.recipe.prune.merge_pruned_heads)

    def work(folder: Path) -> StageRecord:
        model = state.load_to_prune()
        layers = _layers(state, model, shape.num_hidden_layers)
        student = prune(
            model,
            shape,
            state.importance(),
            layers=layers,
            merge_pruned_heads=merge,
            moments=state.moments(),
        )
        save_model(student, state.tokenizer, folder / "model", torch.float32)
        loss = held_out_divergence(student, model, state.held_out())
        figures = {"shape": str(shape), "held_out_divergence": loss}
        return stage_record("prune", None, figures)

    inputs = {
        "importance": state.importance_key,
        "shape": plain(shape)["settings"],
        "merge_pruned_heads": merge,
    }
    if state.recipe.prune and state.recipe.prune.layers:
        inputs["layers"] = state.recipe.prune.layers
    folder, key = state.run.stage("prune", inputs, work)
    state.pruned = folder / "model"
    state.use_student(folder, key)


def _layers(state: State, model: Model, count: int) -> list[int] | None:
    """The `count` layers to keep; None selects them by block influence."""
    if state.recipe.prune and state.recipe.prune.layers:
        return list(state.recipe.prune.layers)
    removed = state.teacher.spec.num_hidden_layers - count
    settings = state.recipe.importance
    if settings.layers != "block" or not removed:
        return None
    path = state.importance_folder / f"layers-{count}.json"
    kept = _read_layers(path)
    if kept is None:
        state.progress(f"importance: the loss without each block of {removed} layers")
        kept = layers_without_best_block(model, removed, _measure(state))
        if is_main_process():  # all of them find the same layers
            content = msgspec.json.encode(kept)
            replace_file(_hash_of(path), hashlib.sha256(content).hexdigest().encode())
            replace_file(path, content)
    return kept


def _read_layers(path: Path) -> list[int] | None:
    """Layers as they were written; None if the file is missing or damaged."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != _hash_of(path).read_text(encoding="ascii"):
            return None
        return msgspec.json.decode(content, type=list[int])
    except (OSError, ValueError, RecursionError):
        return None


def _hash_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _measure(state: State) -> Measure:
    """The loss without some layers: on text, or on the requested task."""
    settings = state.recipe.importance
    if not settings.layer_task:
        rows = settings.layer_samples or _LAYER_ROWS
        return text_loss(list(calibration_rows(state.data(), rows, BATCH)))
    tasks = parse_tasks([settings.layer_task])
    limit = settings.layer_samples or _LAYER_TASK_ROWS

    def measure(model: Model) -> float:
        scores = evaluate(model, state.tokenizer, tasks, limit=limit)
        first = next(iter(scores.values()))
        return first.value if first.better == "lower" else -first.value

    return measure
