"""Whether a pending bundle's engine can be compiled in the memory of the machine."""

from pathlib import Path

import msgspec
import pytest

from edgelm.devices.checks.build_memory import build_memory
from edgelm.devices.planner.memory.build_memory import build_peak
from tests.devices.checks.recorded import LAPTOP, PLAIN, context, manifest

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
SWAP = HEAD + "/swapfile file 16777216 0 -2\n"
NEED = build_peak("tensorrt", [manifest("standard").weight_bytes])


@pytest.mark.parametrize(
    ("available", "swaps", "severity"),
    [
        (NEED, HEAD, "ok"),
        (NEED - 1, HEAD, "error"),
        (NEED - 1, SWAP, "warning"),
        (1_000_000, SWAP, "error"),
    ],
)
def test_memory_to_compile(tmp_path: Path, available: int, swaps: str, severity: str) -> None:
    pending = msgspec.structs.replace(manifest("standard"), engines=())
    assert pending.pending
    machine = msgspec.structs.replace(LAPTOP, available_bytes=available)
    files = {"/proc/swaps": swaps}
    verdict = build_memory(context(machine, tmp_path, files=files, manifest=pending))
    assert verdict
    assert verdict.severity == severity
    assert verdict.what.startswith("compiling the bundle's engine needs about ")


def test_nothing_to_compile(tmp_path: Path) -> None:
    assert build_memory(context(PLAIN, tmp_path, manifest=manifest())) is None
    assert build_memory(context(LAPTOP, tmp_path)) is None
