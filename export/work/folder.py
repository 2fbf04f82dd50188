"""The folder of `--work`: one process at a time, and nothing in it but caches."""

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgelm.cli import format_bytes
from edgelm.errors import BadInput
from edgelm.files.replacing import is_hidden_name
from edgelm.files.staging import exclusive_lock, remove_abandoned_files, replace_file

_MARK = "edgelm-work.txt"
_CODE = "code.txt"  # in a source's folder: the version of the code that filled it
_NAME = re.compile("[0-9a-f]{16}")
_NOTE = "Intermediate results of edge-export --work; the folder may be removed at any time.\n"


def check_work(root: Path, output: Path) -> None:
    """Check that a folder can hold caches. Its mark keeps a typo from filling another folder.

    Raises:
        BadInput: it is a file, holds something else, or lies in the output.
    """
    if root.resolve().is_relative_to(output.resolve()):
        raise BadInput(
            f"{root} is inside the output {output}, which is replaced as a whole; choose a folder "
            "next to it"
        )
    if root.is_file():
        raise BadInput(f"{root} is a file; expected a folder for intermediate results")
    # A killed process may have left no more than a hidden file, before there was a mark.
    others = root.is_dir() and any(not is_hidden_name(path.name) for path in root.iterdir())
    if others and not (root / _MARK).exists():
        raise BadInput(
            f"{root} holds other files than edgelm's intermediate results; choose an empty or a "
            "new folder"
        )


@contextmanager
def work_folder(
    root: Path, name: str, code: str, progress: Callable[[str], None]
) -> Iterator[Path]:
    """A folder below `root`, locked for the block, that stays afterwards.

    Args:
        root: holds the folders of all sources.
        name: of the source and of the code that runs it.
        code: identifies this version of the code; it cannot use the folders of others.
        progress: called with one line.

    Raises:
        BadInput: it cannot be made, or its file system has no locks.
    """
    folder = root / name
    try:
        root.mkdir(parents=True, exist_ok=True)
        remove_abandoned_files(root)
        if not (root / _MARK).is_file():
            replace_file(root / _MARK, _NOTE.encode())
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"cannot write intermediate results to {root}: {error.strerror}; choose another folder"
        ) from None
    _report_others(root, code, progress)

    def on_wait() -> None:
        progress(f"waiting for another export that uses {folder}")

    with exclusive_lock(folder, on_wait) as locked:
        if not locked:
            raise BadInput(
                f"{root} cannot be locked on this system, so two exports could overwrite each "
                "other's results; choose a folder on a local disk, or leave out --work"
            )
        for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            remove_abandoned_files(inner)
        if size := folder_bytes(folder):
            progress(f"resuming from {folder} ({format_bytes(size)})")
        replace_file(folder / _CODE, code.encode())
        yield folder


def _report_others(root: Path, code: str, progress: Callable[[str], None]) -> None:
    """Report what other versions of edgelm left here, and how to remove it."""
    others = [
        path
        for path in sorted(root.iterdir())
        if _NAME.fullmatch(path.name) and any(path.iterdir()) and _code_of(path) != code
    ]
    if others:
        size = format_bytes(sum(map(folder_bytes, others)))
        progress(
            f"{root} holds {size} of other versions of edgelm, which this one does not use; "
            f"remove it: {shlex.join(['rm', '-r', *map(str, others)])}"
        )


def _code_of(folder: Path) -> str:
    try:
        return (folder / _CODE).read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def folder_bytes(folder: Path, *, recursive: bool = True) -> int:
    """Bytes on disk of the files in a folder, and of those below it."""
    files = (path for path in (folder.rglob if recursive else folder.glob)("*") if path.is_file())
    return sum(512 * path.stat().st_blocks for path in files)
