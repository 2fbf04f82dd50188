import os
import sys

import torch

from edgelm.bench.machine import describe_machine, read_bandwidth


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
