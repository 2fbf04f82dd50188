"""Checkpoints of a training run: written whole or not at all, one kept."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError

from edgelm.command import format_bytes
from edgelm.errors import BadInput, DoesNotFit

_PREFIX = "step-"
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
                _remove(path)
            self._check_settings()
        accelerator.wait_for_everyone()

    def once(self, name: str, write: Callable[[Path], None]) -> Path:
        """A file that the first process writes, whole, where no earlier start of the run did.

        Raises:
            DoesNotFit: the disk is full.
        """
        path = self.folder / name
        if self.accelerator.is_main_process and not path.is_file():
            staging = path.with_name(f"{name}.partial")
            with self._room(staging):
                write(staging)
                _sync(staging)
            staging.rename(path)
        # It may take longer than a barrier waits.
        while not path.is_file():
            time.sleep(_POLL_SECONDS)
        self.accelerator.wait_for_everyone()
        return path

    def resume(self) -> int:
        """Load the last checkpoint, if there is one; returns the steps that are done."""
        last = self.last()
        if last is None:
            return 0
        self.accelerator.load_state(str(last))
        return _step_of(last)

    def last(self) -> Path | None:
        """The newest complete checkpoint."""
        found = [path for path in self.folder.glob(f"{_PREFIX}*") if path.suffix != ".partial"]
        return max(found, key=_step_of, default=None)

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
            _sync(staging)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            staging.rename(target)
            for path in self.folder.glob(f"{_PREFIX}*"):
                if path != target:
                    shutil.rmtree(path, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _room(self, staging: Path) -> Iterator[None]:
        """Nothing of `staging` stays where the disk is too full for it."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _is_full(error, self.folder):
                raise
            _remove(staging)
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
        if path.is_file():
            # Decoded, so that a setting that is younger than the run has its default.
            theirs = _lasting(msgspec.json.decode(path.read_bytes(), type=type(self.settings)))
            differing = sorted(key for key in ours if ours[key] != theirs.get(key))
            if differing:
                key = differing[0]
                raise BadInput(
                    f"{self.folder} holds a run with other settings ({key} {theirs.get(key)!r}, "
                    f"now {ours[key]!r}); remove the folder or choose another"
                )
        else:
            path.write_text(json.dumps(ours, indent=1) + "\n")


def _lasting(settings: msgspec.Struct) -> dict[str, Any]:
    """Settings that must not change between the starts of a run."""
    values = json.loads(msgspec.json.encode(settings))
    for passing in _PASSING:
        values.pop(passing, None)
    return dict(values)


def _remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _is_full(error: Exception, folder: Path) -> bool:
    # safetensors and torch.save wrap ENOSPC in their own errors.
    full = "No space left" in str(error) or getattr(error, "errno", None) == 28
    return full or shutil.disk_usage(folder).free < 1 << 20


def _sync(written: Path) -> None:
    for path in (written, *written.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
