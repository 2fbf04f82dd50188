"""What can be refused before anything is loaded, in a second: names, files, budgets, batches."""

from collections.abc import Sequence
from pathlib import Path

from edgelm.compress.data.conversations import read_prompts
from edgelm.compress.data.documents import check_documents
from edgelm.compress.drafting.layers import spaced_layers
from edgelm.compress.evaluation.task_names import parse_tasks
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.puzzle.alternatives import Alternative, alternatives
from edgelm.compress.puzzle.costs import PuzzleCosts
from edgelm.compress.recipe import Recipe
from edgelm.compress.search.candidates import CostModel
from edgelm.compress.search.proposals import propose
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput
from edgelm.spec.decoder import DecoderSpec


def preflight(recipe: Recipe, spec: DecoderSpec, *, processes: int = 1) -> None:
    """Raise now what stages would raise hours later.

    Args:
        recipe: what is going to run.
        spec: the teacher.
        processes: of the run, over which a step's rows are divided.

    Raises:
        BadInput: stages that cannot be combined, files that do not exist, illegal sizes.
        UnknownName: of a target, an engine or a task.
        DoesNotFit: no shape meets the budget; the closest one is named.
    """
    recipe.check()
    _check_family(recipe, spec)
    _check_names_and_files(recipe)
    for table in filter(None, (recipe.correct, recipe.distill, recipe.qad)):
        recipe.training(table, bf16=False).check(processes)
    if recipe.search:
        propose(_costs(recipe, spec), recipe.search)
    if recipe.prune:
        requested_shape(recipe, spec)
    if recipe.align:
        batch = recipe.align.request(recipe.seed).batch_size
        if batch % processes:
            raise BadInput(
                f"[align] batch_size {batch} cannot be divided over {processes} processes; use a "
                "multiple of them"
            )
    if recipe.draft:
        spaced_layers(spec, recipe.draft.num_hidden_layers)
    if recipe.puzzle:
        recipe.training(recipe.puzzle, bf16=False).check(1)
        puzzle_costs(recipe, spec).check_possible(puzzle_alternatives(recipe, spec))


def _check_family(recipe: Recipe, spec: DecoderSpec) -> None:
    tables = ("search", "prune", "puzzle", "draft", "qad")
    asked = next((name for name in tables if getattr(recipe, name) is not None), None)
    if spec.entangles_layers and asked is not None:
        raise BadInput(
            f"[{asked}] cannot be used with {spec.family}: its layers are not built alike (they "
            "have different heads, shared keys and values, additional inputs or only one "
            "sublayer), so that no part can be removed or quantized in all of them; [correct] and "
            "[distill] can be used"
        )
    if spec.mixtures and asked is not None:
        raise BadInput(
            f"[{asked}] cannot be used with {spec.family}: importance, pruning and fake "
            "quantization of experts are not supported; [correct] and [distill] are"
        )


def requested_shape(recipe: Recipe, spec: DecoderSpec) -> Shape:
    """The shape of the recipe's [prune] table, if the target's engine can run it."""
    assert recipe.prune is not None
    shape = recipe.prune.shape(Shape.from_spec(spec))
    shape.check_within(spec)
    _costs(recipe, spec).check_kernels(shape)
    return shape


def puzzle_costs(recipe: Recipe, spec: DecoderSpec) -> PuzzleCosts:
    """The planner's costs of students whose layers differ."""
    return PuzzleCosts(spec, load_profile(recipe.target.name), recipe.target.budget)


def puzzle_alternatives(recipe: Recipe, spec: DecoderSpec) -> list[Alternative]:
    """The alternatives of the recipe's [puzzle] table that the target's engine has kernels for."""
    assert recipe.puzzle is not None
    return alternatives(spec, recipe.puzzle, recipe.target.kernels.width_multiple)


def _costs(recipe: Recipe, spec: DecoderSpec) -> CostModel:
    return CostModel(spec, load_profile(recipe.target.name), recipe.target.budget)


def _check_names_and_files(recipe: Recipe) -> None:
    if recipe.shapes or recipe.qad:
        load_profile(recipe.target.name).engine(recipe.target.engine)
    if recipe.evaluate:
        _check_tasks(recipe.evaluate.tasks)
    if recipe.importance.layer_task:
        _check_tasks([recipe.importance.layer_task])
    for source in (*recipe.data, *filter(None, [recipe.held_out])):
        check_documents(source)
    if recipe.synthesize and recipe.synthesize.prompts:
        read_prompts(Path(recipe.synthesize.prompts))
    if recipe.align and not Path(recipe.align.data).is_file():
        raise BadInput(f"[align] data: no such file: {recipe.align.data}")


def _check_tasks(names: Sequence[str]) -> None:
    """Names, files, and that a student can run the task."""
    kinds = {task.kind for task in parse_tasks(names)}
    if "mt_bench" in kinds:
        raise BadInput(
            "the task mt_bench needs a judge, which a recipe does not have; run it with edge-eval"
        )
    if "functions" in kinds:
        raise BadInput(
            "the task functions reads calls with the runtime's parser, which a recipe does not "
            "have; use function_choice in the recipe, and edge-eval with --tasks functions"
        )
