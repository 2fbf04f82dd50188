import os
import sys

import msgspec
import pytest

from edgelm.bench import machine
from edgelm.bench.gpu import MeasuredGpu
from edgelm.bench.machine import describe_machine
from tests.bench.records import MACHINE


def test_the_machine_is_named() -> None:
    here = describe_machine(threads=1)
    assert here.cpu
    assert (here.cores, here.threads) == (os.cpu_count(), 1)
    assert here.memory_bytes > 2**28
    assert here.system.count(" ") >= 2
    assert sys.version.startswith(here.python)
    assert here.read_gb_s > 0.1


def test_a_gpu_is_named_with_its_bandwidth() -> None:
    with_gpu = msgspec.structs.replace(MACHINE, gpu="Fake RTX 4060", gpu_gb_s=256.4)
    assert MACHINE.summary == "Test CPU, 4 cores, 2 threads, 8 GiB, reads 10 GB/s"
    assert with_gpu.summary == f"{MACHINE.summary}; Fake RTX 4060, moves 256 GB/s"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "named"), [(None, ("", 0.0)), (MeasuredGpu("RTX", 256.4), ("RTX", 256.4))]
)
def test_a_gpu_is_looked_at_where_asked(
    found: MeasuredGpu | None, named: tuple[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "measure_gpu", lambda: found)
    described = describe_machine(threads=1, gpu=True)
    assert (described.gpu, described.gpu_gb_s) == named
    assert describe_machine(threads=1).gpu == ""
