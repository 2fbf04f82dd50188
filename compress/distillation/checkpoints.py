"""Checkpoints of a training run: written whole or not at all, one kept."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError

from edgelm.cli import format_bytes
from edgelm.errors import BadInput, DoesNotFit
from edgelm.files.hashing import first_changed, tree_sha256
from edgelm.files.replacing import replace_file, sync, sync_folder

_PREFIX = "step-"
_NAME = re.compile(rf"{_PREFIX}[0-9]{{8,18}}")
_HASHES = "sha256.json"
# Settings that change how a run computes, or how far it goes, but not what.
_PASSING = ("stop_after", "checkpoint_steps", "micro_batch", "gradient_checkpointing", "compile")
_SETTINGS = "settings.json"
_POLL_SECONDS = 0.2


class Checkpoints:
    """The folder of a run: `step-00000050/` and the settings it belongs to.

    A checkpoint grows under another name and is renamed when all of it is on the disk; then the
    one before is removed.
    """

    def __init__(self, folder: Path, accelerator: Any, settings: msgspec.Struct) -> None:
        """Open or make the folder.

        Raises:
            BadInput: it is of a run with other settings.
        """
        self.folder = folder
        self.accelerator = accelerator
        self.settings = settings
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*.partial"):
                remove(path)
            self._check_settings()
        accelerator.wait_for_everyone()

    def once(
        self, name: str, write: Callable[[Path], None], is_whole: Callable[[Path], bool]
    ) -> Path:
        """A file that the first process writes, where no earlier start of the run did.

        Args:
            name: of the file.
            write: given the path to write to.
            is_whole: whether a file is as it was written; a damaged one is written again.

        Raises:
            DoesNotFit: the disk is full.
        """
        path = self.folder / name
        if self.accelerator.is_main_process and path.exists() and not is_whole(path):
            remove(path)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process and not path.is_file():
            staging = path.with_name(f"{name}.partial")
            with self._room(staging):
                write(staging)
                sync(staging)
            staging.rename(path)
        # It may take longer than a barrier waits.
        while not path.is_file():
            time.sleep(_POLL_SECONDS)
        self.accelerator.wait_for_everyone()
        return path

    def resume(self) -> int:
        """Load the last checkpoint, if there is one; returns the steps that are done.

        Raises:
            BadInput: there are checkpoints, and all are damaged.
        """
        found = self._found()
        for path in found:
            if _changed(path) is None:
                self.accelerator.load_state(str(path))
                return _step_of(path)
        if found:
            raise BadInput(
                f"the checkpoint {found[0]} is damaged ({_changed(found[0])}); remove "
                f"{self.folder} to train from the beginning, or restore it from a copy"
            )
        return 0

    def last(self) -> Path | None:
        """The newest complete checkpoint."""
        return next((path for path in self._found() if (path / _HASHES).is_file()), None)

    def _found(self) -> list[Path]:
        """All folders of checkpoints, the newest first."""
        named = (path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))
        return sorted((path for path in named if path.is_dir()), key=_step_of, reverse=True)

    def save(self, step: int) -> None:
        """Write a checkpoint.

        Raises:
            DoesNotFit: the disk is full; the checkpoint before stays.
        """
        target = self.folder / f"{_PREFIX}{step:08d}"
        staging = target.with_name(f"{target.name}.partial")
        with self._room(staging):
            # Not as safetensors: that warns of a tied head at every checkpoint.
            self.accelerator.save_state(str(staging), safe_serialization=False)
            sync(staging)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with self._room(staging):
                hashes = msgspec.json.encode(tree_sha256(staging))
                replace_file(staging / _HASHES, hashes)
            remove(target)  # a damaged one, or one that a kill before the next was left
            staging.rename(target)
            sync_folder(self.folder)
            for path in self._found():
                if path != target:
                    remove(path)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _room(self, staging: Path) -> Iterator[None]:
        """Nothing of `staging` stays where the disk is too full for it."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _is_full(error, self.folder):
                raise
            remove(staging)
            free = shutil.disk_usage(self.folder).free
            raise DoesNotFit(
                f"no room for a checkpoint in {self.folder} ({format_bytes(free)} free): {error}; "
                f"{self.describe()}. Free some space and start again"
            ) from None

    def describe(self) -> str:
        """Where the run would go on, in words."""
        last = self.last()
        if last is None:
            return "there is no checkpoint yet"
        return f"the checkpoint of step {_step_of(last)} is kept and the next start goes on there"

    def _check_settings(self) -> None:
        path = self.folder / _SETTINGS
        ours = _lasting(self.settings)
        theirs = self._begun_with(path)
        if theirs is None:
            replace_file(path, json.dumps(ours, indent=1).encode() + b"\n")
            return
        differing = sorted(key for key in ours if ours[key] != theirs.get(key))
        if differing:
            key = differing[0]
            raise BadInput(
                f"{self.folder} holds a run with other settings ({key} {theirs.get(key)!r}, "
                f"now {ours[key]!r}); remove the folder or choose another"
            )

    def _begun_with(self, path: Path) -> dict[str, Any] | None:
        """The settings that a run began with; None for a new one."""
        if not path.exists():
            return None
        try:
            # Decoded, so that a setting that is younger than the run has its default.
            return _lasting(msgspec.json.decode(path.read_bytes(), type=type(self.settings)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
            if not self._found():  # a kill before anything was trained
                remove(path)
                return None
            raise BadInput(
                f"{path} is damaged ({error}), so whether {self.folder} holds this run is unknown; "
                "remove the folder to train from the beginning, or restore the file from a copy"
            ) from None


def _lasting(settings: msgspec.Struct) -> dict[str, Any]:
    """Settings that must not change between the starts of a run."""
    values = json.loads(msgspec.json.encode(settings))
    for passing in _PASSING:
        values.pop(passing, None)
    return dict(values)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all below it."""
    if path.is_file() or path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _is_full(error: Exception, folder: Path) -> bool:
    # safetensors and torch.save wrap ENOSPC in their own errors.
    full = "No space left" in str(error) or getattr(error, "errno", None) == 28
    return full or shutil.disk_usage(folder).free < 1 << 20


def _changed(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, if anything."""
    try:
        hashes = msgspec.json.decode((checkpoint / _HASHES).read_bytes(), type=dict[str, str])
    except (OSError, ValueError, RecursionError):
        return f"it has no readable {_HASHES}"
    name = first_changed(checkpoint, hashes)
    if name is None and not hashes:
        return "it lists no files"
    return name and f"{name} is missing or does not match its hash"
