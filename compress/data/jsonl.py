"""JSONL files, gzip or not: the one reader for documents, conversations and task files."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from edgelm.errors import BadInput
from edgelm.files.json_files import NOT_TEXT, is_text
from edgelm.reasons import reason

MAX_CHARACTERS = 64_000_000  # of one document: tokenizing it takes about ten times that in bytes
# What damaged text and gzip raise.
UNREADABLE = (OSError, EOFError, UnicodeDecodeError, zlib.error)


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with `FILE:LINE` for messages; blank lines are skipped.

    Raises:
        BadInput: the file is missing or cannot be read, or a line is too long, is not JSON or is
            not an object; names the line.
    """
    for where, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadInput(
                f"{where} is not JSON: {reason(error)}; expected one object per line"
            ) from None
        except RecursionError:
            raise BadInput(f"{where} is nested too deeply to be read") from None
        if "\\ud" in line.lower() and not is_text(json.dumps(row, ensure_ascii=False)):
            raise BadInput(f"{where}: {NOT_TEXT}")
        if not isinstance(row, dict):
            raise BadInput(f"{where}: expected a JSON object, found {type(row).__name__}")
        yield where, row


def open_text(path: Path) -> IO[str]:
    """Open a text file, gzip or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    return cast(IO[str], opener(path, "rt", encoding="utf-8-sig"))


def unreadable(path: Path, error: Exception) -> BadInput:
    """The error for a file that `UNREADABLE` was raised for."""
    if isinstance(error, FileNotFoundError):
        return BadInput(f"no such data file: {path}")
    if isinstance(error, UnicodeDecodeError):
        return BadInput(f"{path} cannot be read: it is not UTF-8 text; convert it to UTF-8")
    return BadInput(f"{path} cannot be read: {getattr(error, 'strerror', None) or reason(error)}")


def check_length(text: str, where: str) -> None:
    """Raise BadInput for a document that is too long to be tokenized in memory."""
    if len(text) > MAX_CHARACTERS:
        raise BadInput(
            f"{where} has more than {MAX_CHARACTERS:,} characters in one document; split it, one "
            "document per line in a .jsonl file"
        )


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with open_text(path) as file:
            # Bounded, since a few packed kilobytes can hold a line of gigabytes. Not splitlines:
            # JSON may hold U+2028 and the like unescaped.
            lines = iter(lambda: file.readline(MAX_CHARACTERS + 1), "")
            for number, line in enumerate(lines, 1):
                where = f"{path}:{number}"
                check_length(line, where)
                if line.strip():
                    yield where, line
    except UNREADABLE as error:
        raise unreadable(path, error) from None
