"""What an export finds out, kept in a folder for its later stages and for later exports.

Running a source over text, rounding its matrices and measuring candidates takes minutes, and gives
the same for every device with the same kernels. Each finding is stored whole or not at all, so
that a killed export goes on where it was. What findings depend on is in the folders' names:

    WORK/<source>/                      its final states on a text, figures of whole graphs
    WORK/<source>/<text>/               what calibration saw
    WORK/<source>/<text>/<rounding>/    rounded matrices, sensitivities, candidates
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from safetensors.torch import load_file, save

from edgelm.command import format_bytes
from edgelm.errors import BadInput
from edgelm.staging import alone_in, remove_abandoned_files, replace_file

_MARK = "edgelm-work.txt"
_NOTE = "What edge-export --work found out; the folder may be removed at any time.\n"
_T = TypeVar("_T")
Tensors = dict[str, torch.Tensor]


class Kept:
    """A folder of findings by name, each found once.

    Args:
        folder: an existing one.
        lasting: findings must survive this process, and a power cut.
    """

    def __init__(self, folder: Path, *, lasting: bool = False) -> None:
        self.folder = folder
        self.lasting = lasting

    def below(self, name: str) -> "Kept":
        """Findings that depend on more."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return Kept(folder, lasting=self.lasting)

    def has(self, name: str) -> bool:
        """Whether tensors of this name are there."""
        return self._tensors(name).is_file()

    def forget(self, name: str) -> None:
        """Remove tensors of this name."""
        self._tensors(name).unlink(missing_ok=True)

    def tensors(self, name: str, find: Callable[[], Tensors]) -> Tensors:
        """Tensors of this name, from the folder or else from `find`."""
        path = self._tensors(name)
        if path.is_file():
            return load_file(path)
        found = {key: one.contiguous() for key, one in find().items()}
        # In memory first: safetensors' own writer does not say that a disk is full.
        self._write(path, save(found))
        return found

    def record(self, name: str, kind: type[_T], find: Callable[[], _T]) -> _T:
        """A record of this name, from the folder or else from `find`."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            return msgspec.json.decode(path.read_bytes(), type=kind)
        found = find()
        content = msgspec.json.encode(found)
        try:
            msgspec.json.decode(content, type=kind)
        except msgspec.ValidationError:
            return found  # a figure that is not finite: JSON has none, and none is worth keeping
        self._write(path, content)
        return found

    def _tensors(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _write(self, path: Path, content: bytes) -> None:
        if self.lasting:
            replace_file(path, content)
        else:
            path.write_bytes(content)


def key(*parts: object) -> str:
    """A short name for what findings depend on."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


def check_work(root: Path, output: Path) -> None:
    """Check that a folder can keep work.

    Its mark keeps a slip of the keyboard from filling somebody's home.

    Raises:
        BadInput: it is a file, holds something else, or lies in the output.
    """
    if root.resolve().is_relative_to(output.resolve()):
        raise BadInput(
            f"{root} lies in the output {output}, which is replaced as a whole; choose a folder "
            "beside it"
        )
    if root.is_file():
        raise BadInput(f"{root} is a file; expected a folder to keep work in")
    if root.is_dir() and any(root.iterdir()) and not (root / _MARK).exists():
        raise BadInput(
            f"{root} holds something else than kept work; choose an empty or a new folder"
        )


@contextmanager
def work_folder(root: Path, name: str, progress: Callable[[str], None]) -> Iterator[Path]:
    """A folder below `root` that is this process's own for the block, and stays.

    Raises:
        BadInput: it cannot be made, or its file system has no locks.
    """
    folder = root / name
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / _MARK).write_text(_NOTE, encoding="utf-8")
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"cannot keep work in {root}: {error.strerror}; choose another folder"
        ) from None

    def waits() -> None:
        progress(f"waiting for another export that works in {folder}")

    with alone_in(folder, waits) as alone:
        if not alone:
            raise BadInput(
                f"{root} cannot be locked on this system, so that two exports could spoil each "
                "other's work; choose a folder on a local disk, or leave out --work"
            )
        for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            remove_abandoned_files(inner)
        if size := folder_bytes(folder):
            progress(f"going on from {folder} ({format_bytes(size)})")
        yield folder


def folder_bytes(folder: Path, *, below: bool = True) -> int:
    """Bytes on disk of the files in a folder, and of those below it."""
    files = (path for path in (folder.rglob if below else folder.glob)("*") if path.is_file())
    return sum(512 * path.stat().st_blocks for path in files)
