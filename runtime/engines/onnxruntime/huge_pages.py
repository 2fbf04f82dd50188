"""Weights in huge pages: a step reads all of them, and with pages of 4 KB address lookup costs time.

Where Linux gives huge pages only on request (`madvise`, the default of most distributions), the
memory that loading a graph has filled is requested to be collapsed into pages of 2 MB. Contents do
not change; where there are no free huge pages, the memory stays as it is.
"""

import ctypes
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_REGIONS = Path("/proc/self/smaps")
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # the second since Linux 6.1
# Of a region, this much has to be in memory already: thread stacks, for one, would only grow.
_MIN_RESIDENT = 0.9


class Region(NamedTuple):
    """Private anonymous memory of this process, in bytes."""

    start: int
    end: int
    resident: int


@contextmanager
def in_huge_pages() -> Iterator[None]:
    """What is allocated and filled within goes into huge pages, where the system allows it."""
    size = _page_size()
    if size is None:
        yield
        return
    before = _anonymous_regions()
    yield
    for start, end in new_ranges(before, _anonymous_regions(), size):
        _collapse(start, end - start)


def _page_size() -> int | None:
    """Bytes of a huge page where a request for them has an effect, else None."""
    if sys.platform != "linux":
        return None
    try:
        # With "always" memory is in huge pages from the start; with "never" it is not wanted.
        return int(_SIZE.read_text()) if "[madvise]" in _SETTING.read_text() else None
    except (OSError, ValueError):
        return None


def new_ranges(
    before: Iterable[Region], after: Iterable[Region], size: int
) -> list[tuple[int, int]]:
    """Ranges of whole huge pages in regions that are new, or have grown, and are filled.

    Args:
        before, after: the regions at two moments, in the order of addresses.
        size: bytes of a huge page.
    """
    known = list(before)
    ranges = []
    for start, end, resident in after:
        if resident < _MIN_RESIDENT * (end - start):
            continue
        for old in known:
            if old.start < end and start < old.end:
                start = max(start, old.end)
        first, last = -(-start // size) * size, end // size * size
        if first < last:
            ranges.append((first, last))
    return ranges


def _anonymous_regions() -> list[Region]:
    try:
        return list(parse_regions(_REGIONS.read_text().splitlines()))
    except OSError:
        return []


def parse_regions(lines: Iterable[str]) -> Iterator[Region]:
    """The private writable regions without a file in lines of /proc/PID/smaps."""
    bounds: tuple[int, int] | None = None
    for line in lines:
        head, *rest = line.split()
        if not head.endswith(":"):
            name = rest[4] if len(rest) > 4 else ""
            wanted = rest[0] == "rw-p" and name in ("", "[heap]")
            start, end = (int(part, 16) for part in head.split("-"))
            bounds = (start, end) if wanted else None
        elif head == "Rss:" and bounds is not None:
            yield Region(*bounds, 1024 * int(rest[0]))


def _collapse(start: int, length: int) -> None:
    """Ask for huge pages; before Linux 6.1 the kernel brings them about in the background."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if madvise(start, length, _MADV_COLLAPSE):
        madvise(start, length, _MADV_HUGEPAGE)
