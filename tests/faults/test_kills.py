"""Kills at random moments lose nothing, leave nothing and touch nothing of others."""

import os
import subprocess
import sys
from importlib.util import find_spec

# A run takes seconds: few of them here, many by `python -m tests.faults --kills 100`.
KILLS = {"export": 4, "export-work": 2, "export-rtx": 1, "compress": 5, "finalize": 8}


def test_kills() -> None:
    """In one process of their own, which forks: pytest's may have threads."""
    cases = [
        f"{case}={kills}"
        for case, kills in KILLS.items()
        if case != "export-rtx" or find_spec("tensorrt_rtx")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *cases],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count(": good") == len(cases), done.stdout
