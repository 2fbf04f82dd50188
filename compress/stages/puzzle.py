"""Students whose layers differ: train the alternatives, score them, choose within the budget."""

from pathlib import Path

import msgspec
import torch

from edgelm.checkpoint.student import StageRecord
from edgelm.compress.evaluation.held_out import held_out_divergence
from edgelm.compress.model import save_model
from edgelm.compress.preflight import puzzle_alternatives, puzzle_costs
from edgelm.compress.puzzle.alternatives import Alternative, Score, with_alternatives
from edgelm.compress.puzzle.choose import choose
from edgelm.compress.puzzle.costs import PuzzleCosts
from edgelm.compress.puzzle.library import make_layers
from edgelm.compress.puzzle.local_distillation import distill_locally
from edgelm.compress.puzzle.measured import MeasuredTimes, measured_run
from edgelm.compress.puzzle.scores import check_finite, score_alternatives
from edgelm.compress.puzzle.settings import PuzzleSettings
from edgelm.compress.puzzle.student import assemble
from edgelm.compress.run.distributed import (
    is_main_process,
    process_index,
    wait_for_all,
    world_size,
)
from edgelm.compress.stages.state import State, plain, stage_record
from edgelm.files.staging import replace_file
from edgelm.spec.own_sizes import own_sizes

_MOST_SPREAD = 1.5  # of times of the same layer, of which the median counts
_COSTS, _LIBRARY, _SCORES = "costs.json", "library", "scores.json"


def puzzle(state: State, settings: PuzzleSettings) -> None:
    """Make the best student within the budget of alternatives for every layer."""
    target = state.recipe.target
    found = puzzle_alternatives(state.recipe, state.teacher.spec)
    costs, costs_key = _costs(state, settings, found)
    library, key = _train(state, settings, found)
    scores, key = _score(state, settings, found, library, key)

    def work(folder: Path) -> StageRecord:
        chosen = choose(costs, found, [one.kl for one in scores])
        teacher = state.load(state.teacher, torch.float32)
        student = assemble(teacher, state.teacher.spec, chosen, library)
        save_model(student, state.tokenizer, folder / "model", torch.float32)
        loss = held_out_divergence(student, teacher, state.held_out())
        sums = {one.alternative: one.kl for one in scores}
        figures = {
            "layers": own_sizes(with_alternatives(state.teacher.spec, chosen)) or [],
            "tokens_per_second": costs.plan(chosen).tokens_per_second.value,
            "sum_of_scores": sum(sums[one] for one in chosen),
            "held_out_divergence": loss,
        }
        return stage_record("puzzle", settings, figures)

    inputs = {"scores": key, "target": plain(target)["settings"]}
    inputs["profile"] = plain(costs.profile)["settings"]
    if costs_key:
        inputs["costs"] = costs_key
    folder, key = state.run.stage("puzzle", inputs, work)
    state.pruned = folder / "model"
    state.use_student(folder, key)


def _costs(
    state: State, settings: PuzzleSettings, found: list[Alternative]
) -> tuple[PuzzleCosts, str]:
    """Costs of the alternatives, and the key of their measurement, if there was one.

    What was measured stays in the run's folder, so that a resumed run chooses the same student.
    """
    spec = state.teacher.spec
    planner = puzzle_costs(state.recipe, spec)
    if settings.costs == "planner":
        return planner, ""
    measured = measured_run(spec, found, planner.profile, planner.plan(()))

    def work(folder: Path) -> StageRecord:
        def shown(done: int, of: int) -> None:
            state.progress(f"puzzle: timed {len(measured.shapes)} kinds, round {done} of {of}")

        times = measured.times(shown)
        spread = max(one.spread for one in times.kinds.values())
        if spread > _MOST_SPREAD:
            state.progress(
                f"puzzle: times of the same layer differ by a factor of {spread:.1f}: other "
                f"programs ran meanwhile; remove {folder} to measure again on an idle machine"
            )
        replace_file(folder / _COSTS, msgspec.json.encode(times))
        figures = {
            "machine": times.machine,
            "threads": times.threads,
            "milliseconds": {name: msgspec.structs.asdict(it) for name, it in times.kinds.items()},
        }
        return stage_record("puzzle-costs", None, figures)

    folder, key = state.run.stage("puzzle-costs", {"measured": plain(measured)["settings"]}, work)
    times = msgspec.json.decode((folder / _COSTS).read_bytes(), type=MeasuredTimes)
    costs = puzzle_costs(state.recipe, spec, times)
    costs.check_possible(found)
    return costs, key


def _train(state: State, settings: PuzzleSettings, found: list[Alternative]) -> tuple[Path, str]:
    """Distill all narrow MLPs locally; every process trains layers of its own."""
    training = state.training(
        settings, weight_decay=0.0, final_learning_rate=settings.learning_rate / 10
    )

    def work(folder: Path) -> StageRecord:
        teacher, spec = state.load(state.teacher, state.compute), state.teacher.spec
        teacher.requires_grad_(False)
        own = range(process_index(), spec.num_hidden_layers, world_size())
        moments, importance = state.moments(), state.importance()
        layers = list(make_layers(teacher, spec, found, importance, moments, own))
        library = folder / _LIBRARY
        library.mkdir(exist_ok=True)
        loss = 0.0
        for step in distill_locally(teacher, spec, layers, state.data(), training, library):
            loss = step.loss
            state.progress(
                f"puzzle: step {step.step}/{step.steps}, relative error {step.loss:.4f}, "
                f"{step.tokens_per_second:.0f} tokens/s"
            )
        wait_for_all()  # until every process has written its layers
        figures = {"alternatives": len(found), "relative_error": loss}
        tokens = training.trained_tokens if layers else 0
        return stage_record("puzzle-library", settings, figures, tokens=tokens)

    inputs = state.inputs(training, "importance") | {"alternatives": [one.name for one in found]}
    folder, key = state.run.stage("puzzle-library", inputs, work, collective=True)
    return folder / _LIBRARY, key


def _score(
    state: State, settings: PuzzleSettings, found: list[Alternative], library: Path, key: str
) -> tuple[list[Score], str]:
    def work(folder: Path) -> StageRecord:
        def shown(done: int, of: int) -> None:
            state.progress(f"puzzle: scored {done} of {of} alternatives")

        scores = score_alternatives(
            state.load(state.teacher, state.compute),
            state.teacher.spec,
            found,
            library,
            state.selection_rows(settings.score_rows),
            folder,
            shown,
        )
        check_finite(found, scores)
        if is_main_process():
            table = [Score(one, kl) for one, kl in zip(found, scores, strict=True)]
            replace_file(folder / _SCORES, msgspec.json.encode(table))
        return stage_record("puzzle-scores", None, {"alternatives": len(found)})

    inputs = {"library": key, "rows": settings.score_rows, "arithmetic": state.arithmetic}
    folder, key = state.run.stage("puzzle-scores", inputs, work, collective=True)
    content = (folder / _SCORES).read_bytes()
    return msgspec.json.decode(content, type=list[Score]), key
