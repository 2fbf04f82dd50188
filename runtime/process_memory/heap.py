"""Give freed buffers back to the system.

glibc takes blocks of up to 32 MB from its heap once blocks of that size have been freed, and keeps
the holes between them: streaming a 4.5B model leaves 4.4 GB of them. Mapping every large block
instead would let quantization take three times as long, with a page fault for every page of every
intermediate. A model that is loaded and run leaves holes, too: of files that were read, and of
caches that have grown.
"""

import ctypes
import sys
from functools import cache
from typing import Any

LARGE = 4_000_000  # elements; what is smaller leaves holes that do not matter


@cache
def _trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none


def give_back() -> None:
    """Return the heap's holes; call it after something large has been freed."""
    trim = _trim()
    if trim is not None:
        trim(0)
