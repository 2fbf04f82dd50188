"""What makes a training step fast on a CPU: memory that is kept, layers that are compiled."""

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Iterator

from edgelm.compress.model import Model
from edgelm.errors import MissingPackage

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next step.

    By default every tensor of more than 32 MB is mapped anew, with a fault and 4 KiB of zeros for
    each of its pages: a quarter of the time of a step (`bench/studies/distill_step.py`).
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def compiled_layers(*models: Model | None, on_cpu: bool) -> Iterator[None]:
    """Compile the decoder layers for the time being: all are alike, so one is compiled for all.

    Raises:
        MissingPackage: no C++ compiler, which torch.compile needs on a CPU.
    """
    if on_cpu and not shutil.which(os.environ.get("CXX", "g++")):
        raise MissingPackage(
            "compile = true needs a C++ compiler on a CPU; install g++, set CXX, or leave it out"
        )
    layers = [layer for model in models if model is not None for layer in model.model.layers]
    for layer in layers:
        layer.compile(dynamic=False)
    try:
        yield
    finally:
        # torch has no call that undoes `Module.compile`; this is what it sets.
        for layer in layers:
            layer._compiled_call_impl = None
