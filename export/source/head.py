"""The head of a source, a part of its rows at a time.

The head of a large vocabulary would take 0.8 GB (128,256 tokens of 3,072 channels in bf16) while
its logits are compared, besides what the engine takes. It is read from its file for each product
instead, which the file cache makes cheap.
"""

from collections.abc import Iterator
from typing import Protocol

import torch

from edgelm.checkpoint.source import Checkpoint
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import EMBEDDING_WEIGHT, HEAD_WEIGHT

_LARGE = 2**28  # weights, of which smaller heads are read once and kept


class Head(Protocol):
    """A matrix [vocab, hidden] whose rows are used in parts; tensors are such matrices."""

    @property
    def shape(self) -> torch.Size:
        """[vocab, hidden]."""

    def split(self, rows: int, /) -> "Iterator[torch.Tensor] | tuple[torch.Tensor, ...]":
        """The rows in order, this many at a time, in their stored type."""


class HeadInFile:
    """A head that stays in its file.

    Args:
        checkpoint: its checkpoint.
        name: of the tensor [vocab, hidden].
    """

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name
        self.shape = torch.Size(checkpoint.shapes[name])

    def split(self, rows: int, /) -> Iterator[torch.Tensor]:
        """The rows in order, this many at a time, in their stored type."""
        for ids in torch.arange(self.shape[0]).split(rows):
            yield self._checkpoint.rows(self._name, ids)


def read_head(checkpoint: Checkpoint) -> Head:
    """A checkpoint's head, in memory unless it is large.

    So is one whose rows cannot be read alone: it would be made for each part of a product.
    """
    tied = checkpoint.spec.tie_word_embeddings
    name = stored_name(checkpoint.spec.family, EMBEDDING_WEIGHT) if tied else HEAD_WEIGHT
    vocabulary, width = checkpoint.shapes[name]
    if not checkpoint.reads_rows(name) or vocabulary * width < _LARGE:
        return checkpoint.tensor(name)
    return HeadInFile(checkpoint, name)
