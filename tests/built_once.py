"""Folders that are built once a run, whatever the number of pytest's processes."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """The folder `name` of this run; the first that asks builds it, and the others wait.

    Args:
        factory: of temporary folders.
        name: of the folder; different things have different names.
        build: writes the folder, which does not exist.
    """
    own = factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "built-once"
    shared.mkdir(exist_ok=True)
    folder = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / f"{name}.done").exists():
            build(folder)
            (shared / f"{name}.done").touch()
    return folder
