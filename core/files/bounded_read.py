"""Read a small untrusted file: a regular file of a plausible size."""

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
        at_most: bytes; far above the size of a valid file.

    Raises:
        FileNotFoundError: there is none.
        BadBundle: a broken link, a folder, a pipe or a device, an unreadable file, or a larger one.
    """
    try:
        # Non-blocking: opening a named pipe would wait for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        if path.is_symlink():
            raise BadBundle(f"{path} is a link to a missing file; {_AGAIN}") from None
        raise
    except (OSError, ValueError) as error:
        raise BadBundle(f"{path} cannot be read: {reason(error)}; {_AGAIN}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)  # here, since fdopen rejects a folder and leaves it open
        raise BadBundle(f"{path} is not a regular file; {_AGAIN}")
    with os.fdopen(handle, "rb") as file:
        try:
            data = file.read(at_most + 1)
        except OSError as error:
            raise BadBundle(f"{path} cannot be read: {reason(error)}; {_AGAIN}") from None
    if len(data) > at_most:
        raise BadBundle(
            f"{path} is larger than {at_most} bytes, the limit for such a file; {_AGAIN}"
        )
    return data
