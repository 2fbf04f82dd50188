"""Text in, packed tokens out.

Documents come from JSONL, plain text or Parquet files (gzip too), folders of them, or a name of
`datasets`. They are joined with an end-of-sequence token between and cut into rows of equal
length, so that no position of a batch is padding; a row may hold several documents, and attention
sees all of it, as in pre-training.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import torch

from edgelm.compress.model import Tokenizer
from edgelm.errors import BadInput, MissingPackage
from edgelm.files.staging import replace_file

_SUFFIXES = (".jsonl", ".txt", ".parquet")
# What damaged text and gzip raise.
_UNREADABLE = (OSError, EOFError, UnicodeDecodeError, zlib.error)
_MOST_CHARACTERS = 64_000_000  # of a document: tokenizing it takes some ten times that in bytes
_BATCH = 256  # documents that are tokenized at a time


@dataclass(frozen=True)
class Document:
    """One document: a text, or a conversation that the tokenizer's chat template renders."""

    text: str = ""
    messages: tuple[dict[str, str], ...] = ()

    def tokens(self, tokenizer: Tokenizer) -> list[int]:
        """Token ids, without special tokens around a text."""
        if self.messages:
            if not tokenizer.chat_template:
                raise BadInput(
                    "the data holds conversations (`messages`), and the tokenizer has no chat "
                    "template to render them; give text documents instead"
                )
            rendered = tokenizer.apply_chat_template(list(self.messages), tokenize=False)
            return cast(list[int], tokenizer(rendered, add_special_tokens=False)["input_ids"])
        return cast(list[int], tokenizer(self.text, add_special_tokens=False)["input_ids"])


def check_documents(source: str | Path) -> None:
    """Raise BadInput if a file or folder with documents is not there, or is of no known kind.

    What may be a `datasets` name is found out when it is loaded.
    """
    path = Path(source)
    if path.is_dir():
        if not any(map(_kind, path.iterdir())):
            raise BadInput(f"{path} holds no data file; expected {', '.join(_SUFFIXES)} (.gz)")
    elif path.is_file():
        if not _kind(path):
            raise BadInput(
                f"{path}: unknown kind of data file; expected {', '.join(_SUFFIXES)} (.gz)"
            )
    elif not _is_name(source):
        raise BadInput(f"no such data file: {path}")


def _is_name(source: str | Path) -> bool:
    return not Path(source).suffix and not str(source).startswith((".", "/", "~"))


def read_documents(source: str | Path) -> Iterator[Document]:
    """Documents of a file, a folder of files, or a `datasets` name (`name`, `name:split`).

    JSONL and Parquet hold `text` (a string) or `messages` (role and content) in each row.

    Raises:
        BadInput: nothing there, or a row without these fields; names the file and the line.
    """
    check_documents(source)
    path = Path(source)
    if path.is_dir():
        for file in sorted(file for file in path.iterdir() if _kind(file)):
            yield from _read_file(file)
    elif path.is_file():
        yield from _read_file(path)
    else:
        yield from _read_dataset(str(source))


def _kind(path: Path) -> str | None:
    name = path.name.removesuffix(".gz")
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)


def _read_file(path: Path) -> Iterator[Document]:
    kind = _kind(path)
    if kind == ".parquet":
        yield from _read_parquet(path)
    elif kind == ".jsonl":
        yield from _read_jsonl(path)
    else:
        try:
            with open_text(path) as file:
                text = file.read(_MOST_CHARACTERS + 1)
            _check_length(text, str(path))
            yield Document(text)
        except _UNREADABLE as error:
            raise BadInput(f"{path} cannot be read: {error}") from None


def open_text(path: Path) -> IO[str]:
    """Open a text file, gzip or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    return cast(IO[str], opener(path, "rt", encoding="utf-8"))


def _open_bytes(path: Path) -> IO[bytes]:
    opener = gzip.open if path.suffix == ".gz" else open
    return cast(IO[bytes], opener(path, "rb"))


def _read_jsonl(path: Path) -> Iterator[Document]:
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        yield _document(parse_line(line, where), where)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, and their numbers, of a text file, gzip or not.

    Raises:
        BadInput: the file cannot be read, or a line is too long to be one document.
    """
    try:
        with open_text(path) as file:
            # Bounded, since a few packed kilobytes can hold a line of gigabytes.
            lines = iter(lambda: file.readline(_MOST_CHARACTERS + 1), "")
            for number, line in enumerate(lines, 1):
                _check_length(line, f"{path}:{number}")
                if line.strip():
                    yield number, line
    except _UNREADABLE as error:
        raise BadInput(f"{path} cannot be read: {error}") from None


def parse_line(line: str, where: str) -> Any:
    """The JSON value of one line; `where` names it in messages."""
    try:
        return json.loads(line)
    except ValueError as error:
        raise BadInput(f"{where} is not JSON: {error}") from None
    except RecursionError:
        raise BadInput(f"{where} is nested too deeply to be read") from None


def _check_length(text: str, where: str) -> None:
    if len(text) > _MOST_CHARACTERS:
        raise BadInput(
            f"{where} has more than {_MOST_CHARACTERS:,} characters in one document; split it, one "
            "document a line in a .jsonl file"
        )


def _read_parquet(path: Path) -> Iterator[Document]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingPackage(
            f"reading {path} needs pyarrow: pip install 'edgelm[compress]'"
        ) from None
    try:
        number = 0
        with _open_bytes(path) as file:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield _document(row, f"{path}, row {number}")
    except (*_UNREADABLE, ValueError) as error:
        raise BadInput(f"{path} is not a Parquet file: {error}") from None


def _read_dataset(name: str) -> Iterator[Document]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise MissingPackage(
            f"{name} is no file, and loading it by name needs datasets: "
            "pip install 'edgelm[compress]'"
        ) from None
    parts = [*name.split(":"), "train"]
    try:
        rows = load_dataset(parts[0], split=parts[1], streaming=True)
    except Exception as error:  # datasets has no common base of its errors
        raise BadInput(
            f"{name!r} is no file or folder, and `datasets` cannot load it "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from None
    for number, row in enumerate(rows, 1):
        yield _document(row, f"{name}, row {number}")


def _document(row: Any, where: str) -> Document:
    if isinstance(row, dict):
        if isinstance(text := row.get("text"), str):
            return Document(text)
        if isinstance(messages := row.get("messages"), list) and all(map(_is_message, messages)):
            return Document(messages=tuple(messages))
    found = ", ".join(map(str, row))[:200] if isinstance(row, dict) else type(row).__name__
    raise BadInput(
        f"{where}: expected a field `text` (string) or `messages` (list of role and content), "
        f"found {found or 'an empty object'}"
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and {"role", "content"} <= set(message)


@dataclass(frozen=True)
class PackedTokens:
    """Rows of tokens, int32 [rows, length], mapped from a file."""

    rows: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def length(self) -> int:
        """Tokens a row."""
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
    """Tokenize documents, join them and write whole rows; the file appears complete or not at all.

    Args:
        documents: in the order in which they are joined.
        tokenizer: of the teacher.
        length: tokens a row.
        path: a `.npy` file to write.
        max_tokens: stop after so many.
        progress: called with the number of tokens so far.

    Raises:
        BadInput: not one whole row came together.
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
        if progress and seen % _BATCH == 0:
            progress(count)
        if max_tokens is not None and count >= max_tokens:
            break
    joined = np.concatenate(parts or [np.empty(0, np.int32)])[:max_tokens]
    if len(joined) < length:
        raise BadInput(
            f"the data is empty after reading: {seen:,} documents with {len(joined):,} tokens make "
            f"no row of {length:,}; give more text or a shorter sequence length"
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
    """Batches of rows spread evenly over the data: documents near each other are alike."""
    count = min(count, len(tokens))
    indices = iter((np.arange(count) * len(tokens) // count).tolist())
    while rows := list(islice(indices, batch)):
        yield tokens.batch(rows)
