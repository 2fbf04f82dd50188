"""The folder of a run: a stage whose inputs did not change is not run again.

Each stage has a folder with `inputs.json`, written when it starts, and `done.json`, written when
it ends. The inputs hold everything that the result depends on, by value or by hash, including the
results of earlier stages; a change therefore reruns exactly the stages that depend on it. An
interrupted stage resumes in its folder if its inputs are still the same.

Nothing that took time is removed: the folder of a stage whose inputs changed is moved aside. The
results of a finished stage are hashed, so that a damaged file is never used.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgelm import __version__
from edgelm.checkpoint.student import StageRecord
from edgelm.cli import format_bytes
from edgelm.compress.distillation.checkpoints import remove
from edgelm.compress.run.distributed import gather_from_processes, is_main_process, world_size
from edgelm.compress.run.hash_cache import HASHES, HashCache
from edgelm.errors import BadInput
from edgelm.files.hashing import file_sha256, first_changed, tree_sha256
from edgelm.files.staging import exclusive_lock, remove_abandoned_files, replace_file

_POLL_SECONDS = 0.2
_LARGE = 1 << 26  # bytes of a file whose hash is remembered
ARITHMETIC = "arithmetic"  # a stage of a few milliseconds
_INPUTS, _DONE = "inputs.json", "done.json"
_DECISION = "decision.json"  # of the last start with several processes: whether the stage runs
_REPLACED = "replaced"
_CACHE = "cache"
_HARNESS = "lm-eval"
# No later stage reads them, hence they are not hashed.
_PRIVATE = (
    *("checkpoints", "finalists", "run", "tensorboard"),
    *("metrics.jsonl", "held_out.jsonl", "milestones"),
)


class Result(msgspec.Struct, frozen=True):
    """A finished stage.

    key: hash of its inputs. record: what it reports. files: SHA-256 of its results, by name.
    sha256: of the fields above; empty in results of versions without hashes.
    """

    key: str
    record: StageRecord
    files: dict[str, str] = {}
    sha256: str = ""

    def sealed(self) -> "Result":
        """The result with its own hash."""
        content = msgspec.json.encode([self.key, self.record, self.files])
        return msgspec.structs.replace(self, sha256=hashlib.sha256(content).hexdigest())


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a recipe to run.

    last: the stage after which the run ends.
    only: whether every stage before it has to be done already.
    """

    last: str
    only: bool = False


class PartDone(Exception):
    """The last stage of the requested part is done."""


@dataclass(frozen=True)
class Length:
    """How far a stage goes, where another length may continue what is in its folder.

    fields: those of `inputs["settings"]` that say only how far, and on which schedule.
    obstacle: given the stage's folder, why what is there cannot be continued; None if it can.
    stop: where the work ends, if the fields do not say so.
    """

    fields: tuple[str, ...]
    obstacle: Callable[[Path], str | None]
    stop: int | None = None


class RunFolder:
    """Runs stages in a folder, and skips those that are done.

    Args:
        folder: of the run.
        report: called with lines for a log.
        part: what to run of the recipe; None: all of it.
    """

    def __init__(
        self, folder: Path, report: Callable[[str], None], part: Part | None = None
    ) -> None:
        self.folder = folder
        self.report = report
        self.part = part
        self.records: list[StageRecord] = []
        self.hashes = HashCache(folder)
        # Which start of the run this is, so that what an earlier one left decides nothing.
        self._start = gather_from_processes(secrets.token_hex(8))[0]
        # Other processes may start after the main one has begun to write.
        if is_main_process() and not _is_run(folder):
            raise BadInput(
                f"{folder} exists and is not a run folder of edge-compress; choose another folder"
            )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the folder's lock, so that other runs wait."""
        if not is_main_process():
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        waits = f"waiting for another edge-compress that uses {self.folder}"
        with exclusive_lock(self.folder, lambda: self.report(waits)):
            yield

    def stage(
        self,
        name: str,
        inputs: dict[str, Any],
        work: Callable[[Path], StageRecord],
        *,
        collective: bool = False,
        length: Length | None = None,
    ) -> tuple[Path, str]:
        """Run a stage unless its result exists.

        With several processes the main one does the work, and the others wait for the result.

        Args:
            name: of the stage and of its folder.
            inputs: everything that the result depends on, as JSON types.
            work: called with the stage's folder, where it writes its results.
            collective: whether all processes do the work, as in training.
            length: what of the inputs says only how far the work goes; None: the work of other
                inputs is never continued.

        Returns:
            The stage's folder, and the hash of its inputs for those of later stages.

        Raises:
            PartDone: it was the last stage of the requested part.
            BadInput: it has no result, and only a later stage is to run.
        """
        found = self._stage(name, inputs, work, collective, length)
        if self.part is not None and self.part.last == name:
            raise PartDone
        return found

    def _stage(
        self,
        name: str,
        inputs: dict[str, Any],
        work: Callable[[Path], StageRecord],
        collective: bool,
        length: Length | None,
    ) -> tuple[Path, str]:
        inputs = {"stage": name, "edgelm": __version__, **inputs}
        stop = None if length is None else length.stop
        key = _hash_of(inputs if stop is None else {**inputs, "length": stop})
        begun = length and _key_without(inputs, length)
        content = {"key": key, "inputs": inputs, "begun": begun}
        folder = self.folder / name
        if not is_main_process():
            self._wait_for_main(folder, key, work if collective else None)
            return folder, key
        done = _read_result(folder / _DONE)
        if done is None or done.key != key:
            self._check_may_run(name, f"{folder} does not hold its result for this recipe")
        if done is not None and done.key == key:
            damaged = _damaged(folder, done, self._result_hash)
            if damaged is None:
                self._announce(folder, key, runs=False)
                self.report(f"{name}: unchanged, skipped")
                self.records.append(done.record)
                return folder, key
            self._check_may_run(name, f"{folder / damaged} is missing or damaged")
            self.report(f"{name}: {folder / damaged} is missing or damaged, rerunning")
            self._set_aside(folder)
        elif folder.exists() and _key_of(folder / _INPUTS) != key:
            same = length is not None and _key_of(folder / _INPUTS, "begun") == begun
            problem = length.obstacle(folder) if length is not None and same else "inputs changed"
            if problem is None:
                self.report(f"{name}: continuing with another length")
                remove(folder / _DONE)
                _write_inputs(folder, content)
            else:
                self.report(f"{name}: {problem}, rerunning")
                self._set_aside(folder)
        if not folder.exists():
            folder.mkdir(parents=True)
            _write_inputs(folder, content)
        else:
            # Otherwise a partial file would count as one of the results.
            remove_abandoned_files(folder)
            self.report(f"{name}: resuming")
        self._announce(folder, key, runs=True)
        started = time.monotonic()
        record = work(folder)
        seconds = record.seconds + time.monotonic() - started
        record = msgspec.structs.replace(record, seconds=round(seconds, 1))
        result = Result(key, record, _results(folder, self._result_hash)).sealed()
        replace_file(folder / _DONE, msgspec.json.encode(result))
        self.records.append(record)
        return folder, key

    def _result_hash(self, path: Path) -> str:
        """SHA-256 of a result; of a large one, which may have hundreds of GB, only once."""
        large = path.stat().st_size >= _LARGE
        return self.hashes.sha256(path) if large else file_sha256(path)

    def _announce(self, folder: Path, key: str, *, runs: bool) -> None:
        """Tell the other processes whether this start runs a stage, before it does.

        They would take a result for good that the main process finds damaged.
        """
        if world_size() > 1:
            replace_file(folder / _DECISION, json.dumps([self._start, key, runs]).encode())

    def _check_may_run(self, name: str, problem: str) -> None:
        """Raise BadInput if only a later stage is to run; arithmetic takes milliseconds."""
        part = self.part
        if part is None or not part.only or name == part.last:
            return
        if name == ARITHMETIC:  # milliseconds
            if not (self.folder / name).exists():
                return
            raise BadInput(
                f"--only {part.last}: {self.folder} was made on another kind of device, with the "
                "arithmetic that was faster there; set `arithmetic` in the recipe to what "
                f"{self.folder / name / _DONE} says that it chose"
            )
        raise BadInput(
            f"--only {part.last} needs the stage {name}, but {problem}; run the same command with "
            f"--until {name} first, or with --until {part.last}"
        )

    def _set_aside(self, folder: Path) -> None:
        """Move a stage's folder aside; it may hold days of training."""
        if folder.is_dir():
            remove_abandoned_files(folder)
        if not folder.is_dir() or {path.name for path in folder.iterdir()} <= {_INPUTS, _DECISION}:
            remove(folder)
            return
        replaced, number = self.folder / _REPLACED, 1
        replaced.mkdir(exist_ok=True)
        while (aside := replaced / f"{folder.name}-{number}").exists():
            number += 1
        folder.rename(aside)
        size = sum(path.lstat().st_size for path in aside.rglob("*") if path.is_file())
        self.report(
            f"{folder.name}: the previous result was moved to {aside} ({format_bytes(size)}); "
            "remove it when you no longer need it"
        )

    def _wait_for_main(
        self, folder: Path, key: str, work: Callable[[Path], StageRecord] | None
    ) -> None:
        """On the other processes: take part in collective work, wait for the result."""
        decided = [self._start, key]
        while (found := _read_decision(folder / _DECISION))[:2] != decided:
            time.sleep(_POLL_SECONDS)
        if work is not None and found[2]:
            work(folder)
        while (done := _read_result(folder / _DONE)) is None or done.key != key:
            time.sleep(_POLL_SECONDS)
        self.records.append(done.record)


def file_hashes(
    names: tuple[str, ...], file_hash: Callable[[Path], str] = file_sha256
) -> dict[str, str]:
    """Hashes of the files and folders among names; other names map to themselves."""
    hashes = {}
    for name in names:
        if not name:  # as a path it would be the current directory
            continue
        path = Path(name)
        if path.is_dir():
            for file in sorted(path.iterdir()):
                if file.is_file():
                    hashes[str(file)] = file_hash(file)
        else:
            hashes[name] = file_hash(path) if path.is_file() else name
    return hashes


def task_hashes(tasks: tuple[str, ...]) -> dict[str, str]:
    """Hashes of the files that tasks such as `perplexity:valid.jsonl` read.

    Of lm-eval tasks only `FOLDER/TASK` reads any: a name alone is not a path, even if the current
    directory holds a file of that name.
    """
    found: dict[str, str] = {}
    for task in tasks:
        kind, _, name = task.partition(":")
        if not name:  # a task with rows of its own
            continue
        if kind != _HARNESS:
            found |= file_hashes((name,))
        else:
            found |= {name: name} | file_hashes((name.rpartition("/")[0],))
    return found


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run folder, or may become one."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    # An interrupted run may leave a stage's folder without inputs, or with partial ones.
    return any(folder.glob(f"*/*{_INPUTS}*")) or not any(
        HASHES not in path.name if path.is_file() else any(path.iterdir())
        for path in folder.iterdir()
    )


def _hash_of(inputs: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _write_inputs(folder: Path, content: dict[str, Any]) -> None:
    replace_file(folder / _INPUTS, json.dumps(content, indent=1).encode() + b"\n")


def _key_without(inputs: dict[str, Any], length: Length) -> str:
    """The key that stages have in common which differ in their lengths only."""
    settings = inputs["settings"].items()
    others = {name: value for name, value in settings if name not in length.fields}
    return _hash_of({**inputs, "settings": others})


def _read_decision(path: Path) -> list[Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) and len(found) == 3 else []


def _key_of(path: Path, name: str = "key") -> str | None:
    try:
        return str(json.loads(path.read_text())[name])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _read_result(path: Path) -> Result | None:
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, ValueError, RecursionError):
        return None
    return result if result.sha256 in ("", result.sealed().sha256) else None


def _results(folder: Path, file_hash: Callable[[Path], str]) -> dict[str, str]:
    """Hashes of the results of a finished stage, without its checkpoints and logs."""
    return {
        name: sha256
        for entry in sorted(folder.iterdir())
        if entry.name not in (_INPUTS, _DONE, _DECISION, *_PRIVATE)
        for name, sha256 in (
            {f"{entry.name}/{name}": value for name, value in tree_sha256(entry, file_hash).items()}
            if entry.is_dir()
            else {entry.name: file_hash(entry)}
        ).items()
    }


def _damaged(folder: Path, done: Result, file_hash: Callable[[Path], str]) -> str | None:
    """The first result of a finished stage that is missing or changed; None if all are intact.

    The teacher cache may take hundreds of GB, and may be removed after distillation.
    """
    removed = (folder / _CACHE).parent.is_dir() and not (folder / _CACHE).exists()
    files = {
        name: sha256
        for name, sha256 in done.files.items()
        if not (removed and name.startswith(f"{_CACHE}/"))
    }
    return first_changed(folder, files, file_hash)
