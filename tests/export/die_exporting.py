"""An export in a process of its own that is killed, or may not write files beyond a size.

python -m tests.export.die_exporting SOURCE OUTPUT --kill-at TEXT [--work FOLDER]
python -m tests.export.die_exporting SOURCE OUTPUT --file-bytes N --said FILE
"""

import argparse
import os
import resource
import signal
from pathlib import Path
from typing import Any

import torch

from edgelm.errors import DoesNotFit
from edgelm.export.pipeline import export_model
from tests.short_texts import sequences


def main() -> int:
    """3 where the disk is full, which `--said` holds then."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--kill-at", help="what a line of the progress contains when it is time")
    parser.add_argument("--file-bytes", type=int)
    parser.add_argument("--said", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)

    def kill(line: str) -> None:
        if given.kill_at and given.kill_at in line:
            os.kill(os.getpid(), signal.SIGKILL)

    if given.file_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails: EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (given.file_bytes, given.file_bytes))
    options: dict[str, Any] = {"precision": given.precision, "work": given.work}
    try:
        with sequences(2):
            export_model(given.source, given.output, progress=kill, **options)
    except DoesNotFit as error:
        given.said.write_text(str(error))
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
