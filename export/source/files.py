"""The source of an export stays what it was at the start, or the export stops."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from edgelm.checkpoint.source import Checkpoint
from edgelm.errors import BadCheckpoint
from edgelm.files.hashing import file_sha256

# What is read besides the weights.
_SMALL = ("*.json", "*.jinja", "tokenizer.model")


class _FileState(NamedTuple):
    """A file as the system sees it; times in nanoseconds."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


class SourceFiles:
    """A checkpoint's files as they are now.

    A changed time of change alone, as a new hard link makes it, is settled by the hash.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._states = {path: _state(path) for path in checkpoint.weight_files}
        self._small = {path: file_sha256(path) for path in self._small_files()}
        self.sha256 = checkpoint.sha256()
        """Hash of the weights: the manifest's and that of the bytes that are used."""
        self.check()

    def check(self) -> None:
        """Raise BadCheckpoint if a file has changed."""
        linked = False
        for path, before in self._states.items():
            now = _state(path)
            if now[:-1] != before[:-1]:
                raise _changed(path)
            linked = linked or now != before
        if linked and self.checkpoint.sha256() != self.sha256:
            raise _changed(self.checkpoint.path)
        for path, sha256 in self._small.items():
            try:
                same = file_sha256(path) == sha256
            except OSError:
                same = False
            if not same:
                raise _changed(path)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Explain an error in the block by a source that has changed, if it has."""
        try:
            yield
        except Exception:
            self.check()
            raise

    def _small_files(self) -> list[Path]:
        folder = self.checkpoint.path
        if not folder.is_dir():
            return []
        return sorted({path for one in _SMALL for path in folder.glob(one) if path.is_file()})


def _state(path: Path) -> _FileState:
    try:
        stat = path.stat()
    except OSError:
        raise _changed(path) from None
    return _FileState(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _changed(path: Path) -> BadCheckpoint:
    what = "changed" if path.exists() else "was removed"
    return BadCheckpoint(
        f"{path} {what} while the model was exported, so the bundle would be a mixture; nothing "
        "was written: export again when the source is complete"
    )
