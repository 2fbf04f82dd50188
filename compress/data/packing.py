"""Documents in, packed rows of tokens out.

Documents are joined with an end-of-sequence token between and cut into rows of equal length, so
that no position of a batch is padding; a row may hold several documents, and attention sees all of
it, as in pre-training.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edgelm.compress.data.documents import Document
from edgelm.compress.model import Tokenizer
from edgelm.errors import BadInput
from edgelm.files.staging import replace_file

_REPORT_EVERY = 256  # documents between two calls of `progress`


@dataclass(frozen=True)
class PackedTokens:
    """Rows of tokens, int32 [rows, length], mapped from a file."""

    rows: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def length(self) -> int:
        """Tokens per row."""
        return int(self.rows.shape[1])

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return int(self.rows.size)

    def batch(self, indices: Iterable[int]) -> torch.Tensor:
        """Rows by index, int64 [B, length]."""
        return torch.from_numpy(self.rows[list(indices)].astype(np.int64))

    @classmethod
    def load(cls, path: Path) -> "PackedTokens":
        """Map what `pack` wrote."""
        return cls(np.load(path, mmap_mode="r"))


def pack(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    length: int,
    path: Path,
    *,
    max_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> PackedTokens:
    """Tokenize documents, join them and write full rows; the file appears complete or not at all.

    Args:
        documents: in the order in which they are joined.
        tokenizer: of the teacher.
        length: tokens per row.
        path: a `.npy` file to write.
        max_tokens: stop after this number of tokens.
        progress: called with the number of tokens so far.

    Raises:
        BadInput: too little text for one row.
    """
    end = tokenizer.eos_token_id
    parts: list[npt.NDArray[np.int32]] = []
    count, seen = 0, 0
    for document in documents:
        seen += 1
        ids = document.tokens(tokenizer)
        if not ids:
            continue
        parts.append(np.asarray(ids if end is None else [*ids, end], np.int32))
        count += len(parts[-1])
        if progress and seen % _REPORT_EVERY == 0:
            progress(count)
        if max_tokens is not None and count >= max_tokens:
            break
    joined = np.concatenate(parts or [np.empty(0, np.int32)])[:max_tokens]
    if len(joined) < length:
        raise BadInput(
            f"too little data: {seen:,} documents with {len(joined):,} tokens make no row of "
            f"{length:,}; add text or reduce sequence_length"
        )
    rows = joined[: len(joined) // length * length].reshape(-1, length)
    replace_file(path, _npy(rows))
    return PackedTokens.load(path)


def _npy(array: npt.NDArray[np.int32]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def calibration_rows(tokens: PackedTokens, count: int, batch: int) -> Iterator[torch.Tensor]:
    """Batches of rows spread evenly over the data: neighboring documents are often similar."""
    count = min(count, len(tokens))
    indices = iter((np.arange(count) * len(tokens) // count).tolist())
    while rows := list(islice(indices, batch)):
        yield tokens.batch(rows)
