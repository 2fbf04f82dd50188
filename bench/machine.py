"""What the machine is, and how fast its memory is read: the bound of every decoder."""

import os
import platform
import sys
from pathlib import Path

import msgspec

from edgelm.bench.gpu import measure_gpu
from edgelm.devices.calibration.timing import read_gb_s


class Machine(msgspec.Struct, frozen=True):
    """Where the figures come from. Without these a figure means nothing.

    `gpu` and its bandwidth are there where an engine was measured on one.
    """

    cpu: str
    cores: int
    threads: int
    memory_bytes: int
    system: str
    python: str
    read_gb_s: float
    gpu: str = ""
    gpu_gb_s: float = 0.0

    @property
    def summary(self) -> str:
        """What a reader of figures wants to know, on a line."""
        line = (
            f"{self.cpu}, {self.cores} cores, {self.threads} threads, "
            f"{self.memory_bytes / 2**30:.0f} GiB, reads {self.read_gb_s:.0f} GB/s"
        )
        return f"{line}; {self.gpu}, moves {self.gpu_gb_s:,.0f} GB/s" if self.gpu else line


def describe_machine(threads: int, *, gpu: bool = False) -> Machine:
    """Look at this machine, and at its GPU if requested; reads 1 GiB of memory a few times."""
    found = measure_gpu() if gpu else None
    return Machine(
        cpu=_cpu_name(),
        cores=os.cpu_count() or 1,
        threads=threads,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=sys.version.split()[0],
        read_gb_s=read_gb_s(threads),
        gpu=found.name if found else "",
        gpu_gb_s=found.gb_s if found else 0.0,
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
