"""Reading a small file that somebody else wrote: a plain file, of a plausible size."""

import os
import stat
from pathlib import Path

from edgelm.errors import BadBundle
from edgelm.reasons import reason

_AGAIN = "copy or export it again"


def read_bounded(path: Path, *, at_most: int) -> bytes:
    """Return the bytes of a file of a bundle.

    Args:
        path: the file.
        at_most: bytes; far above what such a file ever has.

    Raises:
        FileNotFoundError: there is none.
        BadBundle: a link to a file that is not there, a folder, a pipe or a device, a
            file that cannot be read, or a larger one.
    """
    try:
        # Not blocking: opening a named pipe waits for a writer otherwise.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        if path.is_symlink():
            raise BadBundle(f"{path} is a link to a file that is not there; {_AGAIN}") from None
        raise
    except (OSError, ValueError) as error:
        raise BadBundle(f"{path} cannot be read: {reason(error)}; {_AGAIN}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)  # here, since fdopen refuses a folder and leaves it open
        raise BadBundle(f"{path} is not a regular file; {_AGAIN}")
    with os.fdopen(handle, "rb") as file:
        try:
            data = file.read(at_most + 1)
        except OSError as error:
            raise BadBundle(f"{path} cannot be read: {reason(error)}; {_AGAIN}") from None
    if len(data) > at_most:
        raise BadBundle(f"{path} has more than {at_most} bytes, which no such file has; {_AGAIN}")
    return data
