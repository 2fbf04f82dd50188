"""Read TOML files of users: recipes and device profiles. Errors name the file and the field."""

import os
import stat
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgelm.errors import BadInput
from edgelm.python310 import tomllib

MAX_BYTES = 1_000_000
_MAX_MESSAGE = 500  # characters of a decoder's message, which repeats the wrong value
_T = TypeVar("_T")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file.

    Raises:
        OSError: there is no such file, or it cannot be read.
        BadInput: not a regular file, larger than MAX_BYTES, not UTF-8, not TOML.
    """
    data = _read(path)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError:
        raise BadInput(f"{path}: nested too deeply to be read") from None
    except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError among them
        raise BadInput(f"{path}: {_shortened(str(error))}") from None


def convert_toml(values: dict[str, Any], kind: type[_T], path: Path) -> _T:
    """The tables of `path` as a record.

    Raises:
        BadInput: a field is unknown, missing, of the wrong type or out of range.
    """
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise BadInput(f"{path}: {_shortened(str(error))}") from None
    except RecursionError:
        raise BadInput(f"{path}: nested too deeply to be read") from None


def _read(path: Path) -> bytes:
    try:
        # Non-blocking: opening a pipe would wait for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a NUL in the name
        raise BadInput(f"{str(path)!r}: {error}") from None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BadInput(f"{path} is not a regular file; expected a TOML file")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadInput(f"{path} is larger than {MAX_BYTES:,} bytes; expected a short TOML file")
    return data


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."
