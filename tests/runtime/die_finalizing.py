"""Compile a bundle's engine in a process of its own that is killed on the way.

python -m tests.runtime.die_finalizing BUNDLE compiling|saving|recording|FILE

With a file's name it dies when the compiler is given that segment.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from edgelm.runtime.engines import cuda, finalize
from edgelm.runtime.engines.tensorrt.build import Built, Job
from tests.runtime.engines.test_finalize import VERSION
from tests.runtime.fake_gpu import TITLE, FakeCuda, FakeTensorRT


def die(*_: Any) -> Any:
    """As the system ends a process that has taken all memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    folder, when = Path(sys.argv[1]), sys.argv[2]
    driver = FakeCuda(sm=87)
    patch = pytest.MonkeyPatch()
    patch.setattr(cuda, "_binding", lambda: driver)
    patch.setitem(sys.modules, "tensorrt", FakeTensorRT(driver, VERSION, chunk=128))

    def compiled(job: Job, progress: Any) -> Built:
        if job.graph.name == when:
            die()
        return Built(TITLE + str(job.graph).encode(), VERSION, 12.5)

    patch.setattr(finalize, "compile_engine", die if when == "compiling" else compiled)
    if when == "saving":  # all is on the disk, under the name that it has until it is whole
        patch.setattr(os, "fsync", die)
    if when == "recording":
        patch.setattr(finalize, "_record", die)
    finalize.finalize(folder)


if __name__ == "__main__":
    main()
