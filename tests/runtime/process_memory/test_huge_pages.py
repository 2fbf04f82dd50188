"""What loading fills goes into huge pages, and nothing else does."""

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.runtime.engines.onnxruntime.host import load_graph
from edgelm.runtime.process_memory import huge_pages
from edgelm.runtime.process_memory.huge_pages import (
    Range,
    collapse,
    in_huge_pages,
    new_ranges,
    page_size,
    parse_regions,
)

MB = 1 << 20
EDGE = mmap.PAGESIZE
MAPS = """\
00400000-00600000 r-xp 00000000 fe:00 393 /usr/bin/python3
00600000-00a00000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000800000 rw-p 00000000 00:00 0
7f0000800000-7f0000a00000 rw-p 00000000 fe:00 77 /a/b c.so
7f0000a00000-7f0000c00000 rw-s 00000000 00:01 9 /dev/zero (deleted)
7f0000c00000-7f0000e00000 ---p 00000000 00:00 0
7ffc00000000-7ffc00200000 rw-p 00000000 00:00 0 [stack]
"""


def test_regions_are_the_private_writable_ones() -> None:
    heap, anonymous = (0x600000, 0xA00000), (0x7F0000000000, 0x7F0000800000)
    assert list(parse_regions(MAPS.splitlines(), ("", "[heap]"))) == [heap, anonymous]
    assert list(parse_regions(MAPS.splitlines(), ("",))) == [anonymous]


def test_names_of_any_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = tmp_path / "maps"
    names = "r--p 0 fe:00 1 /a\u2028b\x0bc\x1cd".encode() + b"\xe9"
    maps.write_bytes(b"1000-2000 " + names + b"\n2000-3000 rw-p 0 00:00 0\n")
    monkeypatch.setattr("edgelm.runtime.process_memory.huge_pages._MAPS", maps)
    assert huge_pages._regions(("",)) == [(0x2000, 0x3000)]


# Regions before, after, and what is new of them; addresses in MB.
CASES: dict[str, tuple[list[Range], list[Range], list[Range]]] = {
    "new": ([], [(2, 8)], [(2, 8)]),
    "whole pages only": ([], [(3, 9)], [(4, 8)]),
    "less than a page": ([], [(3, 5)], []),
    "as before": ([(2, 8)], [(2, 8)], []),
    "grown upwards": ([(2, 5)], [(2, 12)], [(6, 12)]),
    "grown downwards": ([(8, 12)], [(2, 12)], [(2, 8)]),
    "joined": ([(2, 4), (6, 8)], [(2, 12)], [(4, 6), (8, 12)]),
    "shrunk": ([(2, 12)], [(2, 6)], []),
}


def _bytes(ranges: list[Range]) -> list[Range]:
    return [(start * MB, end * MB) for start, end in ranges]


@pytest.mark.parametrize("name", CASES)
def test_new_ranges(name: str) -> None:
    before, after, expected = map(_bytes, CASES[name])
    assert new_ranges(before, after, 2 * MB) == expected


needs_request = pytest.mark.skipif(page_size() is None, reason="no huge pages on request")


@needs_request
def test_filled_memory_is_in_huge_pages() -> None:
    size = page_size()
    assert size is not None
    content = bytes(range(256)) * (8 * size // 256)
    with in_huge_pages():
        filled, sparse = _memory(8 * size), _memory(8 * size)
        filled[EDGE:-EDGE] = content
        sparse[EDGE : -EDGE : size // 2] = bytes(16)  # two pages of 4 KB in each huge one
    begin = _address(filled) + EDGE
    huge = _figures(begin)["AnonHugePages"]
    if not collapse(-(-begin // size) * size, 7 * size):
        pytest.skip("the system has no free huge pages")
    assert huge >= 7 * size
    assert filled[EDGE:-EDGE] == content
    assert _figures(_address(sparse) + EDGE)["Rss"] < size


def _memory(size: int) -> mmap.mmap:
    """Memory between two pages without access: without them Linux may join it with another."""
    memory = mmap.mmap(-1, size + 2 * EDGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for edge in (0, EDGE + size):
        assert protect(_address(memory) + edge, EDGE, 0) == 0
    return memory


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _figures(address: int) -> dict[str, int]:
    """What Linux says of the region that begins at an address, in bytes."""
    figures: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, *rest = line.split()
        if not head.endswith(":"):
            inside = int(head.split("-")[0], 16) == address
        elif inside and rest[-1] == "kB":
            figures[head[:-1]] = 1024 * int(rest[0])
    return figures


def test_a_graph_is_loaded_into_them(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []

    @contextmanager
    def recorded() -> Iterator[None]:
        events.append("before")
        yield
        events.append("after")

    load = load_graph._load_file

    def loading(*args: Any, **kwargs: Any) -> Any:
        events.append("load")
        return load(*args, **kwargs)

    monkeypatch.setattr(load_graph, "in_huge_pages", recorded)
    monkeypatch.setattr(load_graph, "_load_file", loading)
    edgelm.load(bundle, threads=1).close()
    assert events == ["before", "load", "after"]
