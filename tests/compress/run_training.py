"""Trainings in a process of their own, to be killed or to be one of several.

python -m tests.compress.run_training JOB...

A job is a folder and what is done in it: `FOLDER,micro_batch=2,sharded,quantized,stop_at=5`. Jobs
run one after the other, in one process group. `stop_at` abandons a job after a step without closing
it, `die_at` kills the process after a step, `sigterm_at` sends it SIGTERM (the first process, of
several), `die_saving` kills it within the checkpoint of a step. `bf16` multiplies in bf16,
`mixture` trains a mixture of experts. `watched` measures held-out rows every three steps and saves
the student after four. With `full_at` the second process finds the disk full at the checkpoint of a
step; what every process raises is in FOLDER/error-RANK. `sharded` divides student and teacher,
except with `whole_teacher`. With `refused`, a BadInput is expected.
"""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgelm.compress.distillation.milestones import Milestones
from edgelm.compress.distillation.train import Step, distill
from edgelm.compress.evaluation.held_out import HeldOut
from edgelm.compress.model import gather_full_model
from edgelm.compress.sharding import shard_layers
from edgelm.errors import BadInput, DoesNotFit
from edgelm.quantize.precision import Int4, Int8
from tests.checkpoints.models import tiny_model
from tests.compress.training import SETTINGS, rows, teacher_and_student

_abandoned: list[Iterator[Step]] = []  # a generator that is collected would end in good order


@dataclass(frozen=True)
class Job:
    """A training and where it ends."""

    folder: Path
    micro_batch: int = 4
    batch_size: int = 4
    sharded: bool = False
    quantized: bool = False
    stop_at: int | None = None
    die_at: int | None = None
    sigterm_at: int | None = None
    die_saving: int | None = None
    full_at: int | None = None
    watched: bool = False
    bf16: bool = False
    mixture: bool = False
    whole_teacher: bool = False
    refused: bool = False

    @classmethod
    def parse(cls, text: str) -> "Job":
        folder, *words = text.split(",")
        pairs = [word.partition("=") for word in words]
        options: dict[str, Any] = {name: int(value) if value else True for name, _, value in pairs}
        return cls(Path(folder), **options)


def main() -> None:
    torch.set_num_threads(1)
    for text in sys.argv[1:]:
        job = Job.parse(text)
        try:
            run_job(job)
        except (DoesNotFit, BadInput) as error:
            if isinstance(error, BadInput) and not job.refused:
                raise
            (job.folder / f"error-{os.environ.get('RANK', '0')}").write_text(str(error))


def run_job(job: Job) -> None:
    """Run a job to its end; losses and weights are in `result.pt` of its folder."""
    if job.sharded and job.mixture:
        shard("Qwen3MoeDecoderLayer")
    elif job.sharded:
        shard()
    if job.die_saving:
        _die_saving(job.die_saving)
    if job.full_at:
        _fill_disk_of_one(job.full_at)
    teacher, student = mixtures() if job.mixture else teacher_and_student()
    if job.sharded and not job.whole_teacher:
        teacher = shard_layers(teacher, torch.device("cpu"))
    settings = msgspec.structs.replace(
        SETTINGS, micro_batch=job.micro_batch, batch_size=job.batch_size, bf16=job.bf16
    )
    types: set[str] = set()
    student.model.layers[0].self_attn.q_proj.register_forward_hook(
        lambda module, *_: types.add(str(module.weight.dtype))
    )
    precision = (Int4(16), Int8(32)) if job.quantized else None
    folder = job.folder / "checkpoints"
    losses = []
    watch = _watch(job.folder, student, teacher) if job.watched else lambda _: None
    steps = distill(
        student, teacher, rows(), settings, folder, precision=precision, after_step=watch
    )
    for step in steps:
        losses.append((step.step, step.loss))
        if step.step == job.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step.step == job.sigterm_at and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        if step.step == job.stop_at:
            _abandoned.append(steps)
            return
    student = gather_full_model(student)
    if os.environ.get("RANK", "0") == "0":
        result = {
            "losses": losses,
            "weights": dict(student.named_parameters()),
            "types": types,
        }
        torch.save(result, job.folder / "result.pt")


def mixtures() -> tuple[Any, Any]:
    """A tiny mixture of experts and its copy."""
    teacher, student = tiny_model("qwen3-moe"), tiny_model("qwen3-moe")
    with torch.no_grad():
        for model in (teacher, student):
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter *= 0.4
    return teacher, student


def _watch(folder: Path, student: Any, teacher: Any) -> Milestones:
    return Milestones(
        folder,
        student,
        SETTINGS.step_tokens,
        SETTINGS.last_step,
        SETTINGS.steps,
        held_out=HeldOut(teacher, rows(10, seed=1).batch(range(10)), shared=True),
        every=3 * SETTINGS.step_tokens,
        milestones=(4 * SETTINGS.step_tokens,),
        save=_save,
    )


def _save(model: Any, path: Path) -> None:
    if os.environ.get("RANK", "0") == "0":
        path.parent.mkdir(exist_ok=True)
        torch.save(dict(model.named_parameters()), path)


def shard(layer: str = "LlamaDecoderLayer") -> None:
    """FSDP2, which accelerate sets up on GPUs alone and torch runs on a CPU as well.

    layer: the class whose modules are sharded each on its own; the first one counts in a process.
    """
    from accelerate import Accelerator
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    prepare = Accelerator.__init__
    if prepare.__name__ == "sharding":
        return
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}

    def sharding(self: Any, **over: Any) -> None:
        prepare(self, **over)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[layer],
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


def _fill_disk_of_one(step: int) -> None:
    from accelerate import Accelerator

    save = Accelerator.save_state

    def full(self: Any, folder: str, **over: Any) -> Any:
        done = save(self, folder, **over)
        if f"{step:08d}" in folder and os.environ.get("RANK") == "1":
            raise OSError(errno.ENOSPC, "No space left on device")
        return done

    Accelerator.save_state = full


if __name__ == "__main__":
    main()
