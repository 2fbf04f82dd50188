"""Compile segments of a graph in this process, and print what that took: see segment_builds.

It imports no torch, whose memory would be counted with the builder's.
"""

import argparse
import json
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
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of the graph and its graph.json")
    parser.add_argument("sm", type=int, help="compute capability, times ten")
    parser.add_argument("numbers", type=int, nargs="+", help="of the segments, from 0")
    given = parser.parse_args()
    contract = msgspec.json.decode((given.folder / "graph.json").read_bytes(), type=GraphContract)
    size, start = 0, time.monotonic()
    for number in given.numbers:
        part = contract.parts[number]
        job = Job(given.folder / part.file, contract, RTX, CHUNK, CONTEXT, (given.sm,), part=part)
        size += compile_engine(job, lambda _: None).content.nbytes
    print(json.dumps(Build(size, peak_rss_bytes(), time.monotonic() - start)))


if __name__ == "__main__":
    main()
