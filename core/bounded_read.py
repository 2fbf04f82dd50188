"""Reading a small file that somebody else wrote: a plain file, of a plausible size."""

import os
import stat
from pathlib import Path

from edgelm.errors import BadBundle


def read_bounded(path: Path, *, at_most: int) -> bytes:
    """Return the bytes of a file of a bundle.

    Args:
        path: the file.
        at_most: bytes; far above what such a file ever has.

    Raises:
        FileNotFoundError: there is none.
        BadBundle: a folder, a pipe or a device, a file that cannot be read, or a larger one.
    """
    try:
        # Not blocking: opening a named pipe waits for a writer otherwise.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise BadBundle(f"{path} cannot be read: {error}") from None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BadBundle(f"{path} is not a plain file; export the model again")
        try:
            data = file.read(at_most + 1)
        except OSError as error:
            raise BadBundle(f"{path} cannot be read: {error}") from None
    if len(data) > at_most:
        raise BadBundle(f"{path} has more than {at_most} bytes, which no such file has")
    return data
