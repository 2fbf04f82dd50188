"""Swap on disks and in memory."""

from pathlib import Path

import msgspec
import pytest

from edgelm.devices.checks.context import Check
from edgelm.devices.checks.host.swap import in_use, swap_file, zram
from tests.devices.checks.recorded import LAPTOP, ORIN_NANO, context

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
ZRAM = "/dev/zram0 partition 649440 1024 5\n/dev/zram1 partition 649440 0 5\n"


def swaps(used_kb: int = 0, *, zram: bool = False, disk: bool = True) -> dict[str, str]:
    lines = ZRAM if zram else ""
    lines += f"/swapfile file 16777212 {used_kb} -2\n" if disk else ""
    return {"/proc/swaps": HEAD + lines}


def held(first: int, second: int) -> dict[str, str]:
    """The memory that two zram devices take."""
    row = "  20480    8192 {}        0   65536       12        0        0        0\n"
    return {
        "/sys/block/zram0/mm_stat": row.format(first),
        "/sys/block/zram1/mm_stat": row.format(second),
    }


def test_zram_that_takes_memory(tmp_path: Path) -> None:
    files = swaps(zram=True) | held(300_000_000, 100_000_000)
    verdict = zram(context(ORIN_NANO, tmp_path, files=files))
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == "zram uses 400.0 MB of the memory that CPU and GPU share"
    assert verdict.fix == "sudo systemctl disable nvzramconfig && sudo reboot"


def test_zram_that_is_all_the_swap(tmp_path: Path) -> None:
    files = swaps(zram=True, disk=False) | held(300_000_000, 100_000_000)
    verdict = zram(context(ORIN_NANO, tmp_path, files=files))
    assert verdict
    assert verdict.fix.startswith("sudo fallocate -l 8G /swapfile && ")
    assert "&& sudo systemctl disable nvzramconfig && sudo reboot" in verdict.fix


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (swaps(zram=True) | held(65536, 0), "zram uses 0.1 MB of memory"),
        (swaps(), "zram is not set up"),
    ],
    ids=["idle", "none"],
)
def test_zram_that_takes_little(files: dict[str, str], what: str, tmp_path: Path) -> None:
    verdict = zram(context(ORIN_NANO, tmp_path, files=files))
    assert verdict
    assert (verdict.severity, verdict.what) == ("ok", what)


def test_no_swap_on_a_small_board(tmp_path: Path) -> None:
    verdict = swap_file(context(ORIN_NANO, tmp_path, files=swaps(zram=True, disk=False)))
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == "no swap on a disk, with only 7.99 GB of memory"
    assert "mkswap" in verdict.fix


def test_swap_on_a_small_board(tmp_path: Path) -> None:
    verdict = swap_file(context(ORIN_NANO, tmp_path, files=swaps()))
    assert verdict
    assert verdict.severity == "ok"
    assert verdict.what == "there are 17.18 GB of swap on a disk"


def test_large_boards_need_none(tmp_path: Path) -> None:
    large = msgspec.structs.replace(ORIN_NANO, memory_bytes=64 * 10**9)
    assert swap_file(context(large, tmp_path)) is None
    assert swap_file(context(LAPTOP, tmp_path)) is None
    assert zram(context(LAPTOP, tmp_path)) is None


@pytest.mark.parametrize(
    ("used_kb", "severity", "what"),
    [
        (0, "ok", "0.0 MB of swap are in use"),
        (100_000, "ok", "102.4 MB of swap are in use"),
        (2_000_000, "warning", "2.05 GB of swap are in use"),
    ],
)
def test_in_use(used_kb: int, severity: str, what: str, tmp_path: Path) -> None:
    verdict = in_use(context(LAPTOP, tmp_path, files=swaps(used_kb)))
    assert verdict
    assert (verdict.severity, verdict.what) == (severity, what)


def test_no_swap_is_none_in_use(tmp_path: Path) -> None:
    assert in_use(context(LAPTOP, tmp_path, files=swaps(zram=True, disk=False))) is None


@pytest.mark.parametrize("check", [zram, swap_file, in_use])
def test_unreadable(check: Check, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check(context(ORIN_NANO, tmp_path))
