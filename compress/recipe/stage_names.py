"""The stages of a recipe by name, in the order in which they run."""

from edgelm.compress.recipe.recipe import Recipe
from edgelm.errors import UnknownName


def stage_names(recipe: Recipe) -> tuple[str, ...]:
    """The names of a recipe's stages: those of their folders in the folder of the run."""
    puzzle, distill, draft = recipe.puzzle, recipe.distill, recipe.draft
    wanted = {
        "synthesize": recipe.synthesize,
        "vocabulary": recipe.vocabulary,
        "data": True,
        "correct": recipe.correct,
        "draft-target": draft and draft.precision,
        "draft": draft,
        "importance": recipe.shapes and not draft,
        "puzzle-costs": puzzle and puzzle.costs == "measured",
        "puzzle-library": puzzle,
        "puzzle-scores": puzzle,
        "puzzle": puzzle,
        "search": recipe.search,
        "prune": recipe.search or recipe.prune,
        "cache": distill and distill.cache,
        "distill": distill,
        "qad": recipe.qad,
        "align": recipe.align,
        "evaluate": recipe.evaluate,
        "acceptance": draft,
    }
    return tuple(name for name, is_run in wanted.items() if is_run)


def check_stage_name(recipe: Recipe, name: str) -> None:
    """Raise UnknownName unless the recipe has a stage of this name."""
    if name not in stage_names(recipe):
        known = ", ".join(stage_names(recipe))
        raise UnknownName(f"this recipe has no stage {name!r}; its stages are {known}")
