"""One quantized matrix of a checkpoint, and the stored tensors that it is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgelm.checkpoint.weights.safetensors_header import StoredTensor
from edgelm.checkpoint.weights.values import check_finite, read_tensor
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.quantize.precision import WeightPrecision

if TYPE_CHECKING:
    import torch

    from edgelm.quantize.grids import Inputs

FLOATS = ("F32", "F16", "BF16")


class Levels(Protocol):
    """A matrix as it is stored: one of edgelm.quantize.grids, or what only has values."""

    def dequantize(self) -> "torch.Tensor":
        """The matrix in fp32."""


def _as_they_are() -> None:
    return None


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix of which the checkpoint stores levels.

    shape: [N, K]; of stacked experts [experts, N, K], or [experts, K, N] of gpt-oss.
    format: for messages, e.g. `GPTQ, 4 bits`.
    paths: the files of its parts.
    read: reads levels, scales and zero points.
    find_precision: of edgelm's formats the one that holds these numbers exactly, for inputs as
        `find_inputs` says; None where none does. Reads at most zero points.
    bits: of a level.
    find_inputs: what is done to the inputs before they meet the levels; None where nothing is.
    """

    shape: tuple[int, ...]
    format: str
    paths: tuple[Path, ...]
    read: Callable[[], Levels]
    find_precision: Callable[[], WeightPrecision | None]
    bits: int = 4
    find_inputs: "Callable[[], Inputs | None]" = _as_they_are

    @cached_property
    def precision(self) -> WeightPrecision | None:
        """The format that holds the matrix exactly: groups of any size, 0 for a channel."""
        return self.find_precision()

    @cached_property
    def inputs(self) -> "Inputs | None":
        """What is done to the inputs before they meet the levels."""
        return self.find_inputs()

    def dequantize(self) -> "torch.Tensor":
        """The matrix in fp32, in its shape."""
        return self.read().dequantize().view(self.shape)


@dataclass(frozen=True)
class Parts:
    """The stored tensors of one module, e.g. `model.layers.0.mlp.up_proj`, by their last name."""

    module: str
    tensors: Mapping[str, StoredTensor]

    def __contains__(self, part: str) -> bool:
        return part in self.tensors

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that they are in."""
        return tuple(dict.fromkeys(tensor.path for tensor in self.tensors.values()))

    def expect(
        self, part: str, dtypes: tuple[str, ...], shape: tuple[int, ...] | None = None
    ) -> tuple[int, ...]:
        """The shape of a part, after checking it and the type.

        Raises:
            BadCheckpoint: it is missing, or has another type or shape.
        """
        if part not in self.tensors:
            raise self._missing(part)
        stored = self.tensors[part]
        if stored.dtype not in dtypes:
            raise self.wrong(part, f"is stored as {stored.dtype}, expected {' or '.join(dtypes)}")
        if shape is not None and stored.shape != shape:
            raise self.wrong(
                part, f"has shape {list(stored.shape)}, expected {list(shape)} to match its levels"
            )
        return stored.shape

    def dtype(self, part: str) -> str:
        """The type of a part.

        Raises:
            BadCheckpoint: it is missing.
        """
        if part not in self.tensors:
            raise self._missing(part)
        return self.tensors[part].dtype

    def matrix(self, part: str, dtypes: tuple[str, ...]) -> tuple[int, int]:
        """The shape of a part that has two dimensions, after checking it and the type."""
        shape = self.expect(part, dtypes)
        if len(shape) != 2 or not all(shape):
            raise self.wrong(part, f"has shape {list(shape)}, expected two dimensions")
        return shape[0], shape[1]

    def tensor(self, part: str) -> "torch.Tensor":
        """A part in its stored type."""
        return read_tensor(self.tensors[part])

    def floats(self, part: str) -> "torch.Tensor":
        """A part in fp32.

        Raises:
            BadCheckpoint: it has NaN or infinite values.
        """
        tensor = self.tensor(part).float()
        check_finite(tensor, self._title(part))
        return tensor

    def wrong(self, part: str, what: str) -> BadCheckpoint:
        """An error about a part."""
        return BadCheckpoint(
            f"{self._title(part)} {what}; is the quantized model's configuration from another "
            "one, or the file damaged?"
        )

    def _missing(self, part: str) -> BadCheckpoint:
        some = next(iter(self.tensors.values()))
        return BadCheckpoint(
            f"{some.path}: {self.module} has {', '.join(sorted(self.tensors))}, but no {part}; "
            "the quantized checkpoint is incomplete, download it again"
        )

    def _title(self, part: str) -> str:
        stored = self.tensors[part]
        return f"{stored.path}: {shown(stored.name)}"
