"""Write a folder so that a kill at any moment leaves the old one or none, never a half.

The new contents grow in a hidden folder beside the target and are moved into place at the end:

    .NAME.partial-edgelm-3f9a0c1d22b7e854/    a name of its own for every writer
        edgelm-staging                        what it is for; locked while its writer lives
        new/                                  what is written
        old/                                  what was there before, between two renames

What a killed process left is removed by the next one that writes to the same place: it has such a
name, such a file, and nobody holds its lock. Nothing else is touched, whatever its name. Where the
system has no file locks (Windows, some network file systems) it is left alone.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgelm.errors import BadInput
from edgelm.files.exchange import exchange
from edgelm.files.locks import exclusive_lock, try_lock
from edgelm.files.replacing import (
    hidden_sibling,
    is_hidden_name,
    remove_abandoned_files,
    replace_file,
    sync,
    sync_folder,
)

__all__ = [
    "Listing",
    "check_replaceable",
    "check_separate",
    "exclusive_lock",
    "remove_abandoned_files",
    "replace_file",
    "staged_folder",
    "sync",
]

log = logging.getLogger(__name__)

_MARKER = "edgelm-staging"
_NOTE = "edgelm writes a folder here; it may be removed when no edgelm runs.\n"
_NEW, _OLD = "new", "old"
# The relative names of all files that an older output in a folder consists of.
Listing = Callable[[Path], set[str]]


@contextmanager
def staged_folder(target: Path, *, marker: str, listing: Listing) -> Iterator[Path]:
    """Yield an empty folder that replaces `target` if the block ends without an error.

    Args:
        target: the folder to write; a link is followed.
        marker: a file that an existing `target` must hold to be replaced, so that a wrong path
            never removes somebody's home.
        listing: the files of an older output in a folder. What else is there is not ours: it is
            refused before the block, and kept beside the target if it came during the block.

    Raises:
        BadInput: `target` must not be replaced.
    """
    target = _real(target)
    check_replaceable(target, marker=marker, listing=listing)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent):
        _tidy(target, listing)
        staging, handle = _new_staging(target)
    try:
        check_replaceable(target, marker=marker, listing=listing)  # an old one may be back
        yield staging / _NEW
        sync(staging / _NEW)
        with _locked(target.parent):
            check_replaceable(target, marker=marker)
            _swap(staging, target)
            _discard_old(staging, target, listing)
            sync_folder(target.parent)
    finally:
        _restore(staging, target)
        _remove(staging, handle)


def check_replaceable(target: Path, *, marker: str, listing: Listing | None = None) -> None:
    """Raise BadInput if `target` holds something that this tool did not write.

    Args:
        target: a folder that is to be replaced, or that is yet to be made.
        marker: the file that tells a folder of ours.
        listing: all files that such a folder consists of; None checks the marker alone.
    """
    target = _real(target)
    if target.exists() and not target.is_dir():
        raise BadInput(f"{target} is a file; expected a folder to write to")
    if not target.is_dir():
        return
    if any(target.iterdir()) and not (target / marker).is_file():
        raise BadInput(
            f"{target} exists and holds no {marker}; it will not be replaced, choose another "
            "folder or remove it"
        )
    if listing is None:
        return
    if foreign := _foreign(target, listing(target)):
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise BadInput(
            f"{target} would be replaced, but holds {foreign[0]!r}{more}, which edgelm did not "
            "write there; move it elsewhere, or choose another folder"
        )
    if os.path.ismount(target):
        raise BadInput(f"{target} is a mount point and cannot be replaced; choose a folder in it")


def check_separate(output: Path, inputs: dict[str, Path]) -> None:
    """Raise BadInput if an input lies in the output, or the output in an input that is a folder.

    Args:
        output: a folder that will be replaced.
        inputs: files and folders that are read, by what they are; those that do not exist are
            ignored.
    """
    output = _real(output)
    for what, path in inputs.items():
        try:
            real = path.resolve()
            if not real.exists():
                continue
        except (OSError, RuntimeError, ValueError):  # a hub id, or whoever reads it will say
            continue
        if real.is_relative_to(output):
            raise BadInput(
                f"the {what} {path} lies in the output {output}, which is replaced as a whole; "
                "choose an output folder beside it"
            )
        if output.is_relative_to(real):
            raise BadInput(
                f"the output {output} lies in the {what} {path}; choose an output folder beside it"
            )


def _real(target: Path) -> Path:
    """The path without links, so that a link's target is replaced and not the link."""
    if "\0" in str(target):
        raise BadInput(f"{str(target)!r} is not a path: it holds a NUL character")
    try:
        return target.resolve()
    except RuntimeError:  # Python's, up to 3.12, for links in a circle
        raise BadInput(f"{target} is a link to itself; choose another folder") from None


def _foreign(folder: Path, listed: set[str]) -> list[str]:
    """Relative names of what lies in a folder and is neither listed nor holds what is."""
    parents = {parent.as_posix() for name in listed for parent in Path(name).parents}
    found = []
    for root, folders, files in os.walk(folder):
        below = Path(root).relative_to(folder)
        for name in [*folders, *files]:
            relative = (below / name).as_posix()
            inner = name in folders and not (folder / relative).is_symlink()
            if relative not in (parents if inner else listed) and not is_hidden_name(name):
                found.append(relative + "/" * inner)
        folders[:] = [name for name in folders if (below / name).as_posix() in parents]
    return sorted(found)


@contextmanager
def _locked(parent: Path) -> Iterator[None]:
    """One process at a time looks for what was left and renames in a folder, where it can lock."""
    with exclusive_lock(parent, lambda: None):
        yield


def _new_staging(target: Path) -> tuple[Path, int]:
    """A new staging folder, and its locked file."""
    staging = hidden_sibling(target)
    staging.mkdir(mode=0o700)
    handle = os.open(staging / _MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try_lock(handle)
    os.write(handle, _note(target))
    (staging / _NEW).mkdir()
    return staging, handle


def _swap(staging: Path, target: Path) -> None:
    """Put the new folder where the old one is, in one step where the system can."""
    new, old = staging / _NEW, staging / _OLD
    if not target.exists():
        new.rename(target)
    elif exchange(new, target):
        new.rename(old)
    else:
        target.rename(old)
        new.rename(target)


def _restore(staging: Path, target: Path) -> None:
    """Bring the old folder back if it was moved away and the new one did not come."""
    old = staging / _OLD
    if old.is_dir() and not target.exists():
        old.rename(target)


def _discard_old(staging: Path, target: Path, listing: Listing) -> None:
    """Remove the replaced folder, unless somebody put something into it meanwhile."""
    old = staging / _OLD
    if not old.is_dir():
        return
    if foreign := _foreign(old, listing(old)):
        kept = target.with_name(f"{target.name}.old-{staging.name[-16:]}")
        old.rename(kept)
        log.warning("%r came to %s while it was replaced; it is in %s", foreign[0], target, kept)


def _remove(staging: Path, handle: int) -> None:
    """Remove a staging folder; what tells that it is ours goes last, since a kill may come."""
    for name in (_NEW, _OLD):
        shutil.rmtree(staging / name, ignore_errors=True)
    os.close(handle)  # Windows removes no open files
    if not (staging / _NEW).exists() and not (staging / _OLD).exists():
        (staging / _MARKER).unlink(missing_ok=True)
    try:
        staging.rmdir()
    except FileNotFoundError:  # the next process has done so
        pass
    except OSError:
        log.warning("cannot remove %s; remove it when nothing uses it", staging)


def _tidy(target: Path, listing: Listing) -> None:
    """Remove staging folders for this target whose process was killed; restore what it lost."""
    for path in target.parent.iterdir():
        if not is_hidden_name(path.name) or path.is_symlink() or not path.is_dir():
            continue
        if (handle := _take_over(path, target)) is not None:
            _restore(path, target)
            _discard_old(path, target, listing)
            _remove(path, handle)


def _take_over(staging: Path, target: Path) -> int | None:
    """The locked file of a staging folder for this target that nobody holds."""
    try:
        handle = os.open(staging / _MARKER, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        _remove_empty(staging)
        return None
    note = os.read(handle, 4096)
    # A kill before the first write leaves it empty; then there is nothing else.
    empty = not note and {path.name for path in staging.iterdir()} == {_MARKER}
    if empty or note == _note(target):
        if locked := try_lock(handle):
            return handle
        if locked is None:
            _restore(staging, target)
    os.close(handle)
    return None


def _note(target: Path) -> bytes:
    return f"{_NOTE}{target.name}".encode(errors="surrogateescape")


def _remove_empty(staging: Path) -> None:
    """Remove what a kill left that came before the first file."""
    with suppress(OSError):  # something is in it, so it is not ours
        staging.rmdir()
