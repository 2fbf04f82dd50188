"""Read untrusted JSON, with limits on size, number of values and time."""

import json
import stat
from pathlib import Path
from reprlib import Repr
from typing import Any

from edgelm.errors import BadCheckpoint
from edgelm.files.lfs_pointer import check_not_pointer

MAX_BYTES = 8 * 1024**2
NOT_TEXT = (
    "a text has half of a surrogate pair (such as \\ud83d alone), which is not a character; write "
    "the file again as UTF-8"
)
_MAX_VALUES = 1_000_000  # each takes up to 100 bytes of memory
_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2, 60, 60, 30


def shown(value: Any) -> str:
    """A short `repr` of any value, for messages."""
    return _SHORT.repr(value)


def read_json_object(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        BadCheckpoint: it is not a regular file, too large, not UTF-8, not JSON or not an object.
    """
    return parse_json_object(read_file(path, max_bytes=max_bytes), str(path))


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """All bytes of a regular file; devices and pipes, which may never end, are rejected.

    Raises:
        FileNotFoundError: there is no such file.
        BadCheckpoint: it is not a regular file, too large, unreadable, or a pointer of Git LFS.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadCheckpoint(f"{path} is not a regular file; download the model again")
        if status.st_size > max_bytes:
            raise BadCheckpoint(
                f"{path} has {status.st_size:,} bytes, expected at most {max_bytes:,}; is it "
                "another file under this name?"
            )
        with path.open("rb") as file:
            content = file.read(max_bytes)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadCheckpoint(f"{path} cannot be read: {reason}") from None
    check_not_pointer(path, content)
    return content


def parse_json_object(data: bytes, what: str) -> dict[str, Any]:
    """The object in a JSON text in UTF-8; `what` names the text in messages.

    Raises:
        BadCheckpoint: it is not UTF-8, not JSON or not an object, or has a key twice.
    """
    values = value_count(data)
    if values > _MAX_VALUES:
        raise BadCheckpoint(
            f"{what} has about {values:,} values, expected at most {_MAX_VALUES:,}; is it "
            "another file under this name?"
        )
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=unique_fields)
    except RecursionError:
        raise BadCheckpoint(f"{what} is nested too deeply to be read") from None
    except UnicodeDecodeError as error:
        raise BadCheckpoint(
            f"{what} is not valid JSON: it is not encoded in UTF-8 ({error.reason} at byte "
            f"{error.start}); save it as UTF-8"
        ) from None
    except ValueError as error:
        raise BadCheckpoint(f"{what} is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(parsed, dict):
        raise BadCheckpoint(f"{what} contains {type(parsed).__name__}, expected an object")
    return parsed


def is_text(value: str) -> bool:
    """Whether a text can be written as UTF-8: JSON can name halves of surrogate pairs alone."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def value_count(data: bytes) -> int:
    """At least as many values as a JSON text has; brackets take 100 times their size in memory."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields; of duplicate keys, readers disagree about which one counts."""
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} appears twice")
    return values
