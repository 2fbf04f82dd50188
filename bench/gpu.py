"""The machine's GPU and how fast its memory is: the bound of decoders that run there.

Measured in a process of its own (`python -m edgelm.bench.gpu` prints JSON), so that the process
that starts the engines holds no GPU memory while they run.
"""

import json
import subprocess
import sys
import time
from typing import NamedTuple

from edgelm.runtime.engines.cuda import Memory, Stream, find_gpu, free_memory

_MAX_BYTES = 1 << 30  # bytes copied; a GPU of few gigabytes has less to spare
_SHARE = 8


class MeasuredGpu(NamedTuple):
    """Its name, and GB/s that its memory moves, bytes read and bytes written."""

    name: str
    gb_s: float


def measure_gpu() -> MeasuredGpu | None:
    """The GPU that CUDA puts first; None where there is none, no driver or no cuda-bindings."""
    command = [sys.executable, "-m", "edgelm.bench.gpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    return MeasuredGpu(**json.loads(done.stdout)) if done.returncode == 0 else None


def gpu_bandwidth(*, repeats: int = 10) -> float:
    """GB/s of the best of a few copies of memory far larger than any cache."""
    free, _ = free_memory()
    size = min(_MAX_BYTES, free // _SHARE)
    stream = Stream()
    source, target = (Memory(size, "the measurement of bandwidth") for _ in range(2))
    stream.zero(source.address, size)
    times = []
    for _ in range(repeats):
        stream.synchronize()
        start = time.perf_counter()
        stream.within_gpu(target.address, source.address, size)
        stream.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size / min(times) / 1e9


if __name__ == "__main__":
    print(json.dumps(MeasuredGpu(find_gpu().name, gpu_bandwidth())._asdict()))
