"""SHA-256 of input files, computed by the main process once, and again only for changed files.

At the paper's scale (16 GB of teacher and 400 GB of text on 256 processes) hashing by everybody at
every start would read 100 TB before the first step.
"""

import time
from pathlib import Path

import msgspec

from edgelm.compress.run.distributed import is_main_process
from edgelm.files.hashing import file_sha256
from edgelm.files.replacing import replace_file

HASHES = "input-hashes.json"
_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 600.0

Stamp = tuple[int, int, int, int]
"""Size in bytes, times of modification and of the last change of status in ns, inode.

Without the device, unlike `edgelm.bundle.known_hashes`: a shared file system has another number on
each machine.
"""

_Entry = tuple[int, int, int, int, str]  # a stamp and the hash


class HashCache:
    """The hashes of files by path, in a file of the run folder that all processes read."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / HASHES

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file, in hex.

        Processes other than the main one wait for its result; after ten minutes without any they
        compute their own, since a copy of the file on another machine may have another stamp.
        """
        stamp = _stamp(path)
        if (known := self._known(path, stamp)) is not None:
            return known
        if not is_main_process():
            return self._follow(path, stamp)
        found = file_sha256(path)
        if _stamp(path) == stamp:  # else it was written to meanwhile
            content = self._read() | {str(path.resolve()): (*stamp, found)}
            replace_file(self._path, msgspec.json.encode(content))
        return found

    def _follow(self, path: Path, stamp: Stamp) -> str:
        end = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < end:
            if (known := self._known(path, stamp)) is not None:
                return known
            time.sleep(_POLL_SECONDS)
        return file_sha256(path)

    def _known(self, path: Path, stamp: Stamp) -> str | None:
        entry = self._read().get(str(path.resolve()))
        return entry[4] if entry is not None and entry[:4] == stamp else None

    def _read(self) -> dict[str, _Entry]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, _Entry])
        except (OSError, ValueError, RecursionError):
            return {}


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
