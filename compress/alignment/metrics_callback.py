"""A callback for TRL: metrics, complete checkpoints, an end by a signal or a diverged loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from edgelm.compress.alignment.run import AlignRun
from edgelm.compress.run.distributed import sum_over_processes, wait_for_all
from edgelm.compress.run.stop_signals import StopSignals
from edgelm.errors import Diverged


@dataclass(frozen=True, slots=True)
class AlignStep:
    """One optimizer step: its number, the total, its loss and TRL's other metrics."""

    step: int
    steps: int
    loss: float
    metrics: dict[str, float]


class MetricsCallback(TrainerCallback):
    """Writes metrics, marks complete checkpoints and stops a diverged run."""

    def __init__(
        self, run: AlignRun, progress: Callable[[AlignStep], None] | None, stop: StopSignals
    ) -> None:
        self.run = run
        self.progress = progress
        self.stop = stop
        self.stopping = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # All processes decide the same, since they write a checkpoint together.
        self.stopping = bool(sum_over_processes([float(self.stop.received is not None)])[0])
        if self.stopping:
            control.should_save = control.should_training_stop = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        metrics = {name: float(value) for name, value in logs.items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise Diverged(
                    f"{name} is {metrics[name]} at step {state.global_step} of {state.max_steps}: "
                    f"the training diverged; lower learning_rate ({args.learning_rate:g}), raise "
                    "warmup, or check the examples"
                )
        if state.is_world_process_zero:
            self.run.add({"step": state.global_step, **metrics})
            if self.progress:
                loss = metrics["loss"]
                self.progress(AlignStep(state.global_step, state.max_steps, loss, metrics))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait_for_all()  # each process writes its random state, and its shards
        if state.is_world_process_zero:
            self.run.complete(state.global_step)
