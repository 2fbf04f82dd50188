"""Text documents and conversations from JSONL, plain text, Parquet, or a `datasets` name."""

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from edgelm.compress.data.chat_template import render_chat
from edgelm.compress.data.jsonl import (
    MAX_CHARACTERS,
    UNREADABLE,
    check_length,
    open_text,
    read_jsonl,
    unreadable,
)
from edgelm.compress.data.messages import read_messages, read_tools
from edgelm.errors import BadInput, MissingPackage
from edgelm.reasons import reason

Tokenizer = Any  # of transformers, which ships no types
_SUFFIXES = (".jsonl", ".txt", ".parquet")
_ROWS = 256  # rows of a Parquet file that are read at a time


@dataclass(frozen=True)
class Document:
    """One document: a text, or a conversation that the tokenizer's chat template renders.

    tools: that the conversation's assistant may call, as JSON schemas. where: file and line of a
    conversation, for errors.
    """

    text: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    where: str = field(default="", compare=False)

    @property
    def characters(self) -> int:
        """Characters of the text, or of all messages."""
        return len(self.text) + sum(len(str(one.get("content", ""))) for one in self.messages)

    def rendered(self, tokenizer: Tokenizer) -> str:
        """The text, or the conversation in the tokenizer's chat template.

        Raises:
            BadInput: a conversation, and no template to render it, or one that rejects it.
        """
        if not self.messages:
            return self.text
        if not tokenizer.chat_template:
            raise BadInput(
                "the data holds conversations (`messages`), but the tokenizer has no chat "
                "template to render them; use text documents instead"
            )
        return render_chat(tokenizer, self.messages, self.where, tools=self.tools)


class DocumentTokens(NamedTuple):
    """Token ids of a document, and whether they include what a text begins with."""

    ids: list[int]
    starts: bool


def tokenized(documents: Sequence[Document], tokenizer: Tokenizer) -> list[DocumentTokens]:
    """The tokens of documents, which the library encodes in parallel; no ends are added."""
    if not documents:
        return []
    texts = [document.rendered(tokenizer) for document in documents]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [
        DocumentTokens(one, bool(document.messages))
        for one, document in zip(ids, documents, strict=True)
    ]


def check_documents(source: str | Path) -> None:
    """Raise BadInput if a file or folder does not exist, or is of an unknown kind.

    A possible `datasets` name is checked when it is loaded.
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
    """Read the documents of a file, a folder, or a `datasets` name (`name`, `name:split`).

    JSONL and Parquet hold `text` (a string) or `messages` (role and content) in each row.

    Raises:
        BadInput: no such file, or a row without these fields; file and line are named.
    """
    check_documents(source)
    files = data_files(source)
    for file in files:
        yield from _read_file(file)
    if not files:
        yield from _read_dataset(str(source))


def data_files(source: str | Path) -> list[Path]:
    """The files that are read of a file or a folder; none of a `datasets` name."""
    path = Path(source)
    if path.is_dir():
        return sorted(file for file in path.iterdir() if _kind(file))
    return [path] if path.is_file() else []


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
                text = file.read(MAX_CHARACTERS + 1)
            check_length(text, str(path))
            yield Document(text)
        except UNREADABLE as error:
            raise unreadable(path, error) from None


def _open_bytes(path: Path) -> IO[bytes]:
    opener = gzip.open if path.suffix == ".gz" else open
    return cast(IO[bytes], opener(path, "rb"))


def _read_jsonl(path: Path) -> Iterator[Document]:
    for where, row in read_jsonl(path):
        yield _document(row, where)


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
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield _document(row, f"{path}, row {number}")
    except (*UNREADABLE, ValueError) as error:
        raise BadInput(f"{path} is not a Parquet file: {reason(error)}") from None


def _read_dataset(name: str) -> Iterator[Document]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise MissingPackage(
            f"{name} is not a file, and loading it by name needs datasets: "
            "pip install 'edgelm[compress]'"
        ) from None
    parts = [*name.split(":"), "train"]
    try:
        rows = load_dataset(parts[0], split=parts[1], streaming=True)
    except Exception as error:  # datasets has no common base class of errors
        raise BadInput(
            f"{name!r} is not a file or folder, and `datasets` cannot load it "
            f"({type(error).__name__}: {reason(error)})"
        ) from None
    for number, row in enumerate(rows, 1):
        yield _document(row, f"{name}, row {number}")


def _document(row: Any, where: str) -> Document:
    if isinstance(row, dict):
        if isinstance(text := row.get("text"), str):
            return Document(text)
        if isinstance(messages := row.get("messages"), list) and all(map(_is_message, messages)):
            if not all(map(_is_text, messages)):
                messages = read_messages(where, "messages", messages)
            return Document(messages=tuple(messages), tools=read_tools(where, row), where=where)
    found = ", ".join(map(str, row))[:200] if isinstance(row, dict) else type(row).__name__
    raise BadInput(
        f"{where}: expected a field `text` (string) or `messages` (list of role and content), "
        f"found {found or 'an empty object'}"
    )


def _is_text(message: dict[str, Any]) -> bool:
    """Whether a message is a text and nothing else, which every template can write."""
    return "tool_calls" not in message and isinstance(message["content"], str)


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or "role" not in message:
        return False
    return "content" in message or bool(message.get("tool_calls"))
