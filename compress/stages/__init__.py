"""The stages of a recipe, each from files to files."""

from edgelm.compress.stages.data import pack_rows, synthesize_text, trim
from edgelm.compress.stages.finish import align_student, judge
from edgelm.compress.stages.shape import cut, requested_shape, score_importance, search_shape
from edgelm.compress.stages.state import State
from edgelm.compress.stages.training import correct_teacher, quantization_aware_distill, teach

__all__ = ["State", "judge", "run_stages"]


def run_stages(state: State) -> None:
    """Every stage that the recipe has but the last one, `judge`, in their order."""
    recipe = state.recipe
    if recipe.synthesize:
        synthesize_text(state, recipe.synthesize)
    if recipe.vocabulary:
        trim(state, recipe.vocabulary.size)
    pack_rows(state)
    if recipe.correct:
        correct_teacher(state, recipe.correct)
    if recipe.search or recipe.prune:
        score_importance(state, recipe.importance)
        cut(state, search_shape(state) if recipe.search else requested_shape(state))
    if recipe.distill:
        teach(state, recipe.distill)
    if recipe.qad:
        quantization_aware_distill(state, recipe.qad)
    if recipe.align:
        align_student(state, recipe.align)
