"""The tensors of a GGUF file as torch tensors."""

from typing import TYPE_CHECKING

from edgelm.checkpoint.gguf.reader import GgufFile

if TYPE_CHECKING:
    import torch


class GgufTensors:
    """Reads tensors by name; of a matrix also a few rows, without dequantizing the others."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file

    @property
    def read_by_transformers(self) -> bool:
        """Whether transformers itself reads the file."""
        return self._file.read_by_transformers

    def __call__(self, name: str) -> "torch.Tensor":
        """One tensor in fp32, in Hugging Face's layout."""
        import torch

        return torch.from_numpy(self._file.read(name))

    def rows(self, name: str, rows: "torch.Tensor") -> "torch.Tensor":
        """Rows of a matrix, fp32, by their numbers, int64 [R]."""
        import torch

        return torch.from_numpy(self._file.read_rows(name, rows.numpy()))
