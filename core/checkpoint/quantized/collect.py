"""The quantized matrices among a checkpoint's tensors, in the place of their parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from edgelm.checkpoint.quantized.formats.mxfp4 import Mxfp4
from edgelm.checkpoint.quantized.method import Reader
from edgelm.checkpoint.quantized.packed import PackedMatrix, Parts
from edgelm.checkpoint.weights.safetensors_header import StoredTensor
from edgelm.errors import BadCheckpoint

_UNQUANTIZED = frozenset({"F64", "F32", "F16", "BF16"})


class Collected(NamedTuple):
    """A checkpoint's tensors, each matrix as one.

    stored: every tensor; a quantized matrix is one entry with the shape and type that it is read
        with.
    packed: the quantized ones, by the name of the tensor with their levels, which is that of
        their entry.
    """

    stored: Mapping[str, StoredTensor]
    packed: Mapping[str, PackedMatrix]


def collect(folder: Path, reader: Reader, stored: Mapping[str, StoredTensor]) -> Collected:
    """Put the parts of quantized matrices together.

    Raises:
        BadCheckpoint: parts are missing, or do not fit each other, or there are none.
    """
    separator = "_" if isinstance(reader, Mxfp4) else "."
    modules = _by_module(stored, reader.parts | {"weight"}, separator)
    quantized = {
        module: Parts(module, tensors)
        for module, tensors in modules.items()
        if _is_quantized(tensors)
    }
    left = dict(stored)
    packed: dict[str, PackedMatrix] = {}
    for module, parts in quantized.items():
        name = module if separator == "_" else f"{module}.weight"
        matrix = reader.matrix(parts)
        levels = max(parts.tensors.values(), key=lambda one: one.end - one.start)
        packed[levels.name] = matrix
        for part in parts.tensors:
            del left[f"{module}{separator}{part}"]
        # Its type is that of what is read.
        left[name] = levels._replace(dtype="F32", shape=matrix.shape)
    if not packed:
        raise BadCheckpoint(
            f"{folder} is quantized ({reader.name}) by its configuration, but none of its tensors "
            "is; if they are the unquantized weights, remove the configuration of the quantization"
        )
    return Collected(left, packed)


def _by_module(
    stored: Mapping[str, StoredTensor], parts: frozenset[str], separator: str
) -> dict[str, dict[str, StoredTensor]]:
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        module, found, part = name.rpartition(separator)
        if found and part in parts:
            modules.setdefault(module, {})[part] = tensor
    return modules


def _is_quantized(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether a module has more than an unquantized weight."""
    if set(tensors) != {"weight"}:
        return True
    return tensors["weight"].dtype not in _UNQUANTIZED
