"""The stages of a recipe, in the order of the method; each reads and writes files."""

from edgelm.compress.stages.data import pack_rows, synthesize_text, trim_teacher
from edgelm.compress.stages.finish import align_student, evaluate_models
from edgelm.compress.stages.shape import (
    prune_teacher,
    requested_shape,
    score_importance,
    search_shape,
)
from edgelm.compress.stages.state import State
from edgelm.compress.stages.training import (
    correct_teacher,
    distill_student,
    quantization_aware_distill,
)

__all__ = ["State", "evaluate_models", "run_stages"]


def run_stages(state: State) -> None:
    """Run every stage of the recipe except the last one, `evaluate_models`, in order."""
    recipe = state.recipe
    state.choose_arithmetic()
    if recipe.synthesize:
        synthesize_text(state, recipe.synthesize)
    if recipe.vocabulary:
        trim_teacher(state, recipe.vocabulary.size)
    pack_rows(state)
    if recipe.correct:
        correct_teacher(state, recipe.correct)
    if recipe.search or recipe.prune:
        score_importance(state, recipe.importance)
        prune_teacher(state, search_shape(state) if recipe.search else requested_shape(state))
    if recipe.distill:
        distill_student(state, recipe.distill)
    if recipe.qad:
        quantization_aware_distill(state, recipe.qad)
    if recipe.align:
        align_student(state, recipe.align)
