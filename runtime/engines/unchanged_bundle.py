"""Opening a bundle so that what was checked is what was opened.

Files are hashed first and opened by name afterwards, and an export may replace the bundle in
between. So the state of every file (device, inode, size, times) is taken before the hashes and
compared once all is open.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from edgelm.bundle import Manifest, read_manifest, verify
from edgelm.bundle.files import States, file_states
from edgelm.bundle.known_hashes import KnownHashes
from edgelm.bundle.manifest_file import MANIFEST
from edgelm.bundle.paths import file_state
from edgelm.errors import BadBundle


class _Closable(Protocol):
    def close(self) -> None:
        """Release what it holds."""


Opened = TypeVar("Opened", bound=_Closable)


def open_unchanged(
    folder: Path, open_it: Callable[[Manifest], Opened], *, hashes: bool = True
) -> Opened:
    """Check a bundle and open it; if it was replaced meanwhile, do both again.

    Args:
        folder: the bundle.
        open_it: opens all that is used of it.
        hashes: compare the hash of every file.

    Raises:
        BadBundle: the bundle is damaged, or it was replaced each time.
    """
    try:
        return _open_once(folder, open_it, hashes=hashes)
    except _Replaced:
        pass
    try:
        return _open_once(folder, open_it, hashes=hashes)
    except _Replaced:
        raise BadBundle(
            f"{folder} was replaced while it was loaded; load it again when nothing writes to it"
        ) from None


class _Replaced(Exception):
    """The bundle changed between its check and its use."""


class _Snapshot:
    """The state of a bundle's files at some moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.states: States = {MANIFEST: file_state(folder / MANIFEST)}

    def add_files(self, manifest: Manifest) -> None:
        self.states = file_states(self.folder, manifest) | self.states

    def differs(self) -> bool:
        return any(file_state(self.folder / name) != state for name, state in self.states.items())


def _open_once(folder: Path, open_it: Callable[[Manifest], Opened], *, hashes: bool) -> Opened:
    before = _Snapshot(folder)
    try:
        manifest = read_manifest(folder)
        before.add_files(manifest)
        verify(folder, manifest, hashes=hashes, known=KnownHashes.of_user())
        opened = open_it(manifest)
    except Exception:
        # Files of two bundles together can fail in any way; alone they get their own message.
        if before.differs():
            raise _Replaced from None
        raise
    if before.differs():
        opened.close()
        raise _Replaced
    return opened
