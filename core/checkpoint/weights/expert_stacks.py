"""Stack the matrices of experts that a file stores one by one.

Transformers 5 computes with one tensor for all experts, and most published checkpoints have a
matrix for each: `mlp.experts.7.up_proj.weight`. Both are read, and are the same afterwards.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from edgelm.checkpoint.weights.safetensors_header import StoredTensor
from edgelm.errors import BadCheckpoint
from edgelm.spec.tensor_shapes import Shapes

# Stacks under names of their own (Granite).
_RENAMED = {
    "block_sparse_moe.input_linear.weight": "block_sparse_moe.experts.gate_up_proj",
    "block_sparse_moe.output_linear.weight": "block_sparse_moe.experts.down_proj",
    "block_sparse_moe.router.layer.weight": "block_sparse_moe.router.weight",
}
_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w3|w2)\.weight$")
# Of a stack, the matrices of one expert in the order of its rows, by either name.
_PARTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}


def with_stacked_experts(
    folder: Path, stored: Mapping[str, StoredTensor], expected: Shapes
) -> Mapping[str, StoredTensor]:
    """The tensors with one stack in place of the matrices of single experts.

    Raises:
        BadCheckpoint: experts are missing, or differ in shape or type.
    """
    stored = {_renamed(name): one for name, one in stored.items()}
    single = {name: match for name in stored if (match := _EXPERT.match(name))}
    if not single:
        return stored
    stacked = {name: one for name, one in stored.items() if name not in single}
    used: set[str] = set()
    for prefix in dict.fromkeys(match[1] for match in single.values()):
        for suffix, spellings in _PARTS.items():
            name = f"{prefix}.{suffix}"
            if name not in expected:  # a base model is saved without the prefix `model.`
                name = f"model.{name}"
            if name not in expected or name in stored:
                continue
            count = expected[name][0]
            names = _names(stored, prefix, spellings, count)
            missing = next((one for one in names if one not in stored), None)
            if missing is not None:
                raise BadCheckpoint(
                    f"{folder} lacks {missing!r}, one of {count} experts that config.json implies; "
                    "is a shard missing, or config.json from another model?"
                )
            stacked[name] = _stack(folder, name, [stored[one] for one in names], count)
            used.update(names)
    # What is left over is reported with all others that do not belong to the model.
    return stacked | {name: stored[name] for name in single if name not in used}


def _renamed(name: str) -> str:
    found = (end for end in _RENAMED if name.endswith(f".{end}"))
    end = next(found, None)
    return name if end is None else name.removesuffix(end) + _RENAMED[end]


def _names(
    stored: Mapping[str, StoredTensor],
    prefix: str,
    spellings: tuple[tuple[str, ...], ...],
    count: int,
) -> list[str]:
    parts = next(
        (each for each in spellings if f"{prefix}.0.{each[0]}.weight" in stored), spellings[0]
    )
    return [f"{prefix}.{expert}.{part}.weight" for expert in range(count) for part in parts]


def _stack(folder: Path, name: str, parts: list[StoredTensor], count: int) -> StoredTensor:
    first = parts[0]
    for part in parts:
        if (part.shape, part.dtype) != (first.shape, first.dtype) or len(part.shape) != 2:
            raise BadCheckpoint(
                f"{folder}: {part.name} is {part.dtype} {list(part.shape)}, expected a matrix like "
                f"{first.name}, {first.dtype} {list(first.shape)}"
            )
    rows, columns = first.shape
    shape = (count, rows * (len(parts) // count), columns)
    return StoredTensor(first.path, name, first.dtype, shape, 0, 0, tuple(parts))
