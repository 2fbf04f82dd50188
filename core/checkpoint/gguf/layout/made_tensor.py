"""A tensor of a Hugging Face checkpoint, as it is made of what a GGUF file stores.

Stored tensors are read as rows; each row has its place among the rows of the tensor that is made.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from edgelm.checkpoint.gguf.layout.names import Place
from edgelm.checkpoint.gguf.stored_tensor import FLOATS, Stored, values
from edgelm.errors import BadCheckpoint

Indices = npt.NDArray[np.int64]
_T = TypeVar("_T", bound=np.generic)
Form = Literal["plain", "stack", "stack_vector", "conv", "vector"]
_STACKS = ("experts.gate_up_proj", "experts.down_proj")
_CONVS = (".conv.conv.weight", ".conv1d.weight")
# llama.cpp keeps these in two dimensions.
_VECTORS = (".A_log", ".D", ".mamba.norm.weight", ".mixer.norm.weight")
_DIMENSIONS = {"stack": 3, "stack_vector": 2, "conv": 2}


@dataclass(frozen=True)
class Made:
    """One tensor.

    parts: one stored tensor, or two of the same shape, whose rows are joined.
    alternating: rows of the two parts alternate, and stacks are stored transposed.
    """

    name: str
    parts: tuple[Stored, ...]
    alternating: bool

    @property
    def form(self) -> Form:
        """How its dimensions differ from the stored ones; malformed ones are left as they are."""
        form: Form = "plain"
        if self.name.endswith(_STACKS):
            form = "stack"
        elif self.name.endswith(tuple(f"{stack}_bias" for stack in _STACKS)):
            form = "stack_vector"
        elif self.name.endswith(_CONVS):
            form = "conv"
        elif self.name.endswith(_VECTORS):
            return "vector"
        return form if _DIMENSIONS.get(form) == len(self._stored_shape) else "plain"

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        stored, count = self._stored_shape, len(self.parts)
        if self.form == "stack":
            experts, rows, columns = stored
            matrix = (rows * count, columns)
            return (experts, *(reversed(matrix) if self.alternating else matrix))
        if self.form == "stack_vector":
            return stored[0], stored[1] * count
        if self.form == "conv":
            return stored[0], 1, stored[1]
        if self.form == "vector":
            return (math.prod(stored),)
        return (stored[0] * count, *stored[1:])

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """As a matrix, of all experts below each other; the columns of a vector are one."""
        single = self.form in ("vector", "stack_vector") or len(self._stored_shape) == 1
        columns = 1 if single else self._stored_shape[-1]
        return len(self.parts) * math.prod(self._stored_shape) // columns, columns

    @property
    def is_quantized(self) -> bool:
        """Whether every part is, of a matrix or a stack of them."""
        matrix = self.form == "stack" or (self.form == "plain" and len(self.shape) == 2)
        return matrix and not any(part.info.ggml_type in FLOATS for part in self.parts)

    def check(self) -> None:
        """Raise BadCheckpoint unless the parts fit each other."""
        first, *others = self.parts
        for other in others:
            if other.info.shape != first.info.shape:
                raise BadCheckpoint(
                    f"{other.part.path}: {other.name} has shape {list(other.info.shape)}, expected "
                    f"that of {first.name}, {list(first.info.shape)}; convert the model again"
                )

    def joined(self) -> list[Indices | None]:
        """The places of each part's rows; None for all in order."""
        if len(self.parts) == 1:
            return [None]
        rows = self.rows_and_columns[0] // 2
        group = self._stored_shape[1] if self.form in ("stack", "stack_vector") else rows
        inner, outer = np.arange(rows) % group, np.arange(rows) // group
        if self.alternating:
            return [2 * group * outer + 2 * inner + index for index in range(2)]
        return [2 * group * outer + index * group + inner for index in range(2)]

    def values(
        self, rows: list[Indices | None], columns: Indices | None
    ) -> npt.NDArray[np.float32]:
        """Its values, fp32.

        Args:
            rows: the places of each part's rows.
            columns: the places of columns; None for all in order.
        """
        parts = [values(part).reshape(-1, self.rows_and_columns[1]) for part in self.parts]
        matrix = in_places(parts, rows, columns)
        if self.form == "stack" and self.alternating:
            experts, inputs, outputs = self.shape
            stack = matrix.reshape(experts, outputs, inputs)
            return np.ascontiguousarray(stack.swapaxes(1, 2))
        return matrix.reshape(self.shape)

    @property
    def _stored_shape(self) -> tuple[int, ...]:
        return self.parts[0].info.shape


def in_places(
    parts: list[npt.NDArray[_T]], rows: list[Indices | None], columns: Indices | None
) -> npt.NDArray[_T]:
    """Matrices of the same width as one; each row and column in its place."""
    whole = parts[0]
    if len(parts) > 1 or rows[0] is not None:
        whole = np.empty((sum(map(len, parts)), parts[0].shape[1]), parts[0].dtype)
        for part, places in zip(parts, rows, strict=True):
            whole[slice(None) if places is None else places] = part
    if columns is None:
        return whole
    moved = np.empty_like(whole)
    moved[:, columns] = whole
    return moved


def collect(
    stored: dict[str, dict[int, tuple[Place, Stored]]], *, alternating: bool
) -> dict[str, Made]:
    """The tensors that a file's are parts of.

    Args:
        stored: for each name the parts, by their index.
        alternating: see `Made`.

    Raises:
        BadCheckpoint: one of two parts is missing, or they do not fit each other.
    """
    found = {}
    for name, parts in stored.items():
        place, one = next(iter(parts.values()))
        if len(parts) < place.parts:
            raise BadCheckpoint(
                f"{one.part.path}: {one.name} is one of two tensors of {name}, and the other one "
                "is missing; convert the model again"
            )
        found[name] = Made(name, tuple(parts[index][1] for index in sorted(parts)), alternating)
        found[name].check()
    return found
