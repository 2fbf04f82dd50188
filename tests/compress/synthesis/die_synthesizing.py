"""Synthesize in a process of its own that is killed on the way.

python -m tests.compress.synthesis.die_synthesizing TEACHER OUTPUT
"""

import os
import signal
import sys
from pathlib import Path

import torch

from edgelm.compress.synthesis.log import read_manifest
from edgelm.compress.synthesis.synthesize import Progress, synthesize
from tests.compress.synthesis.test_synthesize import FREE, load


def main() -> None:
    """Die by SIGKILL after the second batch."""
    torch.set_num_threads(1)
    teacher, output = Path(sys.argv[1]), Path(sys.argv[2])

    def progress(_: Progress) -> None:
        if read_manifest(output).batches >= 2:
            os.kill(os.getpid(), signal.SIGKILL)

    synthesize(*load(teacher), FREE, output, progress=progress)


if __name__ == "__main__":
    main()
