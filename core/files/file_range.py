"""Read parts of a file into memory.

Tensors are read this way and not mapped: a mapped file that is truncated while its pages are read
ends the process with SIGBUS, which nothing can catch.
"""

from collections.abc import Iterable
from io import FileIO
from pathlib import Path

_MOST_AT_ONCE = 1 << 30  # bytes; systems read less than 2 GiB at a time


class FileTruncated(OSError):
    """A file ended before the bytes that its header announced."""


def read_ranges(path: Path, ranges: Iterable[tuple[int, int]], out: memoryview) -> None:
    """Read ranges of a file, (start, bytes) each, one after the other into a buffer of bytes.

    Raises:
        FileTruncated: the file ends before one of them does.
        OSError: it cannot be read.
    """
    filled = 0
    with FileIO(path) as file:
        for start, count in ranges:
            file.seek(start)
            _fill(file, out[filled : filled + count])
            filled += count


def _fill(file: FileIO, out: memoryview) -> None:
    while len(out):
        count = file.readinto(out[:_MOST_AT_ONCE])
        if not count:
            raise FileTruncated("it was truncated after it was opened; retry when it is complete")
        out = out[count:]
