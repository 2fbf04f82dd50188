"""A recipe in a process of its own, to be killed or to be one of several.

python -m tests.compress.run_recipe RECIPE OUTPUT [--die-at TEXT] [--sharded]
"""

import argparse
import os
import signal
from pathlib import Path

import torch

from edgelm.compress.pipeline import compress_model
from edgelm.compress.recipe import read_recipe
from tests.compress.run_training import shard


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--die-at", help="what the progress begins with when it is time")
    parser.add_argument("--sharded", action="store_true", help="shard by FSDP2")
    options = parser.parse_args()
    if options.sharded:
        shard()
    torch.set_num_threads(1)

    def progress(line: str) -> None:
        if options.die_at and line.startswith(options.die_at):
            os.kill(os.getpid(), signal.SIGKILL)

    compress_model(read_recipe(options.recipe), options.output, progress=progress)


if __name__ == "__main__":
    main()
