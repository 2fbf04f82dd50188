import os
import sys

import msgspec
import pytest
import torch

from edgelm.bench.machine import describe_machine, gpu_bandwidth, read_bandwidth
from edgelm.errors import MissingPackage
from edgelm.runtime import cuda
from tests.bench.records import MACHINE
from tests.runtime.fake_gpu import FakeCuda


def test_bandwidth_is_plausible_and_leaves_threads_alone() -> None:
    before = torch.get_num_threads()
    rate = read_bandwidth(before + 1, megabytes=64, repeats=2)
    assert 0.1 < rate < 10_000
    assert torch.get_num_threads() == before


def test_the_machine_is_named() -> None:
    machine = describe_machine(threads=1)
    assert machine.cpu
    assert (machine.cores, machine.threads) == (os.cpu_count(), 1)
    assert machine.memory_bytes > 2**28
    assert machine.system.count(" ") >= 2
    assert sys.version.startswith(machine.python)
    assert machine.read_gb_s > 0.1


def test_a_gpu_is_named_with_its_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "_binding", lambda: fake)
    assert 0.01 < gpu_bandwidth(megabytes=8, repeats=2) < 10_000
    assert fake.blocks == {}
    machine = msgspec.structs.replace(MACHINE, gpu="Fake RTX 4060", gpu_gb_s=256.4)
    assert MACHINE.summary == "Test CPU, 4 cores, 2 threads, 8 GiB, reads 10 GB/s"
    assert machine.summary == f"{MACHINE.summary}; Fake RTX 4060, moves 256 GB/s"


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(driver=0)
    monkeypatch.setattr(cuda, "_binding", lambda: fake)
    with pytest.raises(MissingPackage, match="no CUDA driver was found"):
        describe_machine(threads=1, gpu=True)
