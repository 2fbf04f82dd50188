"""A teacher cache that several processes build, to be killed or to end.

python -m tests.compress.distillation.cache_processes FOLDER [ROWS]

With ROWS, the first process kills itself once about ROWS rows are done.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from edgelm.compress.distillation.cache_settings import CacheSettings
from edgelm.compress.distillation.teacher_cache import build_cache
from tests.compress.training import rows, teacher_and_student

SETTINGS, COUNT = CacheSettings("sampled", 4), 42


def main() -> None:
    torch.set_num_threads(1)
    folder, *rest = sys.argv[1:]

    def progress(done: int) -> None:
        if rest and os.environ["RANK"] == "0" and done >= int(rest[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    teacher = teacher_and_student()[0]
    build_cache(teacher, "t", rows(COUNT), SETTINGS, Path(folder), progress, shared=True)


if __name__ == "__main__":
    main()
