"""The stages of a recipe, in the order of the method; each reads and writes files."""

from edgelm.compress.arithmetic import measured_speed
from edgelm.compress.preflight import following_sizes, requested_shape
from edgelm.compress.run.distributed import is_main_process, world_size
from edgelm.compress.sharding import shards_models
from edgelm.compress.stages.data import pack_rows, synthesize_text, trim_teacher
from edgelm.compress.stages.draft import make_draft, measure_acceptance, quantize_target
from edgelm.compress.stages.finish import align_student, evaluate_models
from edgelm.compress.stages.puzzle import puzzle
from edgelm.compress.stages.shape import prune_teacher, score_importance, search_shape
from edgelm.compress.stages.state import State
from edgelm.compress.stages.training import (
    correct_teacher,
    distill_student,
    quantization_aware_distill,
)
from edgelm.compress.start_plan import MOST_SHARDS, plan_stages, plan_table

__all__ = ["State", "evaluate_models", "measure_acceptance", "run_stages"]


def run_stages(state: State) -> None:
    """Run every stage of the recipe except the last one, `evaluate_models`, in order."""
    recipe = state.recipe
    state.choose_arithmetic()
    _report_plan(state)
    if recipe.synthesize:
        synthesize_text(state, recipe.synthesize)
    if recipe.vocabulary:
        trim_teacher(state, recipe.vocabulary.size)
    pack_rows(state)
    if recipe.correct:
        correct_teacher(state, recipe.correct)
    if recipe.draft:
        if recipe.draft.precision:
            quantize_target(state, recipe.draft)
        make_draft(state, recipe.draft)
    elif recipe.shapes:
        score_importance(state, recipe.importance)
    if recipe.puzzle:
        puzzle(state, recipe.puzzle)
    if recipe.search or recipe.prune:
        shape = (
            search_shape(state) if recipe.search else requested_shape(recipe, state.teacher.spec)
        )
        prune_teacher(state, shape)
    if recipe.distill:
        distill_student(state, recipe.distill)
    if recipe.qad:
        quantization_aware_distill(state, recipe.qad)
    if recipe.align:
        align_student(state, recipe.align)


def _report_plan(state: State) -> None:
    """Log the stages with their tokens, time, memory and disk before the first one starts."""
    if not is_main_process():
        return
    spec = state.source.spec
    speed = measured_speed(state.device, state.compute, spec.hidden_size, spec.intermediate_size)
    shards = min(MOST_SHARDS, world_size()) if shards_models() else 1
    bf16 = state.arithmetic == "bf16"
    stages = plan_stages(state.recipe, spec, bf16=bf16, sharded_over=shards)
    if line := following_sizes(state.recipe, spec):
        state.run.report(line)
    state.run.report(plan_table(stages, operations_per_second=speed, processes=world_size()))
