"""What can be refused before anything is loaded, in a second: names, files, budgets, batches."""

import msgspec

from edgelm.checkpoint.source import read_spec
from edgelm.compress.distillation.loss.layer_map import check_map
from edgelm.compress.drafting.layers import spaced_layers
from edgelm.compress.needed_inputs import check_inputs
from edgelm.compress.pruning.shape import Shape, check_has_block
from edgelm.compress.puzzle.alternatives import Alternative, alternatives
from edgelm.compress.puzzle.costs import PuzzleCosts
from edgelm.compress.puzzle.measured import MeasuredTimes, check_measurable
from edgelm.compress.puzzle.settings import PuzzleSettings
from edgelm.compress.qad.precisions import qad_precisions, target_precisions
from edgelm.compress.recipe import Recipe
from edgelm.compress.search.candidates import CostModel
from edgelm.compress.search.proposals import propose
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput, DoesNotFit
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.depth import with_depth


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
    check_inputs(recipe, spec.max_position_embeddings)
    _check_lengths(recipe, spec)
    _check_trainings(recipe, processes)
    trimmed = least_vocabulary(recipe, spec)
    shapes = [requested_shape(recipe, trimmed)] if recipe.prune else []
    if recipe.search:
        shapes += [one.shape for one in propose(_costs(recipe, trimmed), recipe.search)]
    if recipe.qad:
        for student in [shape.applied_to(trimmed) for shape in shapes] or [
            student_spec(recipe, spec) or spec
        ]:
            qad_precisions(recipe, student)
    if recipe.importance.layers == "block" and not (recipe.prune and recipe.prune.layers):
        for depth in {shape.num_hidden_layers for shape in shapes}:
            check_has_block(spec, spec.num_hidden_layers - depth)
    if recipe.align:
        batch = recipe.align.request(recipe.seed).batch_size
        if batch % processes:
            raise BadInput(
                f"[align] batch_size {batch} cannot be divided over {processes} processes; use a "
                "multiple of them"
            )
    if recipe.draft:
        spaced_layers(spec, recipe.draft.num_hidden_layers)
        target_precisions(recipe, spec)
    if recipe.puzzle:
        recipe.training(recipe.puzzle, bf16=False).check(1)
        _check_puzzle(recipe, recipe.puzzle, spec, trimmed)
    _check_student(recipe, spec)


def _check_lengths(recipe: Recipe, spec: DecoderSpec) -> None:
    """Raise BadInput for sequences and tables that the teacher is too small for."""
    context = spec.max_position_embeddings
    if recipe.sequence_length > context:
        raise BadInput(
            f"sequence_length = {recipe.sequence_length:,}: the teacher's context is {context:,} "
            "tokens (max_position_embeddings), beyond which it predicts nothing sensible; set a "
            "lower one (in a recipe, which --print-recipe writes)"
        )
    if recipe.synthesize and recipe.synthesize.max_new_tokens >= context:
        raise BadInput(
            f"[synthesize] max_new_tokens = {recipe.synthesize.max_new_tokens:,}: the teacher's "
            f"context is {context:,} tokens with the prompt; lower it"
        )
    cache = recipe.distill.cache if recipe.distill else None
    vocabulary = spec.vocab_size
    if recipe.vocabulary and recipe.vocabulary.size:
        vocabulary = min(vocabulary, recipe.vocabulary.size)
    if cache and cache.kind == "top-k" and cache.size > vocabulary:
        raise BadInput(
            f"[distill.cache] size = {cache.size:,}: the vocabulary has {vocabulary:,} tokens, of "
            "which no more can be stored; lower it"
        )


def _check_trainings(recipe: Recipe, processes: int) -> None:
    """Raise BadInput for settings of a training that contradict each other; names its table."""
    for name in ("correct", "distill", "qad"):
        if (table := getattr(recipe, name)) is None:
            continue
        try:
            recipe.training(table, bf16=False).check(processes)
            if name == "qad":
                _ = recipe.qad_precisions
        except BadInput as error:
            raise BadInput(f"[{name}] {error}") from None


def _check_student(recipe: Recipe, spec: DecoderSpec) -> None:
    """Raise BadInput for what the student of this recipe cannot be trained with."""
    student = student_spec(recipe, spec)
    if recipe.distill and student is not None:
        try:
            check_map(recipe.distill.layer_map, student.num_hidden_layers, spec.num_hidden_layers)
        except BadInput as error:
            raise BadInput(f"[distill] {error}") from None
    if recipe.within_documents and (student or spec).is_hybrid:
        raise BadInput(
            f"within_documents cannot be used with {spec.family}: its layers remember more than "
            "keys and values, which no mask separates; remove the setting"
        )


def least_vocabulary(recipe: Recipe, spec: DecoderSpec) -> DecoderSpec:
    """The teacher with the fewest tokens that [vocabulary] may leave it.

    A budget must not be refused for tokens that will be removed. Without a size the data decides,
    after it was read.
    """
    if recipe.vocabulary is None:
        return spec
    size = min(spec.vocab_size, recipe.vocabulary.size or 1)
    inputs = spec.per_layer_inputs
    if inputs is not None:
        inputs = msgspec.structs.replace(inputs, vocab_size=size)
    return msgspec.structs.replace(spec, vocab_size=size, per_layer_inputs=inputs)


def student_spec(recipe: Recipe, spec: DecoderSpec) -> DecoderSpec | None:
    """The decoder that is trained; None where a search decides, or each layer has its own sizes."""
    if recipe.student:
        return read_spec(recipe.student)
    if recipe.prune:
        return recipe.prune.shape(spec).applied_to(spec, recipe.prune.layers or None)
    if recipe.draft:
        return with_depth(spec, recipe.draft.num_hidden_layers)
    return None if recipe.search or recipe.puzzle else spec


def requested_shape(recipe: Recipe, spec: DecoderSpec) -> Shape:
    """The shape of the recipe's [prune] table, if the target's engine can run it.

    Raises:
        BadInput: a shape that the teacher cannot be pruned to, or without kernels.
        DoesNotFit: the shape exceeds a limit of [target].
    """
    assert recipe.prune is not None
    shape = recipe.prune.shape(spec)
    shape.check_within(spec)
    costs = _costs(recipe, spec)
    costs.check_kernels(shape)
    if recipe.target_limits and (missing := costs(shape).missing):
        raise DoesNotFit(
            f"[prune]: the shape ({shape}) does not meet the budget of [target] on "
            f"{recipe.target.name}: {'; '.join(missing)}. Prune more, relax the limit, or let "
            "[search] find a shape"
        )
    return shape


def following_sizes(recipe: Recipe, spec: DecoderSpec) -> str | None:
    """What else the [prune] table removes than the sizes that it gives, as a line; None if nothing.

    Its shape is known to be legal (`preflight`).
    """
    heads = recipe.prune and recipe.prune.following_mamba_heads(spec)
    if recipe.prune is None or heads is None:
        return None
    return (
        f"prune: mamba_num_heads {heads} follows from hidden_size {recipe.prune.hidden_size}, from "
        f"which the class of {spec.family} derives the width of Mamba-2 layers"
    )


def _check_puzzle(
    recipe: Recipe, settings: PuzzleSettings, spec: DecoderSpec, trimmed: DecoderSpec
) -> None:
    found, costs = puzzle_alternatives(recipe, spec), puzzle_costs(recipe, trimmed)
    if settings.costs == "measured":
        check_measurable(spec, costs.profile, costs.request)
        costs = costs.untimed()  # times are not known yet
    costs.check_possible(found)


def puzzle_costs(
    recipe: Recipe, spec: DecoderSpec, measured: MeasuredTimes | None = None
) -> PuzzleCosts:
    """Costs of students whose layers differ: the planner's, unless times were measured."""
    return PuzzleCosts(spec, load_profile(recipe.target.name), recipe.target.budget, measured)


def puzzle_alternatives(recipe: Recipe, spec: DecoderSpec) -> list[Alternative]:
    """The alternatives of the recipe's [puzzle] table that the target's engine has kernels for.

    Raises:
        BadInput: sizes that the teacher does not have, or nothing to choose from.
    """
    assert recipe.puzzle is not None
    return alternatives(spec, recipe.puzzle, recipe.target.kernels.width_multiple)


def _costs(recipe: Recipe, spec: DecoderSpec) -> CostModel:
    chosen = recipe.prune.layers if recipe.prune else ()
    layers = (lambda _: chosen) if chosen else None
    return CostModel(spec, load_profile(recipe.target.name), recipe.target.budget, layers)
