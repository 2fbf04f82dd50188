"""The files of packed rows while they are written: after an interruption, writing resumes.

Rows, and where documents begin, are `.npy` files with another name until they are complete. From
time to time a record of how far they go is written; what follows it in the files is then written
again.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgelm.files.replacing import replace_file, sync_folder

_HEADER_BYTES = 128  # of a .npy file of version 1.0
_SUFFIX = ".unfinished"
_STARTS_TYPE = np.dtype(np.int64)


class _Record(msgspec.Struct, frozen=True):
    """How much of the data is in the files; `rest` are tokens behind the last full row."""

    length: int
    dtype: str
    documents: int = 0
    tokens: int = 0
    starts: int = 0
    rest: tuple[int, ...] = ()


class UnfinishedRows:
    """Packed rows, and where documents begin, that are being written.

    Args:
        path: of the rows when they are complete.
        starts_path: the same of the documents' beginnings.
        length: tokens per row.
        dtype: of a token.
        resumes: continue what an earlier writer has recorded here.

    Attributes:
        documents: how many are in the files.
        tokens: of these documents.
    """

    def __init__(
        self, path: Path, starts_path: Path, length: int, dtype: np.dtype[Any], *, resumes: bool
    ) -> None:
        self.length, self.dtype = length, dtype
        self._targets = (path, starts_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._paths = tuple(one.with_name(one.name + _SUFFIX) for one in self._targets)
        self._record_path = path.with_name(f"{path.stem}.json{_SUFFIX}")
        found = self._found() if resumes else None
        if found is None:
            self._record_path.unlink(missing_ok=True)
            found = _Record(length, dtype.str)
        self.documents, self.tokens, self._starts = found.documents, found.tokens, found.starts
        self._rest = np.array(found.rest, dtype)
        self._rows = (self.tokens - len(self._rest)) // length
        sizes = (self._rows * length * dtype.itemsize, self._starts * _STARTS_TYPE.itemsize)
        self._files = [
            self._open(one, _HEADER_BYTES + size)
            for one, size in zip(self._paths, sizes, strict=True)
        ]

    def add(self, tokens: npt.NDArray[Any], starts: npt.NDArray[np.int64], documents: int) -> None:
        """Append the tokens of a number of documents, which begin at `starts` of all tokens."""
        rest = np.concatenate([self._rest, tokens])
        full = len(rest) // self.length * self.length
        self._files[0].write(rest[:full].tobytes())
        self._files[1].write(starts.astype(_STARTS_TYPE).tobytes())
        self._rest = rest[full:]
        self._rows += full // self.length
        self._starts += len(starts)
        self.tokens += len(tokens)
        self.documents += documents

    def record(self) -> None:
        """Note how far the files go, when all of it is on the disk."""
        for file in self._files:
            _sync(file)
        rest = tuple(self._rest.tolist())
        known = (self.documents, self.tokens, self._starts, rest)
        content = _Record(self.length, self.dtype.str, *known)
        replace_file(self._record_path, msgspec.json.encode(content))

    def finish(self) -> None:
        """Give the files their names; the rows last: with them, all is complete."""
        shapes: tuple[tuple[int, ...], ...] = ((self._rows, self.length), (self._starts,))
        types = (self.dtype, _STARTS_TYPE)
        for file, shape, dtype in zip(self._files, shapes, types, strict=True):
            file.seek(0)
            file.write(_header(shape, dtype))
            _sync(file)
        self.close()
        for unfinished, target in zip(self._paths[::-1], self._targets[::-1], strict=True):
            unfinished.replace(target)
        self._record_path.unlink(missing_ok=True)
        sync_folder(self._targets[0].parent)

    def close(self) -> None:
        """Close the files, which remain; on a full disk, what is still buffered is lost."""
        for file in self._files:
            with suppress(OSError):
                file.close()

    def discard(self) -> None:
        """Remove what was written."""
        self.close()
        for path in (*self._paths, self._record_path):
            path.unlink(missing_ok=True)

    def _found(self) -> _Record | None:
        """What an earlier writer of the same rows has recorded, if its files are there."""
        try:
            found = msgspec.json.decode(self._record_path.read_bytes(), type=_Record)
            sizes = [path.stat().st_size for path in self._paths]
        except (OSError, ValueError, RecursionError):
            return None
        wanted = (found.tokens - len(found.rest)) * self.dtype.itemsize
        whole = sizes[0] >= _HEADER_BYTES + wanted
        whole &= sizes[1] >= _HEADER_BYTES + found.starts * _STARTS_TYPE.itemsize
        same = (found.length, found.dtype) == (self.length, self.dtype.str)
        return found if whole and same else None

    def _open(self, path: Path, size: int) -> Any:
        """A file to write behind its first `size` bytes; the header is written at the end."""
        file = path.open("r+b" if path.exists() else "w+b")
        file.truncate(size)
        file.seek(size)
        return file


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The start of a .npy file, of the same size for all shapes: rows are counted at the end."""
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    text = f"{fields!r}".ljust(_HEADER_BYTES - 11).encode() + b"\n"
    return np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text
