"""Kills at random moments lose nothing, leave nothing and touch nothing of others."""

import os
import subprocess
import sys
from importlib.util import find_spec

from tests.faults.cases import CASES

KILLS = 20  # of each kind here; 100 by `python -m tests.faults --kills 100`


def test_kills() -> None:
    """In one process of their own, which forks: pytest's may have threads."""
    names = [case.name for case in CASES]
    if not find_spec("tensorrt_rtx"):
        names.remove("export-rtx")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *names, "--kills", str(KILLS)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count(": good") == len(names), done.stdout
