"""The student of chosen alternatives, from the teacher's weights and the trained halves."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint.own_modules import half_name
from edgelm.compress.model import Model, build_model
from edgelm.compress.puzzle.alternatives import Alternative, with_alternatives
from edgelm.compress.puzzle.library import read_half
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.own_sizes import FIELD, own_sizes
from edgelm.spec.tensor_shapes import tensor_shapes


def assemble(
    teacher: Model, spec: DecoderSpec, chosen: Sequence[Alternative], library: Path
) -> Model:
    """A student in the teacher's type, with layers of their own sizes; nothing is trained here.

    Args:
        teacher: not changed.
        spec: the teacher's.
        chosen: at most one alternative of each half of a layer.
        library: folder of the trained halves.
    """
    student = with_alternatives(spec, chosen)
    weights = {name: tensor.detach() for name, tensor in teacher.state_dict().items()}
    for one in chosen:
        if one.is_trained:
            half = read_half(teacher, spec, library, one)
            name = half_name(spec, one.layer, one.half)
            weights |= {
                f"{name}.{key}": tensor.to(teacher.dtype)
                for key, tensor in half.state_dict().items()
            }
    state: dict[str, torch.Tensor] = {
        name: weights[name].clone() for name in tensor_shapes(student)
    }
    return build_model(_config(teacher, student), state)


def _config(teacher: Model, student: DecoderSpec) -> Any:
    config = copy.deepcopy(teacher.config)
    config.head_dim = student.head_dim
    setattr(config, FAMILIES[student.family].ffn_field, student.intermediate_size)
    if hasattr(config, "block_auto_adjust_ff_dim"):
        config.block_auto_adjust_ff_dim = False  # the size is that of the matrices
    if (sizes := own_sizes(student)) is not None:
        setattr(config, FIELD, sizes)
    return config
