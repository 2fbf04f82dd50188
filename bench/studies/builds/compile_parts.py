"""Compile segments of a graph in this process, and print what that took: see segment_builds.

It imports no torch, whose memory would be counted with the builder's.
"""

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgelm.bench.engines.protocol import peak_rss_bytes
from edgelm.bundle.manifest import GraphContract
from edgelm.devices.tensorrt_versions import RTX
from edgelm.runtime.engines.tensorrt.build import Job, compile_engine

CHUNK, CONTEXT = 512, 4096


class Build(NamedTuple):
    """What one process compiled: the bytes of its engines, its peak memory, the seconds."""

    engine_bytes: int
    peak_bytes: int
    seconds: float


def main() -> None:
    """Print the figures of `FOLDER SM NUMBER...` as JSON."""
    folder = Path(sys.argv[1])
    contract = msgspec.json.decode((folder / "graph.json").read_bytes(), type=GraphContract)
    size, start = 0, time.monotonic()
    for number in map(int, sys.argv[3:]):
        part = contract.parts[number]
        job = Job(folder / part.file, contract, RTX, CHUNK, CONTEXT, (int(sys.argv[2]),), part=part)
        size += compile_engine(job, lambda _: None).content.nbytes
    print(json.dumps(Build(size, peak_rss_bytes(), time.monotonic() - start)))


if __name__ == "__main__":
    main()
