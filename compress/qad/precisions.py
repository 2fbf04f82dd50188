"""The precisions that quantization-aware distillation trains for, as export will store them."""

import msgspec

from edgelm.compress.recipe.recipe import Recipe
from edgelm.compress.recipe.tables import Qad
from edgelm.devices.kernels import check_shape
from edgelm.errors import BadInput
from edgelm.quantize.precision import Int4, Int8, describe
from edgelm.spec.decoder import DecoderSpec


def qad_precisions(recipe: Recipe, student: DecoderSpec) -> tuple[Int4 | Int8, Int4 | Int8]:
    """The precisions of layers and head for a student.

    The kernels of experts pad no rows: without a `group_size` in the recipe, groups are the largest
    up to the default that divide the inputs of all experts.

    Raises:
        BadInput: no groups divide them, or the target's engine cannot run experts.
    """
    layers, head = recipe.qad_precisions
    if not student.mixtures:
        return layers, head
    assert recipe.qad is not None
    kernels = recipe.target.kernels
    try:
        check_shape(student, recipe.target.engine_name)
    except BadInput as error:
        raise BadInput(f"[qad] for {recipe.target.name}: {error}; remove [qad]") from None
    inputs = sorted({student.hidden_size, *(one.size for one in student.mixtures)})
    fitted = kernels.for_experts(layers, inputs)
    requested = recipe.qad.group_size
    if fitted is None or requested not in (None, fitted.group_size):
        remedy = (
            "no group size divides them; prune moe_intermediate_size and hidden_size to "
            "multiples of 16"
            if fitted is None
            else f"set group_size = {fitted.group_size}"
        )
        raise BadInput(
            f"[qad] {describe(layers)}: experts have {' and '.join(map(str, inputs))} inputs, "
            f"which are not all multiples of {layers.group_size}, and their kernel pads no rows; "
            f"{remedy}"
        )
    if requested is None:
        head = _in_groups(head, fitted.group_size)
    return fitted, head


def target_precisions(
    recipe: Recipe, target: DecoderSpec
) -> tuple[Int4 | Int8, Int4 | Int8] | None:
    """The precisions of the bundle that a draft is made for; None if [draft] names none.

    Raises:
        BadInput: as `qad_precisions`; a group size without a precision.
    """
    draft = recipe.draft
    if draft is None or draft.precision is None:
        if draft is not None and draft.group_size is not None:
            raise BadInput("[draft] group_size needs a precision; give it, or remove group_size")
        return None
    as_qad = Qad(precision=draft.precision, group_size=draft.group_size)
    try:
        as_qad.check(recipe.target)
        layers, head = qad_precisions(msgspec.structs.replace(recipe, qad=as_qad), target)
    except BadInput as error:
        said = str(error).replace("[qad]", "[draft]").replace(', or set head = "int4"', "")
        raise BadInput(said) from None
    kernels = recipe.target.kernels
    if kernels.has_zero_points:  # as export will quantize it
        head = kernels.for_table(head, target.hidden_size)
    return layers, head


def _in_groups(precision: Int4 | Int8, size: int) -> Int4 | Int8:
    return type(precision)(size, symmetric=precision.symmetric)
