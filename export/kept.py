"""What stages of an export find out, kept in a folder for later stages and later exports.

Running a source over text, rounding its matrices and measuring candidates takes minutes, and gives
the same for every device that has the same kernels. What was found is stored under what it depends
on, each piece whole or not at all, so that a killed export goes on where it was.
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
_NOTE = "What edge-export --work found out; it may be removed at any time.\n"
_T = TypeVar("_T")
Tensors = dict[str, torch.Tensor]


class Kept:
    """A folder of findings by name, each found once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        """Whether tensors of this name are there."""
        return self._tensors(name).is_file()

    def tensors(self, name: str, find: Callable[[], Tensors]) -> Tensors:
        """Tensors of this name, from the folder or else from `find`."""
        path = self._tensors(name)
        if not path.is_file():
            found = {key: one.contiguous() for key, one in find().items()}
            # In memory first: safetensors' own writer does not say that a disk is full.
            replace_file(path, save(found))
        return load_file(path)

    def record(self, name: str, kind: type[_T], find: Callable[[], _T]) -> _T:
        """A record of this name, from the folder or else from `find`."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            replace_file(path, msgspec.json.encode(find()))
        return msgspec.json.decode(path.read_bytes(), type=kind)

    def _tensors(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def key(*parts: object) -> str:
    """A short name for what findings depend on."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


def check_work(root: Path) -> None:
    """Make a work folder, or raise BadInput where that cannot be.

    Its mark keeps a slip of the keyboard from filling somebody's home.
    """
    if root.is_file():
        raise BadInput(f"{root} is a file; expected a folder to keep work in")
    if root.is_dir() and any(root.iterdir()) and not (root / _MARK).exists():
        raise BadInput(
            f"{root} holds something else than kept work; choose an empty or a new folder"
        )
    root.mkdir(parents=True, exist_ok=True)
    (root / _MARK).write_text(_NOTE, encoding="utf-8")


@contextmanager
def shared_folder(root: Path, name: str, progress: Callable[[str], None]) -> Iterator[Path]:
    """A folder below `root` for this process alone; it stays."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)

    def waits() -> None:
        progress(f"waiting for another export that works in {folder}")

    with alone_in(folder, waits):
        remove_abandoned_files(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        if size:
            progress(f"going on from {folder} ({format_bytes(size)})")
        yield folder
