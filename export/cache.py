"""What an export finds out, kept in a folder for its later stages and for later exports.

Running a source over text, rounding its matrices and measuring candidates takes minutes, and gives
the same for every device with the same kernels. Each finding is stored whole or not at all, so
that a killed export goes on where it was. What findings depend on is in the folders' names:

    WORK/<source>/                      its final states on a text, figures of whole graphs
    WORK/<source>/<text>/               what calibration saw
    WORK/<source>/<text>/<rounding>/    rounded matrices, sensitivities, candidates
"""

import hashlib
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from safetensors.torch import load_file, save

from edgelm.cli import format_bytes
from edgelm.errors import BadInput
from edgelm.files.sealed_tensors import UNSEALED, is_sealed, sealed
from edgelm.files.staging import exclusive_lock, remove_abandoned_files, replace_file

_MARK = "edgelm-work.txt"
_CODE = "code.txt"  # in a source's folder: which code its findings are of
_NAME = re.compile("[0-9a-f]{16}")
_NOTE = "What edge-export --work found out; the folder may be removed at any time.\n"
_T = TypeVar("_T")
Tensors = dict[str, torch.Tensor]


class _Record(msgspec.Struct):
    """A record on disk: JSON, and its SHA-256."""

    sha256: str
    value: msgspec.Raw


class Kept:
    """A folder of findings by name, each found once.

    Findings that outlive this process have a hash: a damaged one counts as absent.

    Args:
        folder: an existing one.
        lasting: findings must survive this process, and a power cut.
        check: called before a finding is kept; raises if what it depends on has changed.
    """

    def __init__(
        self, folder: Path, *, lasting: bool = False, check: Callable[[], None] = lambda: None
    ) -> None:
        self.folder = folder
        self.lasting = lasting
        self.check = check

    def below(self, name: str) -> "Kept":
        """Findings that depend on more."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return Kept(folder, lasting=self.lasting, check=self.check)

    def has(self, name: str) -> bool:
        """Whether tensors of this name are there, as they were written."""
        path = self._tensors(name)
        return is_sealed(path) if self.lasting else path.is_file()

    def forget(self, name: str) -> None:
        """Remove tensors or a record of this name."""
        self._tensors(name).unlink(missing_ok=True)
        self._record(name).unlink(missing_ok=True)

    def tensors(self, name: str, find: Callable[[], Tensors]) -> Tensors:
        """Tensors of this name, from the folder or else from `find`."""
        path = self._tensors(name)
        if self.has(name):
            return load_file(path)
        found = {key: one.contiguous() for key, one in find().items()}
        self.check()
        # In memory first: safetensors' own writer does not say that a disk is full.
        self._write(path, sealed(save(found, UNSEALED)) if self.lasting else save(found))
        return found

    def record(self, name: str, kind: type[_T], find: Callable[[], _T]) -> _T:
        """A record of this name, from the folder or else from `find`."""
        if (kept := self.known(name, kind)) is not None:
            return kept
        found = find()
        content = msgspec.json.encode(found)
        try:
            msgspec.json.decode(content, type=kind)
        except msgspec.ValidationError:
            return found  # a figure that is not finite: JSON has none, and none is worth keeping
        self.check()
        record = _Record(hashlib.sha256(content).hexdigest(), msgspec.Raw(content))
        self._write(self._record(name), msgspec.json.encode(record))
        return found

    def known(self, name: str, kind: type[_T]) -> _T | None:
        """A record of this name from the folder; None if there is none, or a damaged one."""
        try:
            record = msgspec.json.decode(self._record(name).read_bytes(), type=_Record)
            if hashlib.sha256(record.value).hexdigest() != record.sha256:
                return None
            return msgspec.json.decode(record.value, type=kind)
        except (OSError, ValueError, RecursionError):
            return None

    def _tensors(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"

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
def work_folder(
    root: Path, name: str, code: str, progress: Callable[[str], None]
) -> Iterator[Path]:
    """A folder below `root` that is this process's own for the block, and stays.

    Args:
        root: holds the folders of all sources.
        name: of the source and of the code that runs it.
        code: what tells this version of the code from others, whose folders are of no use to it.
        progress: called with one line.

    Raises:
        BadInput: it cannot be made, or its file system has no locks.
    """
    folder = root / name
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / _MARK).is_file():
            replace_file(root / _MARK, _NOTE.encode())
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"cannot keep work in {root}: {error.strerror}; choose another folder"
        ) from None
    _report_others(root, code, progress)

    def waits() -> None:
        progress(f"waiting for another export that works in {folder}")

    with exclusive_lock(folder, waits) as alone:
        if not alone:
            raise BadInput(
                f"{root} cannot be locked on this system, so that two exports could spoil each "
                "other's work; choose a folder on a local disk, or leave out --work"
            )
        for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            remove_abandoned_files(inner)
        if size := folder_bytes(folder):
            progress(f"going on from {folder} ({format_bytes(size)})")
        replace_file(folder / _CODE, code.encode())
        yield folder


def _report_others(root: Path, code: str, progress: Callable[[str], None]) -> None:
    """Say what other versions of edgelm left here, and how to remove it."""
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


def folder_bytes(folder: Path, *, below: bool = True) -> int:
    """Bytes on disk of the files in a folder, and of those below it."""
    files = (path for path in (folder.rglob if below else folder.glob)("*") if path.is_file())
    return sum(512 * path.stat().st_blocks for path in files)
