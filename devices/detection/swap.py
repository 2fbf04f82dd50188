"""Swap areas of this machine: on a disk, and compressed in memory (zram)."""

from pathlib import Path

import msgspec

_SWAPS = Path("/proc/swaps")


class SwapArea(msgspec.Struct, frozen=True):
    """One line of /proc/swaps."""

    name: str
    size_bytes: int
    used_bytes: int

    @property
    def in_memory(self) -> bool:
        """Whether its pages stay in memory, compressed."""
        return self.name.startswith("/dev/zram")

    @property
    def free_bytes(self) -> int:
        """What can still be swapped out to it."""
        return self.size_bytes - self.used_bytes


def parse_swaps(text: str) -> list[SwapArea]:
    """The areas that /proc/swaps lists."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return [SwapArea(row[0], int(row[2]) * 1024, int(row[3]) * 1024) for row in rows if row]


def read_swaps(path: Path = _SWAPS) -> list[SwapArea]:
    """The swap areas; none where the file cannot be read, as in some containers."""
    try:
        return parse_swaps(path.read_text())
    except (OSError, ValueError, IndexError):
        return []
