"""The time of a distillation step, compared with TRL's offline forward-KL trainer.

    python -m bench.studies.compress.distill_step TEACHER --data train.jsonl

Both train the same pruned student in fp32 from the same teacher, with matrix products in the type
that this machine multiplies faster (bf16 or fp32), with AdamW, on the same packed rows, each in a
process of its own, rounds interleaved. TRL's is `GKDTrainer` with lmbda 0 (the data's own tokens)
and beta 0 (forward KL).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.studies.compress.recovery import SHAPES
from edgelm.bench.machine import describe_machine
from edgelm.checkpoint.source import open_checkpoint
from edgelm.cli import run_command
from edgelm.compress.arithmetic import faster_type
from edgelm.compress.data.documents import read_documents
from edgelm.compress.data.packing import PackedTokens, pack
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.distillation.train import distill
from edgelm.compress.model import Model, Tokenizer, load_model, load_tokenizer, save_model
from edgelm.compress.pruning.importance import score
from edgelm.compress.pruning.prune import prune
from edgelm.compress.run.distributed import device

_FILE = "rows.npy"
_STUDENT = "student"


@dataclass(frozen=True)
class Job:
    """What every trainer is given, and for how long."""

    student: Model
    teacher: Model
    tokenizer: Tokenizer
    data: PackedTokens
    batch: int
    steps: int


def edgelm_seconds(job: Job, *, compiled: bool = False) -> list[float]:
    """Seconds of each step of `edgelm.compress.distillation.train`."""
    data, batch, steps = job.data, job.batch, job.steps
    settings = Distillation(
        tokens=steps * batch * data.length,
        sequence_length=data.length,
        batch_size=batch,
        micro_batch=batch,
        checkpoint_steps=10**9,
        bf16=job.teacher.dtype == torch.bfloat16,
        compile=compiled,
    )
    seconds, before = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for step in distill(job.student, job.teacher, data, settings, Path(folder)):
            if step.step < steps:  # the last step ends with a checkpoint
                seconds.append(time.perf_counter() - before)
            before = time.perf_counter()
    return seconds


def trl_seconds(job: Job) -> list[float]:
    """Seconds of each step of TRL's GKDTrainer without on-policy data."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    seconds: list[float] = []
    rows = job.data.rows[: job.batch * job.steps]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.begun)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tokens = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}

    with tempfile.TemporaryDirectory() as folder:
        arguments = GKDConfig(
            output_dir=folder,
            lmbda=0.0,
            beta=0.0,
            temperature=1.0,
            per_device_train_batch_size=job.batch,
            max_steps=job.steps,
            bf16=job.teacher.dtype == torch.bfloat16,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,  # nor has edgelm's run
            learning_rate=5e-4,
            save_strategy="no",
            report_to="none",
            logging_steps=1000,
            disable_tqdm=True,
        )
        trainer = GKDTrainer(
            model=job.student,
            teacher_model=job.teacher,
            args=arguments,
            data_collator=collate,
            train_dataset=Dataset.from_dict({"input_ids": rows.tolist()}),
            processing_class=job.tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    return seconds


TRAINERS: dict[str, Callable[[Job], list[float]]] = {
    "edgelm": edgelm_seconds,
    "edgelm compiled": partial(edgelm_seconds, compiled=True),
    "trl": trl_seconds,
}


def main() -> int:
    """Measure all trainers, or run as the process of one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("teacher", help="folder, hub id or .gguf file")
    add("--data", required=True, help="text to distill on")
    add("--batch", type=int, default=4, help="rows of 512 tokens per step (default: 4)")
    add("--steps", type=int, default=5, help="steps per round; the first is warm-up (default: 5)")
    add("--rounds", type=int, default=3, help="interleaved rounds (default: 3)")
    add("--threads", type=int, default=0, help="(default: torch's)")
    add("--work", type=Path, help=argparse.SUPPRESS)
    add("--worker", choices=list(TRAINERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    return run_command(lambda: _work(options) if options.worker else _measure(options))


def _measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _prepare(options, work)
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in TRAINERS}
        for _ in range(options.rounds):
            for name in TRAINERS:
                results[name].append(_run(options, work, name))
        _print(options, results)


def _print(options: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> None:
    tokens = options.batch * 512
    machine = describe_machine(options.threads or torch.get_num_threads())
    print(f"{machine}\nstep of {tokens} tokens, {options.rounds} rounds")
    for name, rounds in results.items():
        seconds = [one for each in rounds for one in each["seconds"][1:]]
        peak = max(each["peak_mb"] for each in rounds)
        median = statistics.median(seconds)
        spread = f"{tokens / max(seconds):.0f} to {tokens / min(seconds):.0f}"
        print(f"{name:<15} {tokens / median:7.1f} tokens/s ({spread}), peak {peak:,.0f} MB")


def _prepare(options: argparse.Namespace, work: Path) -> None:
    tokenizer = load_tokenizer(options.teacher)
    rows = options.batch * options.steps
    data = pack(read_documents(options.data), tokenizer, 512, work / _FILE, max_tokens=rows * 512)
    teacher = load_model(options.teacher)
    importance = score(teacher, [data.batch(range(min(8, len(data))))])
    student = prune(teacher, SHAPES["both"], importance)
    save_model(student, tokenizer, work / _STUDENT, torch.float32)


def _run(options: argparse.Namespace, work: Path, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.studies.compress.distill_step", options.teacher]
    command += ["--data", options.data, "--worker", name, "--work", str(work)]
    command += [f"--batch={options.batch}", f"--steps={options.steps}"]
    command += [f"--threads={options.threads}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _work(options: argparse.Namespace) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    checkpoint = open_checkpoint(options.teacher)
    job = Job(
        load_model(options.work / _STUDENT),
        load_model(checkpoint, dtype=faster_type(checkpoint.spec, device())),
        load_tokenizer(options.work / _STUDENT),
        PackedTokens.load(options.work / _FILE),
        options.batch,
        options.steps,
    )
    seconds = TRAINERS[options.worker](job)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


if __name__ == "__main__":
    raise SystemExit(main())
