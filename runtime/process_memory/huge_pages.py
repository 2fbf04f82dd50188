"""Weights in huge pages: each step reads all of them, and in pages of 4 KB that takes longer.

Where Linux gives huge pages on request only ("madvise", the default of most distributions), the
memory that loading a graph has filled is collapsed into pages of 2 MB. Contents do not change;
where no huge page is free, memory stays as it is (docs/results/2026-11-28-several-rows.md).
"""

import ctypes
import mmap
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np

_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_MAPS, _PAGES = Path("/proc/self/maps"), Path("/proc/self/pagemap")
_PRESENT = 1 << 63  # of a page's entry in pagemap
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # the second since Linux 6.1
# The share of a huge page that must be in memory already. Others, as in stacks, would only grow.
_MIN_PRESENT = 0.9
Range = tuple[int, int]  # addresses: the first, and the one behind the last


@contextmanager
def in_huge_pages() -> Iterator[None]:
    """Memory that is allocated and filled within goes into huge pages, if the system agrees."""
    size = page_size()
    if size is None:
        yield
        return
    # Parts of the heap are reused: what a later load finds free there lies in memory already.
    before = _regions(("",))
    yield
    for given in new_ranges(before, _regions(("", "[heap]")), size):
        for start, end in _filled(given, size):
            collapse(start, end - start)


def page_size() -> int | None:
    """Bytes of a huge page, if the system gives them on request, else None.

    With "always" memory is in huge pages from the start; with "never" none are wanted.
    """
    if sys.platform != "linux":
        return None
    try:
        on_request = "[madvise]" in (_SETTINGS / "enabled").read_text()
        return int((_SETTINGS / "hpage_pmd_size").read_text()) if on_request else None
    except (OSError, ValueError):
        return None


def new_ranges(before: Iterable[Range], after: Iterable[Range], size: int) -> list[Range]:
    """The whole huge pages in what is new of some regions.

    Args:
        before: the regions at an earlier moment, in the order of addresses.
        after: the regions now.
        size: bytes of a huge page.
    """
    known = list(before)
    ranges = []
    for start, end in set(after).difference(known):
        parts, begun = [], start
        for old_start, old_end in known:
            if old_start < end and begun < old_end:
                parts.append((begun, old_start))
                begun = old_end
        for first, last in (*parts, (begun, end)):
            first, last = -(-first // size) * size, last // size * size
            if first < last:
                ranges.append((first, last))
    return sorted(ranges)


def parse_regions(lines: Iterable[str], names: Collection[str]) -> Iterator[Range]:
    """The writable private regions of these names in lines of /proc/PID/maps."""
    for line in lines:
        bounds, access, _, _, _, *name = line.split()
        if access == "rw-p" and " ".join(name) in names:
            start, end = bounds.split("-")
            yield int(start, 16), int(end, 16)


def _regions(names: Collection[str]) -> list[Range]:
    try:
        # Names of files may hold any bytes; only "\n" ends a line.
        text = _MAPS.read_text("utf-8", errors="replace")
    except OSError:
        return []
    return list(parse_regions(text.strip("\n").split("\n"), names))


def _filled(given: Range, size: int) -> Iterator[Range]:
    """The parts of whole huge pages that are in memory."""
    start, end = given
    count = (end - start) // mmap.PAGESIZE
    try:
        entries = np.fromfile(_PAGES, np.uint64, count, offset=8 * (start // mmap.PAGESIZE))
    except OSError:
        return
    if len(entries) < count:
        return
    present = (entries & np.uint64(_PRESENT)) != 0
    shares = present.reshape(-1, size // mmap.PAGESIZE).mean(axis=1)
    for filled, pages in groupby(range(len(shares)), lambda page: shares[page] >= _MIN_PRESENT):
        numbers = list(pages)
        if filled:
            yield start + numbers[0] * size, start + (numbers[-1] + 1) * size


def collapse(start: int, length: int) -> bool:
    """Move memory into huge pages; return whether it all is.

    Before Linux 6.1 memory can only be marked, and moves in the background.
    """
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if madvise(start, length, _MADV_COLLAPSE) == 0:
        return True
    madvise(start, length, _MADV_HUGEPAGE)
    return False
