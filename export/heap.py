"""Keep freed buffers from staying with the process.

glibc takes blocks of up to 32 MB from its heap once blocks of that size have been freed, and holes
between them are never given back: streaming a 4.5B model leaves 4.4 GB of them. With a fixed
threshold large blocks are mapped one by one and returned when they are freed.
"""

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # malloc.h
_BYTES = 1 << 20


def return_large_buffers() -> None:
    """Ask glibc for that; elsewhere do nothing."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _BYTES)
