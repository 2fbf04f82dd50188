"""The folder of an alignment: its settings, metrics and checkpoints, and how it survives a kill.

    align.json                  settings, and hashes of data, model and tokenizer
    metrics.jsonl               one line an update
    checkpoints/checkpoint-200  weights, optimizer and random state, marked `complete` at the end

A checkpoint without its mark was being written when the process died; the one before it is only
removed after the mark is on disk. The mark holds the hashes of the checkpoint's files.
"""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from edgelm.compress.run.distributed import is_main_process
from edgelm.compress.run.resumption import check_same_settings
from edgelm.errors import BadInput
from edgelm.files.hashing import first_changed, tree_sha256
from edgelm.files.staging import check_replaceable, replace_file, sync

_RECORD = "align.json"
_COMPLETE = "complete"
_NAME = re.compile("checkpoint-[0-9]{1,18}")
_POLL_SECONDS = 0.1


class AlignRun:
    """A run's folder, new or to be gone on with.

    Raises:
        BadInput: the folder holds something else, or a run with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder.absolute()
        self.metrics = self.folder / "metrics.jsonl"
        self.checkpoints = self.folder / "checkpoints"
        record = self.folder / _RECORD
        # The first of several processes makes the folder; half made, it looks like a foreign one.
        while not (is_main_process() or record.exists()):
            time.sleep(_POLL_SECONDS)
        check_replaceable(self.folder, marker=_RECORD)
        if not is_main_process():
            return
        if record.exists() and self.latest():
            check_same_settings(self.folder, _read(record), settings)
            self._check_latest()
        else:
            replace_file(record, json.dumps(settings, indent=2).encode() + b"\n")

    def latest(self) -> Path | None:
        """The last checkpoint that is whole."""
        whole = [path for path in self._all() if (path / _COMPLETE).exists()]
        return max(whole, key=_step, default=None)

    def _check_latest(self) -> None:
        """Raise BadInput if the last checkpoint is not as it was written."""
        if (latest := self.latest()) is None:
            return
        try:
            # An empty mark is of a version that hashed nothing.
            mark = (latest / _COMPLETE).read_bytes() or b"{}"
            changed = first_changed(latest, msgspec.json.decode(mark, type=dict[str, str]))
        except (OSError, ValueError, RecursionError):
            changed = _COMPLETE
        if changed:
            raise BadInput(
                f"{latest} is damaged: {changed} is missing or does not match its hash; remove "
                f"{self.folder} to train from the beginning, or restore it from a copy"
            )

    def is_finished(self) -> bool:
        """Whether the last checkpoint is that of the last update."""
        if (path := self.latest()) is None:
            return False
        state = json.loads((path / "trainer_state.json").read_text())
        return bool(state["global_step"] >= state["max_steps"])

    def complete(self, step: int) -> None:
        """Mark a checkpoint as whole and remove the earlier ones."""
        folder = self.checkpoints / f"checkpoint-{step}"
        sync(folder)
        replace_file(folder / _COMPLETE, msgspec.json.encode(tree_sha256(folder)))
        self.tidy()

    def tidy(self) -> None:
        """Remove all checkpoints but the last whole one, and metrics from after it."""
        latest = self.latest()
        for path in self._all():
            if path != latest:
                shutil.rmtree(path, ignore_errors=True)
        step = _step(latest) if latest else 0
        rows = [row for row in self.rows() if row["step"] <= step]
        replace_file(self.metrics, b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    def rows(self) -> list[dict[str, Any]]:
        """The metrics so far; a line that a kill tore is left out."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text(errors="replace").split("\n"):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
        return rows

    def add(self, row: dict[str, Any]) -> None:
        """Append one line of metrics."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _all(self) -> list[Path]:
        if not self.checkpoints.is_dir():
            return []
        return [path for path in self.checkpoints.iterdir() if _NAME.fullmatch(path.name)]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _read(record: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(record.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"{record} is damaged ({error}); remove {record.parent}") from None
