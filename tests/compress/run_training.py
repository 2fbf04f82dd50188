"""A training in a process of its own, to be killed or to be one of several.

python -m tests.compress.run_training FOLDER [--die-at STEP] [--die-saving STEP] [--sharded]
    [--rounded]
"""

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgelm.compress.distillation.train import distill
from edgelm.compress.model import gather_full_model
from edgelm.quantize.precision import Int4, Int8
from tests.compress.training import SETTINGS, rows, teacher_and_student


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--die-saving", type=int)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--sharded", action="store_true")
    parser.add_argument("--rounded", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.sharded:
        _shard()
    if options.die_saving:
        _die_saving(options.die_saving)
    teacher, student = teacher_and_student()
    settings = msgspec.structs.replace(SETTINGS, micro_batch=options.micro_batch)
    losses = []
    precision = (Int4(16), Int8(32)) if options.rounded else None
    folder = options.folder / "checkpoints"
    for step in distill(student, teacher, rows(), settings, folder, precision=precision):
        losses.append((step.step, step.loss))
        if step.step == options.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
    student = gather_full_model(student)
    if os.environ.get("RANK", "0") == "0":
        result = {"losses": losses, "weights": dict(student.named_parameters())}
        torch.save(result, options.folder / "result.pt")


def _shard() -> None:
    """FSDP2, which accelerate sets up on GPUs alone and torch runs on a CPU as well."""
    from accelerate import Accelerator
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    prepare = Accelerator.__init__

    def sharding(self: Any, **over: Any) -> None:
        prepare(self, **over)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
            reshard_after_forward=True,
            cpu_ram_efficient_loading=True,
            state_dict_type="SHARDED_STATE_DICT",
        )
        for state in (PartialState._shared_state, self.state._shared_state):
            state["distributed_type"] = DistributedType.FSDP
        self.state.fsdp_plugin = plugin

    Accelerator.__init__ = sharding


def _die_saving(step: int) -> None:
    """Die when half of a step's checkpoint is on the disk."""
    from accelerate import Accelerator

    save = Accelerator.save_state

    def dying(self: Any, folder: str, **over: Any) -> Any:
        done = save(self, folder, **over)
        if f"{step:08d}" in folder:
            file = next(Path(folder).glob("*.bin"))
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    Accelerator.save_state = dying


if __name__ == "__main__":
    main()
