"""Hashes that were computed before, so that loading a bundle again does not read all of it twice.

A file is known by device, inode, size, and times of its last change and of its last change of
status, which programs cannot set. A file that changed shortly before it was hashed is not recorded:
a further change could leave the same times. Engines, which are native code, are hashed each time.
"""

import json
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path

from edgelm.bundle.paths import FileState
from edgelm.files.replacing import replace_file

_MAX_FILES = 1000
_MAX_BYTES = 2**20
_SETTLED_NS = 2_000_000_000  # coarser than the clock of any common file system
_SHA256 = re.compile(r"[0-9a-f]{64}")


class KnownHashes:
    """The hashes in a file of the user's cache folder.

    Args:
        path: the file; a missing or damaged one is empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hashes = _read(path)
        self._changed = False

    @classmethod
    def of_user(cls) -> "KnownHashes":
        """The user's own, `~/.cache/edgelm/hashes.json`."""
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(cache) / "edgelm" / "hashes.json")

    def find(self, state: FileState) -> str | None:
        """The SHA-256 of a file in this state, if it was computed before."""
        return self._hashes.get(_key(state))

    def add(self, state: FileState, sha256: str) -> None:
        """Record the hash of a file that had this state before and after it was hashed."""
        if max(state.modified_ns, state.changed_ns) < time.time_ns() - _SETTLED_NS:
            self._hashes.pop(_key(state), None)
            self._hashes[_key(state)] = sha256
            self._changed = True

    def save(self) -> None:
        """Write what was added; that it cannot be written only costs time."""
        if not self._changed:
            return
        newest = dict(list(self._hashes.items())[-_MAX_FILES:])
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps(newest).encode(), mode=0o600)


def _key(state: FileState) -> str:
    return ":".join(map(str, state))


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if os.name == "posix" and (found.st_uid != os.getuid() or others_write):
                return {}
            values = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, str) and _SHA256.fullmatch(value)
    }
