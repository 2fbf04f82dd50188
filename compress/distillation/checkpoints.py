"""Checkpoints of a training run: written completely or not at all; only the last one is kept."""

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
from edgelm.compress.distillation.settings import LENGTH, Distillation
from edgelm.compress.run.distributed import gather_from_processes
from edgelm.errors import BadInput, DoesNotFit
from edgelm.files.hashing import first_changed, tree_sha256
from edgelm.files.replacing import replace_file, sync, sync_folder
from edgelm.reasons import reason

_PREFIX = "step-"
_NAME = re.compile(rf"{_PREFIX}[0-9]{{8,18}}")
_HASHES = "sha256.json"
# Settings that may differ when a run is resumed: they change neither data nor result.
MAY_CHANGE = ("stop_after", "checkpoint_steps", "micro_batch", "gradient_checkpointing", "compile")
_SETTINGS = "settings.json"
_SHARDS = "pytorch_model_fsdp*"  # the weights, as accelerate names their folder or file
_POLL_SECONDS = 0.2


class FullForAll(DoesNotFit):
    """The disk is full for one process, and all of them raise this: the main one prints it."""

    of_all = True


class Checkpoints:
    """The folder of a run: `step-00000050/` and the settings it belongs to.

    A checkpoint is written under another name and renamed when all of it is on the disk; then the
    previous one is removed.
    """

    def __init__(self, folder: Path, accelerator: Any, settings: msgspec.Struct) -> None:
        """Open or make the folder.

        Raises:
            BadInput: it holds a run with other settings.
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

    def write_once(
        self, name: str, write: Callable[[Path], None], is_intact: Callable[[Path], bool]
    ) -> Path:
        """A file that the main process writes, unless an earlier start of the run did.

        Args:
            name: of the file.
            write: given the path to write to.
            is_intact: whether a file is as it was written; a damaged one is written again.

        Raises:
            DoesNotFit: the disk is full.
        """
        path = self.folder / name
        if self.accelerator.is_main_process and path.exists() and not is_intact(path):
            remove(path)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process and not path.is_file():
            staging = path.with_name(f"{name}.partial")
            try:
                with self._disk_full_as_error():
                    write(staging)
                    sync(staging)
            except DoesNotFit:
                remove(staging)
                raise
            staging.rename(path)
        # Writing may take longer than the timeout of a barrier.
        while not path.is_file():
            time.sleep(_POLL_SECONDS)
        self.accelerator.wait_for_everyone()
        return path

    def resume(self) -> int:
        """Load the last checkpoint, if there is one; returns the number of steps done.

        Raises:
            BadInput: all checkpoints are damaged.
        """
        found = _found(self.folder)
        for path in found:
            if self._is_intact(path):
                self._check_sharding(path)
                self.accelerator.load_state(str(path))
                return _step_of(path)
        if found:
            raise BadInput(
                f"the checkpoint {found[0]} is damaged ({_changed(found[0])}); remove "
                f"{self.folder} to restart the training, or restore it from a copy"
            )
        return 0

    def _is_intact(self, path: Path) -> bool:
        """Whether the main process finds no change; all hashing all of it would take many hours."""
        main = self.accelerator.is_main_process
        return bool(gather_from_processes(_changed(path) is None if main else None)[0])

    def _check_sharding(self, path: Path) -> None:
        """Raise BadInput if FSDP2 wrote the checkpoint and does not run now, or the reverse."""
        was, now = any(path.glob(_SHARDS)), bool(getattr(self.accelerator.state, "fsdp_plugin", 0))
        if was and not now:
            raise BadInput(
                f"the checkpoint {path} is sharded by FSDP2; start with accelerate launch "
                "--use_fsdp --fsdp_version 2, with any number of processes above one"
            )
        if now and not was:
            raise BadInput(
                f"the checkpoint {path} was not written by FSDP2; start without --use_fsdp, with "
                "any number of processes"
            )

    def last(self) -> Path | None:
        """The newest complete checkpoint."""
        return next((path for path in _found(self.folder) if (path / _HASHES).is_file()), None)

    def save(self, step: int) -> None:
        """Write a checkpoint.

        Raises:
            DoesNotFit: the disk is full; the previous checkpoint remains.
        """
        target = self.folder / f"{_PREFIX}{step:08d}"
        staging = target.with_name(f"{target.name}.partial")
        with self._full_for_one_is_full_for_all(staging), self._disk_full_as_error():
            # Not as safetensors, which warns about a tied head at every checkpoint.
            self.accelerator.save_state(str(staging), safe_serialization=False)
            self._sync(staging)
        with self._full_for_one_is_full_for_all(staging), self._disk_full_as_error():
            if self.accelerator.is_main_process:
                self._replace(target, staging)

    def _sync(self, staging: Path) -> None:
        """Wait until what this process wrote is on the disk: not for each file on each process."""
        if self.accelerator.is_main_process:
            sync(staging)
            return
        own = re.compile(rf".*_{self.accelerator.process_index}[_.]")
        for path in staging.rglob("*"):
            if path.is_file() and own.match(path.name):  # e.g. __1_0.distcp, random_states_1.pkl
                sync(path)

    def _replace(self, target: Path, staging: Path) -> None:
        """Make a complete checkpoint the one that is found."""
        replace_file(staging / _HASHES, msgspec.json.encode(tree_sha256(staging)))
        remove(target)  # a damaged one, or the leftover of an interrupted run
        staging.rename(target)
        sync_folder(self.folder)
        for path in _found(self.folder):
            if path != target:
                remove(path)

    @contextmanager
    def _full_for_one_is_full_for_all(self, staging: Path) -> Iterator[None]:
        """Raise the same DoesNotFit on every process if one does, when all have ended the work.

        Otherwise the others would wait for the one that failed until the network's timeout, and
        what they still write would be removed under them.
        """
        problem: DoesNotFit | None = None
        try:
            yield
        except DoesNotFit as error:
            problem = error
        problems = [one for one in gather_from_processes(problem and str(problem)) if one]
        if not problems:
            return
        if self.accelerator.is_main_process:
            remove(staging)
        raise FullForAll(problems[0])

    @contextmanager
    def _disk_full_as_error(self) -> Iterator[None]:
        """Raise DoesNotFit if the disk is full."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _is_full(error, self.folder):
                raise
            free = shutil.disk_usage(self.folder).free
            raise DoesNotFit(
                f"no room for a checkpoint in {self.folder} ({format_bytes(free)} free): "
                f"{reason(error)}; {self.describe()}. Free some space and start again"
            ) from None

    def describe(self) -> str:
        """The state of the run on disk, for error messages."""
        last = self.last()
        if last is None:
            return "there is no checkpoint yet"
        return f"the next start resumes from the checkpoint of step {_step_of(last)}"

    def _check_settings(self) -> None:
        if problem := obstacle(self.folder, self.settings):
            raise BadInput(
                f"{self.folder} holds a run with other settings ({problem}); remove the folder or "
                "choose another one"
            )
        path, ours = self.folder / _SETTINGS, fixed_settings(self.settings)
        before = _settings_of(self.folder, type(self.settings))
        if before is None or fixed_settings(before) != ours:
            replace_file(path, json.dumps(ours, indent=1).encode() + b"\n")


def obstacle(folder: Path, settings: msgspec.Struct) -> str | None:
    """Why the training in a folder cannot continue with these settings; None if it can.

    It can if the steps that are done are also the first ones of a training with these settings.

    Raises:
        BadInput: the folder's settings are damaged.
    """
    before = _settings_of(folder, type(settings))
    if before is None:
        return None
    ours, theirs = fixed_settings(settings), fixed_settings(before)
    differing = sorted(key for key in ours if ours[key] != theirs.get(key))
    others = [key for key in differing if key not in LENGTH]
    if isinstance(settings, Distillation) and isinstance(before, Distillation) and not others:
        return settings.why_not_after(before, steps_done(folder))
    if not differing:
        return None
    key = others[0] if others else differing[0]
    return f"{key} {theirs.get(key)!r}, now {ours[key]!r}"


def steps_done(folder: Path) -> int:
    """The step of the newest checkpoint in a folder; 0 if there is none."""
    return max(map(_step_of, _found(folder)), default=0) if folder.is_dir() else 0


def _settings_of(folder: Path, kind: type[msgspec.Struct]) -> msgspec.Struct | None:
    """The settings of the training in a folder; None if nothing was trained there."""
    path = folder / _SETTINGS
    if not path.exists():
        return None
    try:
        # Decoded, so that a setting added after the run was started has its default.
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        if not _found(folder):  # interrupted before anything was trained
            return None
        raise BadInput(
            f"{path} is damaged ({reason(error)}), so it is unknown which run {folder} "
            "holds; remove the folder to restart, or restore the file from a copy"
        ) from None


def _found(folder: Path) -> list[Path]:
    """All folders of checkpoints, newest first."""
    named = (path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    return sorted((path for path in named if path.is_dir()), key=_step_of, reverse=True)


def fixed_settings(settings: msgspec.Struct) -> dict[str, Any]:
    """Settings that must be the same when a run is resumed, as JSON types."""
    values = json.loads(msgspec.json.encode(settings))
    if isinstance(settings, Distillation):  # the default may be written out, as it once was
        values["final_learning_rate"] = settings.lowest_learning_rate
    for name in MAY_CHANGE:
        values.pop(name, None)
    return dict(values)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents."""
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
    """What is wrong with a checkpoint; None if it is intact."""
    try:
        hashes = msgspec.json.decode((checkpoint / _HASHES).read_bytes(), type=dict[str, str])
    except (OSError, ValueError, RecursionError):
        return f"it has no readable {_HASHES}"
    name = first_changed(checkpoint, hashes)
    if name is None and not hashes:
        return "it lists no files"
    return name and f"{name} is missing or does not match its hash"
