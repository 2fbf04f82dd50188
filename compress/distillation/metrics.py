"""Metrics of a training: one line of JSON per step, and TensorBoard if it is installed."""

import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from edgelm.compress.run.distributed import is_main_process
from edgelm.files.replacing import replace_file

if TYPE_CHECKING:
    from edgelm.compress.distillation.train import Step

FILE = "metrics.jsonl"


class Metrics:
    """The log of a run; lines after the step that it resumes from are overwritten.

    Lines after its last step are removed: another one with the same checkpoints may have gone
    further.
    """

    def __init__(self, folder: Path, last_step: int) -> None:
        self.folder, self.last_step = folder, last_step
        self._file: Any = None
        self._board: Any = None

    def __enter__(self) -> "Metrics":
        path = self.folder / FILE
        if is_main_process() and any(one["step"] > self.last_step for one in read_metrics(path)):
            self._keep_before(self.last_step + 1)
        return self

    def write(self, step: "Step") -> None:
        """Log a step, on the main process."""
        if not is_main_process():
            return
        if self._file is None:
            self._open(step.step)
        self._file.write(msgspec.json.encode(step).decode() + "\n")
        self._file.flush()
        if self._board is not None:
            for name in ("loss", "divergence", "cross_entropy", "hidden", "learning_rate"):
                self._board.add_scalar(name, getattr(step, name), step.step)

    def _open(self, first: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._keep_before(first)
        self._file = (self.folder / FILE).open("a")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=first)

    def _keep_before(self, step: int) -> None:
        path = self.folder / FILE
        before = [row for row in read_metrics(path) if row["step"] < step]
        replace_file(path, "".join(json.dumps(row) + "\n" for row in before).encode())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one in (self._file, self._board):
            if one is not None:
                one.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a log; an interrupted run may leave a partial one."""
    rows = []
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
