"""Distillation: train a student towards its teacher, resumable at any moment.

Built on accelerate: the same loop runs on one CPU or GPU, and under `accelerate launch` on many
(DDP, FSDP2). The rows of a step depend on the seed and the step's number alone, so an interrupted
run resumes from its last checkpoint to the same result.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgelm.compress.arithmetic import total_type
from edgelm.compress.data.packing import PackedTokens, calibration_rows
from edgelm.compress.distillation.checkpoints import Checkpoints
from edgelm.compress.distillation.cpu_speed import compiled_layers, keep_freed_memory
from edgelm.compress.distillation.on_policy import continued, is_on_policy, prompt_length
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.distillation.student_teacher import Distiller, Losses
from edgelm.compress.distillation.teacher_cache import TeacherCache
from edgelm.compress.model import Model, is_sharded, spec_of
from edgelm.compress.qad.fake_quantizer import FakeQuantizer, Grid
from edgelm.compress.qad.start import (
    prepare_for_quantization,
    read_start,
    start_fingerprint,
    write_start,
)
from edgelm.compress.run.stop_signals import StopSignals
from edgelm.errors import BadInput, Diverged
from edgelm.files.sealed_tensors import is_sealed
from edgelm.quantize.precision import Int4, Int8

# Rows whose second moments quantization-aware distillation starts from. The batch is the same in
# every run, since the order of sums decides which of two near levels is chosen.
_START_ROWS, _START_BATCH = 64, 4


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step; losses are means over its tokens, in nats.

    eta_seconds: time to the last step at the average speed of this run.
    """

    step: int
    steps: int
    tokens: int
    loss: float
    divergence: float
    cross_entropy: float
    hidden: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    eta_seconds: float


def distill(
    student: Model,
    teacher: Model | TeacherCache | None,
    data: PackedTokens,
    settings: Distillation,
    folder: Path,
    *,
    precision: tuple[Int4 | Int8, Int4 | Int8] | None = None,
    after_step: Callable[[int], None] = lambda _: None,
) -> Generator[Step, None, None]:
    """Train `student` in place, yielding every step.

    A checkpoint is written to `folder` every `checkpoint_steps`, at the end, and before the process
    ends by Ctrl-C or SIGTERM (see `StopSignals`); training resumes from it if the folder holds one
    of the same run.

    Args:
        student: in fp32, on any device; moved to the one that accelerate chooses.
        teacher: a model in any type, a cache (see `teacher_cache`), or None for cross-entropy
            alone.
        data: packed rows of `sequence_length` tokens.
        settings: of the run.
        folder: for checkpoints.
        precision: of the layers and of the head for quantization-aware distillation (QAD, arXiv
            2601.20088): the student computes with quantized weights and has them at the end.
        after_step: called on every process with the number of steps done, before the checkpoint
            of that step: after an interruption it is called again, never left out.

    Raises:
        BadInput: settings and data do not match, or `folder` belongs to another run.
        Diverged: the loss is not finite; the last checkpoint remains.
        DoesNotFit: the disk is too full for a checkpoint; the last one remains.
    """
    run = _Run(student, teacher, data, settings, folder, precision)
    with run.compiled, StopSignals() as stop:
        yield from run.steps(after_step, stop)


class _Run:
    def __init__(
        self,
        student: Model,
        teacher: Model | TeacherCache | None,
        data: PackedTokens,
        settings: Distillation,
        folder: Path,
        precision: tuple[Int4 | Int8, Int4 | Int8] | None,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # accelerate has one global precision, which TRL may have set; autocast is done here.
        AcceleratorState._reset_state()
        # Without this, several processes on a CPU count as separate runs.
        on_cpu = not torch.accelerator.is_available()
        self.accelerator = Accelerator(mixed_precision="no", cpu=on_cpu)
        _check_parallelism(self.accelerator)
        if precision is None:  # levels of a grid are exact in fp32 only
            _gather_in(self.accelerator, bf16=settings.bf16)
        settings.check(self.accelerator.num_processes)
        _check_data(data, settings)
        if settings.within_documents and spec_of(student).is_hybrid:
            raise BadInput(
                "within_documents: this student's layers remember more than keys and values, which "
                "no mask separates; remove the setting"
            )
        self.settings, self.data = settings, data
        self.cache: TeacherCache | None = None
        live: Model | None = None
        if isinstance(teacher, TeacherCache):
            self.cache = teacher
        else:
            live = teacher
        _check_teacher(live, self.cache, settings, len(data))
        if settings.on_policy and getattr(self.accelerator.state, "fsdp_plugin", None):
            raise BadInput(
                "on_policy needs the whole student on every process, and FSDP2 shards it; launch "
                "with DDP, or remove on_policy"
            )
        if live is not None:
            live = live.eval().requires_grad_(False)
            if not is_sharded(live):
                live = live.to(self.accelerator.device)
        if settings.gradient_checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": False})
        self.checkpoints = Checkpoints(folder, self.accelerator, settings)
        grids = self._start(student, precision) if precision else None
        student.train()
        distiller = Distiller(
            student,
            None if settings.cross_entropy == 1.0 else live,
            settings.objective,
            layer_map=settings.layer_map,
            compute=torch.bfloat16 if settings.bf16 else torch.float32,
        )
        self.compiled: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if settings.compile:
            eager = distiller.recorded_layers()
            fixed = None if live is None or is_sharded(live) else live
            self.compiled = compiled_layers(student, fixed, on_cpu=on_cpu, eager=eager)
        if on_cpu:
            keep_freed_memory()
        optimizer = _optimizer(distiller, settings)
        self.model, self.optimizer = self.accelerator.prepare(distiller, optimizer)
        self.quantizer = FakeQuantizer(self.model, grids) if grids else None

    def _start(self, student: Model, precision: tuple[Int4 | Int8, Int4 | Int8]) -> dict[str, Grid]:
        """Prepare the student for quantization, as the first start of this run did."""
        fingerprint = start_fingerprint(student, *precision)

        def write(path: Path) -> None:
            rows = calibration_rows(self.data, _START_ROWS, _START_BATCH)
            student.to(self.accelerator.device).eval()
            scratch = path.with_name("moments.partial")
            scratch.mkdir()
            grids = prepare_for_quantization(student, rows, *precision, scratch)
            shutil.rmtree(scratch)
            write_start(path, student, grids, fingerprint)

        start = self.checkpoints.write_once("start.safetensors", write, is_sealed)
        return read_start(start, student, *precision, fingerprint)

    def steps(self, after_step: Callable[[int], None], stop: StopSignals) -> Iterator[Step]:
        settings = self.settings
        first = self.checkpoints.resume()
        if first == settings.last_step:
            after_step(first)  # the training may not have ended there before
        begun = time.monotonic()
        for step in range(first, settings.last_step):
            learning_rate = settings.learning_rate_at(step)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            with self.quantizer.quantized() if self.quantizer else contextlib.nullcontext():
                means, stopping = self._gradients(step, stop)
            norm = self._update(step, means[0])
            done = step + 1
            after_step(done)
            saved = done % settings.checkpoint_steps == 0 or done == settings.last_step
            if saved:
                self.checkpoints.save(done)
            speed = (done - first) * settings.step_tokens / (time.monotonic() - begun)
            yield Step(
                step=done,
                steps=settings.last_step,
                tokens=done * settings.step_tokens,
                loss=means[0],
                divergence=means[1],
                cross_entropy=means[2],
                hidden=means[3],
                learning_rate=learning_rate,
                gradient_norm=norm,
                tokens_per_second=speed,
                eta_seconds=(settings.last_step - done) * settings.step_tokens / speed,
            )
            if stopping or (stop.received and self.accelerator.num_processes == 1):
                if not saved:
                    self.checkpoints.save(done)
                stop.deliver()
        if self.quantizer:
            self.quantizer.finish()
        self.accelerator.unwrap_model(self.model).student.eval()

    def _gradients(self, step: int, stop: StopSignals) -> tuple[list[float], bool]:
        """Compute gradients of this process's rows.

        Returns:
            The losses of the whole step, and whether any process is to stop after it: all of them
            write a checkpoint together.
        """
        accelerator, settings = self.accelerator, self.settings
        indices = rows_of_step(step, len(self.data), settings.batch_size, settings.seed)
        share = np.array_split(indices, accelerator.num_processes)[accelerator.process_index]
        micro = [
            share[start : start + settings.micro_batch]
            for start in range(0, len(share), settings.micro_batch)
        ]
        device = accelerator.device
        totals = torch.zeros(5, dtype=total_type(device), device=device)
        for position, rows in enumerate(micro):
            last = position + 1 == len(micro)
            # Processes are averaged, and may have a row more or less than their share.
            weight = len(rows) * accelerator.num_processes / settings.batch_size
            with _sync_on_last(accelerator, self.model, last):
                losses = self._losses(step, rows)
                accelerator.backward(losses.total * weight)
            parts = [losses.total.detach(), losses.divergence, losses.cross_entropy, losses.hidden]
            totals[:4] += weight * torch.stack(parts).to(totals.dtype)
        totals[4] = float(stop.received is not None)
        *means, stopping = accelerator.reduce(totals, "mean").tolist()
        return means, stopping > 0

    def _update(self, step: int, loss: float) -> float:
        """Apply the gradients if they are finite; returns their norm."""
        accelerator, settings = self.accelerator, self.settings
        norm = float(accelerator.clip_grad_norm_(self.model.parameters(), settings.gradient_clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            indices = rows_of_step(step, len(self.data), settings.batch_size, settings.seed)
            raise Diverged(
                f"the loss of step {step + 1} is {loss:g} (gradient norm {norm:g}) on rows "
                f"{sorted(indices.tolist())} of the data; the weights were not updated, "
                f"{self.checkpoints.describe()}. Lower the learning rate "
                f"({settings.learning_rate:g}) or check these rows"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _losses(self, step: int, rows: npt.NDArray[np.int64]) -> Losses:
        device, settings = self.accelerator.device, self.settings
        tokens = self.data.batch(rows).to(device)
        cached = self.cache.rows(rows, device) if self.cache is not None else None
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            if not is_on_policy(step, settings.on_policy):
                positions = None
                if settings.within_documents:
                    positions = self.data.positions(rows).to(device)
                return self.model(tokens, cached, 1, positions)  # type: ignore[no-any-return]
            student = self.accelerator.unwrap_model(self.model).student
            tokens = continued(student, tokens, step, rows.tolist(), settings.seed)
            first = prompt_length(tokens.shape[1])
            return self.model(tokens, None, first)  # type: ignore[no-any-return]


def _check_parallelism(accelerator: Any) -> None:
    """Raise BadInput for launches in which processes would get different rows, or none at all."""
    parallel = getattr(accelerator, "parallelism_config", None)
    split = {name: int(getattr(parallel, f"{name}_size", 1) or 1) for name in ("tp", "cp", "sp")}
    wrong = [name.upper() for name, size in split.items() if size > 1]
    state = accelerator.state
    wrong += ["DeepSpeed"] if getattr(state, "deepspeed_plugin", None) is not None else []
    wrong += ["Megatron-LM"] if getattr(state, "megatron_lm_plugin", None) is not None else []
    if wrong:
        raise BadInput(
            f"the launch asks for {' and '.join(wrong)}, which training here does not support: "
            "processes divide the rows of a step, or shard the model by FSDP2; launch with DDP "
            "or with --use_fsdp --fsdp_version 2"
        )


def _gather_in(accelerator: Any, *, bf16: bool) -> None:
    """Let FSDP2 gather weights in bf16 and reduce gradients in fp32; shards stay in fp32.

    Without a policy it gathers fp32, twice the traffic, for matrix products in bf16.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or not bf16 or plugin.mixed_precision_policy is not None:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32
    )


def _sync_on_last(
    accelerator: Any, model: Any, last: bool
) -> contextlib.AbstractContextManager[None]:
    """Gradients are exchanged once per step, with the last micro-batch."""
    return contextlib.nullcontext() if last else accelerator.no_sync(model)


def rows_of_step(step: int, rows: int, batch: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of the rows of a step; every epoch is a new permutation."""
    positions = np.arange(step * batch, (step + 1) * batch)
    found = np.empty(batch, np.int64)
    for epoch in np.unique(positions // rows).tolist():
        order = _epoch_order(rows, seed, epoch)
        inside = positions // rows == epoch
        found[inside] = order[positions[inside] % rows]
    return found


@lru_cache(maxsize=2)  # a step may end one epoch and begin the next
def _epoch_order(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(rows)


def _check_data(data: PackedTokens, settings: Distillation) -> None:
    if data.length != settings.sequence_length:
        raise BadInput(
            f"the data is packed in rows of {data.length} tokens, but sequence_length is "
            f"{settings.sequence_length}; pack it again"
        )
    if len(data) < settings.batch_size:
        raise BadInput(
            f"the data has {len(data)} rows of {data.length} tokens, fewer than the "
            f"{settings.batch_size} of one step; give more text or a smaller batch_size"
        )


def _check_teacher(
    live: Model | None, cache: TeacherCache | None, settings: Distillation, rows: int
) -> None:
    """Raise BadInput for settings that this kind of teacher does not support."""
    if live is not None:
        return
    if settings.layer_map:
        raise BadInput("layer_map compares hidden states and needs a live teacher; remove `cache`")
    if settings.on_policy:
        raise BadInput("on_policy needs a live teacher to score what the student writes")
    if cache is None:
        if settings.cross_entropy != 1.0:
            raise BadInput("no teacher: training without one needs cross_entropy = 1")
        return
    if settings.loss != "forward-kl" or settings.temperature != 1.0:
        raise BadInput(
            f"loss {settings.loss!r} at temperature {settings.temperature:g} needs a live teacher; "
            "a cache serves forward-kl at temperature 1 only"
        )
    if len(cache) != rows:
        raise BadInput(
            f"the teacher cache has {len(cache)} rows, the data has {rows}; build the cache again"
        )


def _optimizer(model: torch.nn.Module, settings: Distillation) -> torch.optim.Optimizer:
    """AdamW, without weight decay of norms and biases."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)
