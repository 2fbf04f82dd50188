"""Kills at random moments lose nothing, leave nothing and touch nothing of others."""

import os
import subprocess
import sys

import pytest

# A run takes seconds: few of them here, many by `python -m tests.faults --kills 100`.
KILLS = {"export": 4, "export-work": 2, "export-rtx": 1, "compress": 1, "finalize": 4}


@pytest.mark.parametrize(("case", "kills"), KILLS.items())
def test_kills(case: str, kills: int) -> None:
    """In a process of its own, which forks: pytest's may have threads."""
    if case == "export-rtx":
        pytest.importorskip("tensorrt_rtx")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", case, "--kills", str(kills)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
