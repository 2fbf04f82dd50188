r"""Quantization-aware distillation compared with post-training quantization, at equal tokens.

    python -m bench.studies.compress.qad_gain STUDENT --teacher TEACHER --data train.jsonl \
      --held-out valid.jsonl --tokens 500000 -o qad/

The student is distilled on --tokens and then quantized by export's methods, calibrated on the same
data; the same student is also distilled through the quantizer on the same tokens. Without --teacher
the student is its own teacher; plain distillation would change nothing and is skipped. Results are
the KL from the teacher on held-out rows.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.studies.compress.figures import claim_folder
from edgelm.bench.machine import describe_machine
from edgelm.checkpoint.source import open_checkpoint
from edgelm.cli import run_command
from edgelm.compress.arithmetic import faster_type
from edgelm.compress.data.documents import read_documents
from edgelm.compress.data.packing import PackedTokens, calibration_rows, pack
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.distillation.train import distill
from edgelm.compress.evaluation.tasks.text_quality import teacher_agreement
from edgelm.compress.model import Model, load_model, load_tokenizer, save_model
from edgelm.compress.run.distributed import device
from edgelm.compress.run.run_folder import file_hashes
from edgelm.export.quantize.methods import METHODS
from edgelm.export.quantize.prepare import prepare
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import Passage
from edgelm.export.work.cache import ArtifactCache
from edgelm.quantize.precision import Int4, Int8
from edgelm.spec.groups import EMBEDDING, HEAD

_LENGTH = 512
_CALIBRATION_ROWS = 64
_METHODS = ("auto", "rtn")  # the calibration of auto serves both


def main() -> int:
    """Train, quantize, evaluate, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("student", help="folder, hub id or .gguf file")
    add("--teacher", help="(default: the student)")
    add("--data", required=True, help="text to distill and calibrate on")
    add("--held-out", required=True, help="text to evaluate on")
    add("--tokens", type=int, default=500_000, help="to train on (default: 500000)")
    add("--rows", type=int, default=32, help="of 512 tokens to evaluate on (default: 32)")
    add("--group-size", type=int, default=64, help="of layers and head (default: 64)")
    add("--head", choices=("int4", "int8"), default="int8", help="its precision (default: int8)")
    add("--learning-rate", type=float, default=7e-5, help="(default: 7e-5)")
    add("-o", "--out", type=Path, required=True, help="folder for checkpoints; resumes")
    options = parser.parse_args()
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    precision = Int4(options.group_size)
    head = precision if options.head == "int4" else Int8(options.group_size)
    tokenizer = load_tokenizer(options.student)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    claim_folder(options.out, settings | file_hashes((options.data, options.held_out)))
    data = _rows(options.data, tokenizer, options.out / "data.npy", None)
    limit = options.rows * _LENGTH
    held = _rows(options.held_out, tokenizer, options.out / "held.npy", limit)
    evaluated = held.batch(range(len(held)))
    checkpoint = open_checkpoint(options.teacher or options.student)
    dtype = faster_type(checkpoint.spec, device())
    teacher = load_model(checkpoint, dtype=dtype)
    distillation = Distillation(
        tokens=options.tokens,
        learning_rate=options.learning_rate,
        weight_decay=0.0,
        bf16=dtype == torch.bfloat16,
    )
    print(describe_machine(torch.get_num_threads()))
    print(f"layers {precision}, head {head}, {options.tokens:,} tokens")

    source = options.student
    if options.teacher:
        student = load_model(source)
        _train(student, teacher, data, distillation, options.out / "kd", None)
        source = options.out / "distilled"
        save_model(student, tokenizer, source, torch.float32)
    calibration = torch.cat(list(calibration_rows(data, _CALIBRATION_ROWS, _CALIBRATION_ROWS)))
    reference = load_model(checkpoint)
    _report("not quantized", load_model(source), reference, evaluated)
    for name, quantized in _quantized(source, calibration, precision, head):
        _report(f"quantized by {name}", quantized, reference, evaluated)
    student = load_model(options.student)
    _train(student, teacher, data, distillation, options.out / "qad", (precision, head))
    save_model(student, tokenizer, options.out / "student", torch.float32)
    _report("QAD", student, reference, evaluated)


def _rows(source: str, tokenizer: object, path: Path, max_tokens: int | None) -> PackedTokens:
    if path.exists():
        return PackedTokens.load(path)
    return pack(read_documents(source), tokenizer, _LENGTH, path, max_tokens=max_tokens)


def _train(
    student: Model,
    teacher: Model,
    data: PackedTokens,
    settings: Distillation,
    folder: Path,
    precision: tuple[Int4 | Int8, Int4 | Int8] | None,
) -> None:
    for step in distill(student, teacher, data, settings, folder, precision=precision):
        line = f"\r{folder.name} {step.step}/{step.steps} loss {step.loss:.4f}"
        print(f"{line} {step.tokens_per_second:.0f} tokens/s ", end="", file=sys.stderr)
    print(file=sys.stderr)


def _quantized(
    source: str | Path, calibration: torch.Tensor, precision: Int4, head: Int4 | Int8
) -> Iterator[tuple[str, Model]]:
    """The source with its matrices quantized by each of export's methods."""
    checkpoint = open_checkpoint(source)
    reference = Reference(checkpoint)
    text = Passage(calibration, "calibration", sha256="")
    with tempfile.TemporaryDirectory(prefix="edgelm-moments-") as scratch:
        cache = ArtifactCache(Path(scratch))
        for name in _METHODS:
            method = METHODS[name]
            weights, stats = prepare(reference, text, method, {Int4}, kv="fp32", cache=cache)
            quantizer = Quantizer(weights, method, stats=stats)
            model = load_model(checkpoint)
            parameters = dict(model.named_parameters())
            for group in weights.groups():
                wanted = head if group in (HEAD, EMBEDDING) else precision
                for tensor, rounded in quantizer.dequantized(group, wanted).items():
                    parameters[tensor].data.copy_(rounded)
            yield name, model


def _report(name: str, model: Model, teacher: Model, rows: torch.Tensor) -> None:
    # In fp32: in bf16 a quantized student would leave its quantization levels.
    found = teacher_agreement(model.float(), teacher, rows)
    kl, same = found["kl"], found["top1"]
    print(f"{name:<18} KL {kl.value:.4f} ± {kl.error:.4f}, top-1 {same.value:.1%}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
