"""The stages of a recipe, each from files to files."""

from edgelm.compress.stages.data import pack_rows, synthesize_text, trim
from edgelm.compress.stages.finish import align_student, judge
from edgelm.compress.stages.shape import asked_shape, cut, find_shape, score_parts
from edgelm.compress.stages.state import State
from edgelm.compress.stages.training import correct_teacher, teach, teach_rounded

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
        score_parts(state, recipe.importance)
        cut(state, find_shape(state) if recipe.search else asked_shape(state))
    if recipe.distill:
        teach(state, recipe.distill)
    if recipe.qad:
        teach_rounded(state, recipe.qad)
    if recipe.align:
        align_student(state, recipe.align)
