"""Two processes save a checkpoint, the second one late: as TRL's trainer calls the callback.

python -m tests.compress.alignment.slow_rank FOLDER
"""

import sys
import time
from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments

from edgelm.compress.alignment.metrics_callback import MetricsCallback
from edgelm.compress.alignment.run import AlignRun
from edgelm.compress.run.distributed import is_main_process, process_index, wait_for_all
from edgelm.compress.run.stop_signals import StopSignals


def main() -> None:
    run = AlignRun(Path(sys.argv[1]), {})
    folder = run.checkpoints / "checkpoint-2"
    folder.mkdir(parents=True, exist_ok=True)
    wait_for_all()  # all have begun
    if not is_main_process():
        time.sleep(0.5)
    (folder / f"rng_state_{process_index()}.pth").write_bytes(b"state")
    state = TrainerState(global_step=2, is_world_process_zero=is_main_process())
    arguments = TrainingArguments(output_dir=str(run.checkpoints), use_cpu=True)
    MetricsCallback(run, None, StopSignals()).on_save(arguments, state, TrainerControl())
