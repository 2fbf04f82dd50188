"""A cache of what an export computes, for its later stages and for later exports.

Running a source over text, quantizing its matrices and measuring candidates takes minutes, and
gives the same for every device with the same kernels. Each artifact is stored whole or not at all,
so that an interrupted export resumes. What artifacts depend on is in the folders' names:

    WORK/<source>/                      its final states on a text, figures of whole graphs
    WORK/<source>/<text>/               what calibration observed
    WORK/<source>/<text>/<method>/      quantized matrices, sensitivities, candidates
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from safetensors.torch import load_file, save

from edgelm.files.sealed_tensors import UNSEALED, is_sealed, sealed
from edgelm.files.staging import replace_file

_T = TypeVar("_T")
Tensors = dict[str, torch.Tensor]


class _Record(msgspec.Struct):
    """A record on disk: JSON, and its SHA-256."""

    sha256: str
    value: msgspec.Raw


class ArtifactCache:
    """A folder of tensors and records by name.

    Args:
        folder: an existing one.
        durable: artifacts must survive this process, and a power cut; they then have a hash, and
            a damaged one counts as absent.
        check: called before an artifact is stored; raises if what it depends on has changed.
    """

    def __init__(
        self, folder: Path, *, durable: bool = False, check: Callable[[], None] = lambda: None
    ) -> None:
        self.folder = folder
        self.durable = durable
        self.check = check

    def subfolder(self, name: str) -> "ArtifactCache":
        """A cache of artifacts that depend on more."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return ArtifactCache(folder, durable=self.durable, check=self.check)

    def has_tensors(self, name: str) -> bool:
        """Whether tensors of this name are stored, undamaged."""
        path = self._tensors(name)
        return is_sealed(path) if self.durable else path.is_file()

    def load_tensors(self, name: str) -> Tensors | None:
        """Tensors by name; None if there are none, or damaged ones."""
        return load_file(self._tensors(name)) if self.has_tensors(name) else None

    def save_tensors(self, name: str, tensors: Tensors) -> None:
        """Store tensors, which must be contiguous.

        Raises:
            BadCheckpoint: what they depend on has changed.
        """
        self.check()
        # In memory first: safetensors' own writer does not report a full disk.
        content = sealed(save(tensors, UNSEALED)) if self.durable else save(tensors)
        self._write(self._tensors(name), content)

    def load_record(self, name: str, kind: type[_T]) -> _T | None:
        """A record by name; None if there is none, or a damaged one."""
        try:
            record = msgspec.json.decode(self._record(name).read_bytes(), type=_Record)
            if hashlib.sha256(record.value).hexdigest() != record.sha256:
                return None
            return msgspec.json.decode(record.value, type=kind)
        except (OSError, ValueError, RecursionError):
            return None

    def save_record(self, name: str, record: object) -> None:
        """Store a record; one with a number that is not finite will not load, as JSON has none.

        Raises:
            BadCheckpoint: what it depends on has changed.
        """
        self.check()
        content = msgspec.json.encode(record)
        stored = _Record(hashlib.sha256(content).hexdigest(), msgspec.Raw(content))
        self._write(self._record(name), msgspec.json.encode(stored))

    def remove(self, name: str) -> None:
        """Remove tensors or a record of this name."""
        self._tensors(name).unlink(missing_ok=True)
        self._record(name).unlink(missing_ok=True)

    def _tensors(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _write(self, path: Path, content: bytes) -> None:
        if self.durable:
            replace_file(path, content)
        else:
            path.write_bytes(content)


def key(*parts: object) -> str:
    """A short name for what artifacts depend on."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]
