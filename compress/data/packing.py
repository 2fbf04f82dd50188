"""Documents in, packed rows of tokens out.

Documents are joined, each between the tokens that the tokenizer begins and ends a text with, and
cut into rows of equal length, so that no position of a batch is padding; a row may hold several
documents, and attention sees all of it, as in pre-training.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgelm.compress.data.documents import Document
from edgelm.compress.data.token_batches import Encoder, token_batches
from edgelm.compress.data.unfinished_rows import UnfinishedRows
from edgelm.compress.model import Tokenizer
from edgelm.errors import BadInput

_RECORD_TOKENS = 1 << 24  # after which the progress is recorded; two minutes of tokenizing


@dataclass(frozen=True)
class PackedTokens:
    """Rows of tokens [rows, length], mapped from a file.

    chosen: indices of the rows that belong; None for all. starts: where documents begin, counted in
    tokens of all rows of the file, ascending; None if it is unknown.
    """

    rows: npt.NDArray[np.integer[Any]]
    chosen: npt.NDArray[np.int64] | None = None
    starts: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows if self.chosen is None else self.chosen)

    @property
    def length(self) -> int:
        """Tokens per row."""
        return int(self.rows.shape[1])

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return len(self) * self.length

    def batch(self, indices: Iterable[int]) -> torch.Tensor:
        """Rows by index, int64 [B, length]."""
        found = np.fromiter(indices, np.int64)
        return torch.from_numpy(self.rows[self._stored(found)].astype(np.int64))

    def positions(self, indices: Iterable[int]) -> torch.Tensor:
        """Positions of the tokens of rows in their documents, int64 [B, length].

        A document that begins in an earlier row is counted from the start of this one.

        Raises:
            BadInput: it is unknown where documents begin.
        """
        if self.starts is None:
            raise BadInput(
                "the data was packed without the documents' beginnings, which within_documents "
                "needs; pack it again (remove the folder `data` of the run)"
            )
        rows = []
        for row in self._stored(np.fromiter(indices, np.int64)).tolist():
            begin = row * self.length
            first, last = np.searchsorted(self.starts, (begin, begin + self.length))
            positions = np.arange(self.length)
            for start in (self.starts[first:last] - begin).tolist():
                positions[start:] = np.arange(self.length - start)
            rows.append(positions)
        return torch.from_numpy(np.stack(rows))

    def only(self, indices: npt.NDArray[np.int64]) -> "PackedTokens":
        """Some of the rows; nothing is copied."""
        return PackedTokens(self.rows, self._stored(indices), self.starts)

    def without(self, indices: npt.NDArray[np.int64]) -> "PackedTokens":
        """All rows but some; nothing is copied."""
        return self.only(np.setdiff1d(np.arange(len(self)), indices))

    def _stored(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return indices if self.chosen is None else self.chosen[indices]

    @classmethod
    def load(cls, path: Path) -> "PackedTokens":
        """Map what `pack` wrote."""
        starts = _starts_of(path)
        return cls(
            np.load(path, mmap_mode="r"),
            starts=np.load(starts, mmap_mode="r") if starts.is_file() else None,
        )


def pack(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    length: int,
    path: Path,
    *,
    max_tokens: int | None = None,
    processes: int = 1,
    progress: Callable[[int], None] | None = None,
    resumes: bool = False,
) -> PackedTokens:
    """Tokenize documents, join them and write full rows; the file appears when it is complete.

    Memory is that of a few batches of documents, however long the data is.

    Args:
        documents: in the order in which they are joined.
        tokenizer: of the teacher.
        length: tokens per row.
        path: a `.npy` file to write: uint16 for vocabularies of up to 65,536 tokens, else int32.
        max_tokens: stop after this number of tokens.
        processes: that tokenize; the result does not depend on it.
        progress: called with the number of tokens so far.
        resumes: leave what was written where an error ends it, and continue it next time; the
            documents have to be the same.

    Raises:
        BadInput: too little text for one row.
    """
    encoder = Encoder(tokenizer)
    files = UnfinishedRows(path, _starts_of(path), length, encoder.dtype, resumes=resumes)
    rest = islice(documents, files.documents, None)
    batches = token_batches(rest, encoder, processes=processes)
    recorded = files.tokens
    try:
        with closing(batches):
            for batch in batches:
                starts = files.tokens + (batch.lengths.cumsum() - batch.lengths)
                starts, found = starts[batch.lengths > 0], batch.tokens
                if max_tokens is not None:
                    starts = starts[: np.searchsorted(starts, max_tokens)]
                    found = found[: max_tokens - files.tokens]
                files.add(found, starts, len(batch.lengths))
                if resumes and files.tokens - recorded >= _RECORD_TOKENS:
                    files.record()
                    recorded = files.tokens
                if progress:
                    progress(files.tokens)
                if max_tokens is not None and files.tokens >= max_tokens:
                    break
        if files.tokens < length:
            resumes = False
            raise BadInput(
                f"too little data: {files.documents:,} documents with {files.tokens:,} tokens "
                f"make no row of {length:,}; add text or reduce sequence_length"
            )
        files.finish()
    except BaseException:
        if resumes:
            files.close()
        else:
            files.discard()
        raise
    return PackedTokens.load(path)


def _starts_of(path: Path) -> Path:
    """The file with the documents' beginnings, next to the one with the rows."""
    return path.with_name(f"{path.stem}.starts.npy")


def calibration_rows(tokens: PackedTokens, count: int, batch: int) -> Iterator[torch.Tensor]:
    """Batches of rows spread evenly over the data: neighboring documents are often similar."""
    count = min(count, len(tokens))
    indices = iter((np.arange(count) * len(tokens) // count).tolist())
    while rows := list(islice(indices, batch)):
        yield tokens.batch(rows)
