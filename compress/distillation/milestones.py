"""A student while it is trained: KL on held-out rows at an interval, and saved milestones."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from edgelm.compress.distillation.metrics import read_metrics
from edgelm.compress.evaluation.held_out import HeldOut
from edgelm.compress.model import Model, gather_full_model
from edgelm.compress.run.distributed import is_main_process
from edgelm.files.replacing import replace_file

FILE = "held_out.jsonl"
FOLDER = "milestones"


class Milestones:
    """Called after every step, on every process (`after_step` of `distill`).

    Args:
        folder: of the stage, for `held_out.jsonl` and `milestones/TOKENS`.
        student: in training.
        step_tokens: tokens of one step.
        last_step: of the run, after which held-out rows are always measured.
        steps: of the whole schedule; they may have fewer tokens than were requested.
        held_out: to measure on; None measures nothing.
        every: tokens between measurements.
        milestones: numbers of tokens after which the student is saved, at the end of the step
            that reaches them, or of the schedule.
        save: writes a model to a folder.
    """

    def __init__(
        self,
        folder: Path,
        student: Model,
        step_tokens: int,
        last_step: int,
        steps: int,
        *,
        held_out: HeldOut | None,
        every: int,
        milestones: Sequence[int],
        save: Callable[[Model, Path], None],
    ) -> None:
        self.folder, self.student = folder, student
        self.step_tokens, self.last_step, self.steps = step_tokens, last_step, steps
        self.held_out, self.every = held_out, every
        self.milestones, self.save = milestones, save

    def __call__(self, step: int) -> None:
        """Measure and save what is due after this number of steps."""
        tokens, before = step * self.step_tokens, (step - 1) * self.step_tokens
        measure = self.held_out is not None and (
            tokens // self.every > before // self.every or step == self.last_step
        )
        end = tokens if step < self.steps else max(self.milestones, default=0)
        reached = [one for one in self.milestones if before < one <= end]
        if not measure and not reached:
            return
        model = gather_full_model(self.student)
        for milestone in reached:
            self.save(model, self.folder / FOLDER / str(milestone))
        if measure:
            self._measure(step, tokens, model)

    def _measure(self, step: int, tokens: int, model: Model) -> None:
        assert self.held_out is not None
        training = model.training
        model.eval()
        divergence = self.held_out.divergence(model)
        model.train(training)
        if not is_main_process():
            return
        path = self.folder / FILE
        # After an interruption, steps are repeated.
        rows = [row for row in read_metrics(path) if row["step"] < step]
        rows.append({"step": step, "tokens": tokens, "divergence": divergence})
        replace_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
