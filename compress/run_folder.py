"""The folder of a run: a stage whose inputs did not change is not run again.

Each stage has a folder with `inputs.json`, written when it starts, and `done.json`, written when
it ends. The inputs hold everything that the result depends on, by value or by hash, the results
of earlier stages included; so a change runs exactly what comes after it. A stage that was killed
finds its folder as it left it, if its inputs are still the same, and goes on from there.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgelm import __version__
from edgelm.compress.ranks import is_first
from edgelm.errors import BadInput
from edgelm.hashing import file_sha256
from edgelm.staging import replace_file
from edgelm.student import StageRecord

_POLL_SECONDS = 0.2
_INPUTS, _DONE = "inputs.json", "done.json"


class Result(msgspec.Struct, frozen=True):
    """A finished stage: what it was given (as a hash), what it reports."""

    key: str
    record: StageRecord


class RunFolder:
    """Runs stages in a folder, or finds that they are done."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self.folder = folder
        self.report = report
        self.records: list[StageRecord] = []
        # The other processes come when the first one has already begun to write.
        if is_first() and not _is_run(folder):
            raise BadInput(f"{folder} exists and is no run of edge-compress; choose another folder")

    def stage(
        self,
        name: str,
        inputs: dict[str, Any],
        work: Callable[[Path], StageRecord],
        *,
        together: bool = False,
    ) -> tuple[Path, str]:
        """Do a stage's work unless it is done.

        Of several processes the first one does it, and the others wait for the result.

        Args:
            name: of the stage and of its folder.
            inputs: all that the result depends on, in JSON's types.
            work: given the stage's folder; leaves its results there.
            together: all processes do the work, as training does.

        Returns:
            The stage's folder, and a hash of its inputs for those of later stages.
        """
        inputs = {"stage": name, "edgelm": __version__, **inputs}
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.folder / name
        if not is_first():
            self._follow(folder, key, work if together else None)
            return folder, key
        done = _read_result(folder / _DONE)
        if done is not None and done.key == key:
            self.report(f"{name}: unchanged, skipped")
            self.records.append(done.record)
            return folder, key
        if _key_of(folder / _INPUTS) != key:
            if folder.exists():
                self.report(f"{name}: inputs changed, starting anew")
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            content = {"key": key, "inputs": inputs}
            replace_file(folder / _INPUTS, json.dumps(content, indent=1).encode() + b"\n")
        else:
            self.report(f"{name}: going on")
        begun = time.monotonic()
        record = work(folder)
        seconds = record.seconds + time.monotonic() - begun
        record = msgspec.structs.replace(record, seconds=round(seconds, 1))
        replace_file(folder / _DONE, msgspec.json.encode(Result(key, record)))
        self.records.append(record)
        return folder, key

    def _follow(self, folder: Path, key: str, work: Callable[[Path], StageRecord] | None) -> None:
        """Do as another process than the first: join the work, wait for its result."""
        while _key_of(folder / _INPUTS) != key:
            time.sleep(_POLL_SECONDS)
        done = _read_result(folder / _DONE)
        if work is not None and (done is None or done.key != key):
            work(folder)
        while (done := _read_result(folder / _DONE)) is None or done.key != key:
            time.sleep(_POLL_SECONDS)
        self.records.append(done.record)


def file_hashes(names: tuple[str, ...]) -> dict[str, str]:
    """Hashes of the files and folders among some names; other names stand for themselves."""
    hashes = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            for file in sorted(path.iterdir()):
                if file.is_file():
                    hashes[str(file)] = file_sha256(file)
        else:
            hashes[name] = file_sha256(path) if path.is_file() else name
    return hashes


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's, or may become one."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    # A kill may leave a stage's folder without its inputs, or with a part of them.
    return any(folder.glob(f"*/*{_INPUTS}*")) or not any(
        path.is_file() or any(path.iterdir()) for path in folder.iterdir()
    )


def _key_of(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_result(path: Path) -> Result | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError):
        return None
