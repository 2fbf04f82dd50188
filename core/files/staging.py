"""Write a folder atomically: after a kill there is the old one or none, never a partial one.

The new contents are written to a hidden folder next to the target and moved into place at the end:

    .NAME.partial-edgelm-3f9a0c1d22b7e854/    a different name for every writer
        edgelm-staging                        names the target; locked while its writer runs
        new/                                  the new contents
        old/                                  the old contents, between two renames

The folder of a killed process is removed by the next writer to the same target: it has such a name
and an unlocked `edgelm-staging` for this target. Nothing else is touched. Without file locks
(some network file systems) such folders are not removed.
"""

import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgelm.errors import BadInput
from edgelm.files.exchange import exchange
from edgelm.files.locks import exclusive_lock, try_lock
from edgelm.files.replacing import (
    hidden_sibling,
    is_hidden_name,
    moves_open_files,
    remove_abandoned_files,
    replace_file,
    sync,
    sync_folder,
)

__all__ = [
    "Listing",
    "check_output_folder",
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
_BINARY = getattr(os, "O_BINARY", 0)  # Windows changes line ends otherwise
# The relative names of all files of an earlier output in a folder.
Listing = Callable[[Path], set[str]]


@contextmanager
def staged_folder(target: Path, *, marker: str, listing: Listing) -> Iterator[Path]:
    """Yield an empty folder that replaces `target` if the block ends without an error.

    Args:
        target: the folder to write; a link is followed.
        marker: a file that an existing `target` must contain to be replaced, so that a wrong path
            never deletes other data.
        listing: returns the files of an earlier output in a folder. Other files there are an error
            before the block; files that appear during the block are kept next to the target.

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
        check_replaceable(
            target, marker=marker, listing=listing
        )  # an older one may have been restored
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


def check_output_folder(folder: Path, option: str) -> None:
    """Raise BadInput, before long work, if a folder can be neither written to nor made.

    Args:
        folder: where the results will go.
        option: that named it, e.g. `--out`.
    """
    path = folder.absolute()
    place = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not place.is_dir():
        raise BadInput(f"{option} {folder}: {place} is a file; expected a folder for the results")
    if not os.access(place, os.W_OK):
        raise BadInput(f"{option} {folder}: no permission to write into {place}")


def check_replaceable(target: Path, *, marker: str, listing: Listing | None = None) -> None:
    """Raise BadInput if `target` contains files that edgelm did not write.

    Args:
        target: a folder that will be replaced or created.
        marker: a file that identifies an earlier output.
        listing: returns all files of such an output; None only checks the marker.
    """
    target = _real(target)
    if target.exists() and not target.is_dir():
        raise BadInput(f"{target} is a file; expected a folder to write to")
    if not target.is_dir():
        return
    if any(target.iterdir()) and not (target / marker).is_file():
        raise BadInput(
            f"{target} exists and contains no {marker}, so it is not replaced; choose another "
            "folder or remove it"
        )
    if listing is None:
        return
    if foreign := _foreign(target, listing(target)):
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise BadInput(
            f"{target} would be replaced, but contains {foreign[0]!r}{more}, which edgelm did not "
            "write; move it elsewhere, or choose another folder"
        )
    if os.path.ismount(target):
        raise BadInput(f"{target} is a mount point and cannot be replaced; choose a folder in it")


def check_separate(output: Path, inputs: dict[str, Path]) -> None:
    """Raise BadInput if an input is inside the output, or the output inside an input folder.

    Args:
        output: a folder that will be replaced.
        inputs: files and folders that are read, by description; missing ones are ignored.
    """
    output = _real(output)
    for what, path in inputs.items():
        try:
            real = path.resolve()
            if not real.exists():
                continue
        except (OSError, RuntimeError, ValueError):  # a hub id, or its reader will report the error
            continue
        if real.is_relative_to(output):
            raise BadInput(
                f"the {what} {path} is inside the output {output}, which is replaced as a whole; "
                "choose an output folder next to it"
            )
        if output.is_relative_to(real):
            raise BadInput(
                f"the output {output} is inside the {what} {path}; choose an output folder "
                "next to it"
            )


def _real(target: Path) -> Path:
    """The path without links, so that a link's target is replaced and not the link."""
    if "\0" in str(target):
        raise BadInput(f"{str(target)!r} is not a path: it contains a NUL character")
    try:
        return target.resolve()
    except RuntimeError:  # Python up to 3.12, for circular links
        raise BadInput(f"{target} is a link to itself; choose another folder") from None


def _foreign(folder: Path, listed: set[str]) -> list[str]:
    """Relative names of entries that are not listed, nor parents of listed ones."""
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
    """Only one process at a time cleans up and renames in a folder, if locks are supported."""
    with exclusive_lock(parent, lambda: None):
        yield


def _new_staging(target: Path) -> tuple[Path, int]:
    """A new staging folder, and its locked file."""
    staging = hidden_sibling(target)
    try:
        staging.mkdir(mode=0o700)
    except OSError as error:
        error.filename = str(target)  # not the hidden name
        raise
    handle = os.open(staging / _MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
    try_lock(handle)
    os.write(handle, _note(target))
    (staging / _NEW).mkdir()
    return staging, handle


def _swap(staging: Path, target: Path) -> None:
    """Replace the old folder by the new one, atomically if the system can."""
    new, old = staging / _NEW, staging / _OLD
    if not target.exists():
        new.rename(target)
    elif exchange(new, target):
        new.rename(old)
    else:
        target.rename(old)
        new.rename(target)


def _restore(staging: Path, target: Path) -> None:
    """Restore the old folder if it was moved away before the new one was in place."""
    old = staging / _OLD
    if old.is_dir() and not target.exists():
        old.rename(target)


def _discard_old(staging: Path, target: Path, listing: Listing) -> None:
    """Remove the replaced folder, unless other files appeared in it meanwhile."""
    old = staging / _OLD
    if not old.is_dir():
        return
    if foreign := _foreign(old, listing(old)):
        moved = target.with_name(f"{target.name}.old-{staging.name[-16:]}")
        old.rename(moved)
        log.warning("%r appeared in %s while it was replaced; see %s", foreign[0], target, moved)


def _remove(staging: Path, handle: int) -> None:
    """Remove a staging folder, its marker last, so that a killed removal can be finished later."""
    for name in (_NEW, _OLD):
        if not moves_open_files():  # Windows removes no read-only file either
            _make_writable(staging / name)
        shutil.rmtree(staging / name, ignore_errors=True)
    os.close(handle)  # Windows cannot remove open files
    if not (staging / _NEW).exists() and not (staging / _OLD).exists():
        (staging / _MARKER).unlink(missing_ok=True)
    try:
        staging.rmdir()
    except FileNotFoundError:  # another process has done so
        pass
    except OSError:
        log.warning("cannot remove %s; remove it when nothing uses it", staging)


def _make_writable(folder: Path) -> None:
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone, or somebody else's
            path.chmod(stat.S_IREAD | stat.S_IWRITE)


def _tidy(target: Path, listing: Listing) -> None:
    """Remove staging folders of killed processes for this target; restore the old folder."""
    for path in target.parent.iterdir():
        if not is_hidden_name(path.name) or path.is_symlink() or not path.is_dir():
            continue
        if (handle := _take_over(path, target)) is not None:
            _restore(path, target)
            _discard_old(path, target, listing)
            _remove(path, handle)


def _take_over(staging: Path, target: Path) -> int | None:
    """Lock the marker of an abandoned staging folder for this target; None if it is in use."""
    try:
        handle = os.open(staging / _MARKER, os.O_RDWR | _BINARY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        _remove_empty(staging)
        return None
    note = os.read(handle, 4096)
    # A kill before the first write leaves the marker empty, and nothing else.
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
    """Remove a folder whose process was killed before it wrote the marker."""
    with suppress(OSError):  # it is not empty, so it was not written here
        staging.rmdir()
