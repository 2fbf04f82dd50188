"""The folder of an alignment: its settings, metrics and checkpoints, safe to interrupt.

    align.json                  settings, and hashes of data, model and tokenizer
    metrics.jsonl               one line per step
    checkpoints/checkpoint-200  weights, optimizer and random state, marked `complete` at the end

A checkpoint without its mark is incomplete; the previous one is removed only after the mark is on
disk. The mark holds the hashes of the checkpoint's files.
"""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from edgelm.compress.distillation.metrics import read_metrics
from edgelm.compress.run.distributed import is_main_process
from edgelm.compress.run.resumption import check_same_settings
from edgelm.errors import BadInput
from edgelm.files.hashing import first_changed, tree_sha256
from edgelm.files.staging import check_replaceable, replace_file, sync
from edgelm.reasons import reason

_RECORD = "align.json"
_COMPLETE = "complete"
_NAME = re.compile("checkpoint-[0-9]{1,18}")
_POLL_SECONDS = 0.1


class AlignRun:
    """The folder of a new or an interrupted run.

    Raises:
        BadInput: the folder holds something else, or a run with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder.absolute()
        self.metrics = self.folder / "metrics.jsonl"
        self.checkpoints = self.folder / "checkpoints"
        record = self.folder / _RECORD
        # The main process creates the folder; until its record is written, it looks like another's.
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
        """The last complete checkpoint."""
        complete = [path for path in self._all() if (path / _COMPLETE).exists()]
        return max(complete, key=_step, default=None)

    def _check_latest(self) -> None:
        """Raise BadInput if the last checkpoint is damaged."""
        if (latest := self.latest()) is None:
            return
        try:
            # Versions without hashes wrote an empty mark.
            mark = (latest / _COMPLETE).read_bytes() or b"{}"
            changed = first_changed(latest, msgspec.json.decode(mark, type=dict[str, str]))
        except (OSError, ValueError, RecursionError):
            changed = _COMPLETE
        if changed:
            raise BadInput(
                f"{latest} is damaged: {changed} is missing or does not match its hash; remove "
                f"{self.folder} to restart the training, or restore it from a copy"
            )

    def is_finished(self) -> bool:
        """Whether the last checkpoint is that of the last step."""
        if (path := self.latest()) is None:
            return False
        state = json.loads((path / "trainer_state.json").read_text())
        return bool(state["global_step"] >= state["max_steps"])

    def complete(self, step: int) -> None:
        """Mark a checkpoint as complete and remove the earlier ones."""
        folder = self.checkpoints / f"checkpoint-{step}"
        sync(folder)
        replace_file(folder / _COMPLETE, msgspec.json.encode(tree_sha256(folder)))
        self.tidy()

    def tidy(self) -> None:
        """Remove all checkpoints except the last complete one, and metrics after it."""
        latest = self.latest()
        for path in self._all():
            if path != latest:
                shutil.rmtree(path, ignore_errors=True)
        step = _step(latest) if latest else 0
        rows = [row for row in self.rows() if row["step"] <= step]
        replace_file(self.metrics, b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    def rows(self) -> list[dict[str, Any]]:
        """The metrics so far, without a partial line of an interrupted run."""
        return read_metrics(self.metrics)

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
        raise BadInput(f"{record} is damaged ({reason(error)}); remove {record.parent}") from None
