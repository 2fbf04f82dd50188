"""Write a folder through `staged_folder`, also in a process that is killed at a given moment."""

import signal
import subprocess
import sys
from pathlib import Path

from edgelm.files.staging import staged_folder

MARKER = "bundle.json"


_KILLED = """
import os, pathlib, signal, sys
from edgelm.files import staging
from edgelm.files.staging import staged_folder

staging.exchange = lambda one, other: False  # as on a system that cannot
target, moment = pathlib.Path(sys.argv[1]), int(sys.argv[2])


def die(moment_reached):
    if moment_reached == moment:
        os.kill(os.getpid(), signal.SIGKILL)


renames = 0
rename = pathlib.Path.rename


def counted(path, to):
    global renames
    renames += 1
    die(renames)
    return rename(path, to)


pathlib.Path.rename = counted
with staged_folder(target, marker="bundle.json", listing=lambda _: {"bundle.json"}) as folder:
    (folder / "bundle.json").write_text("new")
    die(0)
"""


def write(target: Path, text: str) -> None:
    with staged_folder(target, marker=MARKER, listing=listing) as folder:
        (folder / MARKER).write_text(text)


def listing(_: Path) -> set[str]:
    """What an older output consists of."""
    return {MARKER, "inner/data"}


def killed_while_writing(target: Path, moment: int) -> None:
    """Run a process that is killed in the block (0) or right before its n-th rename."""
    command = [sys.executable, "-c", _KILLED, str(target), str(moment)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
