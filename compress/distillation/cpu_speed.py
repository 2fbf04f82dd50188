"""Faster training steps on a CPU: reuse freed memory, compile the layers."""

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Collection, Iterator

from torch import nn

from edgelm.compress.model import Model
from edgelm.errors import MissingPackage

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step.

    By default every tensor of more than 32 MB is mapped again, which costs a page fault and 4 KiB
    of zeros per page: a quarter of the time of a step (`bench/studies/compress/distill_step.py`).
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def compiled_layers(
    *models: Model | None, on_cpu: bool, eager: Collection[nn.Module] = ()
) -> Iterator[None]:
    """Compile the decoder layers within the context; all layers share one compilation.

    `eager` layers are not compiled: hooks do not run inside a compiled one.

    Raises:
        MissingPackage: no C++ compiler, which torch.compile needs on a CPU.
    """
    if on_cpu and not shutil.which(os.environ.get("CXX", "g++")):
        raise MissingPackage(
            "compile = true needs a C++ compiler on a CPU; install g++, set CXX, or turn it off"
        )
    layers = [
        layer
        for model in models
        if model is not None
        for layer in model.base_model.layers
        if layer not in eager
    ]
    for layer in layers:
        layer.compile(dynamic=False)
    try:
        yield
    finally:
        # torch has no inverse of `Module.compile`; this is the attribute that it sets.
        for layer in layers:
            layer._compiled_call_impl = None
