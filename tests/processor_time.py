"""Processor time of a command, which other work on the machine changes little."""

import resource
import subprocess
from collections.abc import Sequence


def run_timed(command: Sequence[str]) -> tuple[str, float]:
    """Run a command that must succeed.

    Returns:
        Its output, and the processor seconds that it and its children took.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
