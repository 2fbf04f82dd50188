r"""Recovery by distillation: one pruned shape, trained in several ways on the same tokens.

    python -m bench.studies.compress.recovery train TEACHER --data train.jsonl --arm kd -o runs/
    python -m bench.studies.compress.recovery evaluate TEACHER -o runs/ \
        --tasks perplexity:valid.jsonl

`train` resumes after an interruption; it writes students at milestones, so that `evaluate` can show
quality over tokens. All arms have the same schedule: at an equal number of tokens they differ only
in what their names say.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import torch

from bench.studies.compress.figures import Figures, claim_folder, digest
from edgelm import __version__
from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.checkpoint.student import StageRecord, StudentRecord, write_student_record
from edgelm.cli import run_command
from edgelm.compress.arithmetic import faster_type
from edgelm.compress.data.documents import read_documents
from edgelm.compress.data.packing import PackedTokens, calibration_rows, pack
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.distillation.train import distill
from edgelm.compress.evaluation.evaluate import evaluate
from edgelm.compress.evaluation.task_names import parse_tasks
from edgelm.compress.model import Model, Tokenizer, load_model, load_tokenizer, save_model, spec_of
from edgelm.compress.pruning.importance import Importance, score
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.run.distributed import device
from edgelm.compress.run.fingerprint import tokenizer_sha256, weights_sha256
from edgelm.compress.run.run_folder import file_hashes, task_hashes

_CALIBRATION_ROWS = 128
_MILESTONES = (50_000, 100_000, 200_000, 300_000, 500_000, 750_000, 1_000_000, 1_500_000)


class Arm(msgspec.Struct, frozen=True):
    """One way to make a student: shape, initial weights, and settings of the training."""

    shape: str = "both"
    weights: str = "pruned"
    settings: dict[str, object] = {}


ARMS = {
    "kd": Arm(),
    "ce": Arm(settings={"cross_entropy": 1.0}),
    "kd-ce": Arm(settings={"cross_entropy": 0.5}),
    "reverse-kl": Arm(settings={"loss": "reverse-kl"}),
    "on-policy-jsd": Arm(settings={"loss": "jsd", "on_policy": 0.25}),
    "on-policy-reverse-kl": Arm(settings={"loss": "reverse-kl", "on_policy": 0.25}),
    "random-kd": Arm(weights="random"),
    "random-pruned-kd": Arm(weights="randomly-pruned"),
    "depth-kd": Arm("depth"),
    "depth-hidden-kd": Arm("depth", settings={"layer_map": ((-1, -1), (18, 27))}),
    "width-kd": Arm("width"),
}
# Each has about 0.7 of SmolLM2-135M's parameters outside the embeddings.
SHAPES = {
    "both": Shape(26, 576, 1152, 9, 3),
    "depth": Shape(21, 576, 1536, 9, 3),
    "width": Shape(30, 576, 896, 9, 3),
}


def main() -> int:
    """Train one arm, or evaluate all students."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    verbs = parser.add_subparsers(dest="verb", required=True)
    trainer = verbs.add_parser("train", help="train one arm, or resume it")
    trainer.add_argument("teacher", help="folder, hub id or .gguf file")
    trainer.add_argument("--data", required=True, help="text to distill on")
    trainer.add_argument("--arm", choices=sorted(ARMS), default="kd", help="which (default: kd)")
    trainer.add_argument("--tokens", type=int, default=2_000_000, help="of the whole schedule")
    trainer.add_argument("--stop", type=int, help="end after N tokens of the schedule")
    trainer.add_argument("--seed", type=int, default=0, help="order of the data (default: 0)")
    trainer.add_argument("--shape", help="layers,hidden,ffn,heads,groups instead of the arm's")
    trainer.add_argument("--start", help="a student to prune further, instead of the teacher")
    trainer.add_argument("--name", help="of the run (default: the arm and its seed)")
    trainer.add_argument("--compile", action="store_true", help="compile the layers")
    trainer.add_argument("-o", dest="out", type=Path, required=True, help="folder of all runs")
    evaluating = verbs.add_parser("evaluate", help="evaluate all students and print a table")
    evaluating.add_argument("teacher", help="folder, hub id or .gguf file")
    evaluating.add_argument("--tasks", action="append", required=True, help="see edge-compress")
    evaluating.add_argument("--limit", type=int, help="rows or passages of each task")
    evaluating.add_argument("--at", type=int, action="append", help="only students of these tokens")
    evaluating.add_argument("-o", dest="out", type=Path, required=True, help="folder of all runs")
    arguments = parser.parse_args()
    verb = {"train": train, "evaluate": evaluate_students}[arguments.verb]
    return run_command(lambda: verb(arguments))


def train(arguments: argparse.Namespace) -> None:
    """Train one arm to its last milestone."""
    checkpoint = open_checkpoint(arguments.teacher)
    tokenizer = load_tokenizer(checkpoint)
    teacher = load_model(checkpoint)
    dtype = faster_type(checkpoint.spec, device())
    arm = ARMS[arguments.arm]
    settings = msgspec.convert(
        {
            "tokens": arguments.tokens,
            "stop_after": arguments.stop,
            "seed": arguments.seed,
            "compile": arguments.compile,
            "bf16": dtype == torch.bfloat16,
        }
        | arm.settings,
        Distillation,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = _packed(arguments.data, tokenizer, settings, arguments.out)
    name = arguments.name or arguments.arm
    if arguments.seed and not arguments.name:
        name = f"{arguments.arm}-seed{arguments.seed}"
    folder = arguments.out / name
    shape = SHAPES[arm.shape]
    if arguments.shape:
        shape = Shape(*map(int, arguments.shape.split(",")))
    start = load_model(arguments.start) if arguments.start else teacher
    inputs = {
        "start": weights_sha256(start),
        "data": file_hashes((arguments.data,)),
        "length": settings.sequence_length,
    }
    claim_folder(folder, inputs | {"teacher": checkpoint.sha256(), "arm": arm, "shape": shape})
    scores = arguments.out / f"importance-{digest(inputs)}.safetensors"
    student = WEIGHTS[arm.weights](start, shape, _importance(start, data, scores), 0)
    teacher = teacher.to(dtype)
    make_record = partial(_record, checkpoint, student, arm, settings)
    _save(student, tokenizer, folder, make_record(0))
    with (arguments.out / f"{name}.jsonl").open("a") as log:
        before: int | None = None
        for step in distill(student, teacher, data, settings, folder / "checkpoints"):
            log.write(msgspec.json.encode(step).decode() + "\n")
            log.flush()
            print(
                f"\r{name} {step.step}/{step.steps} loss {step.loss:.3f} "
                f"{step.tokens_per_second:.0f} tokens/s, {step.eta_seconds / 60:.0f} min left ",
                end="",
                file=sys.stderr,
            )
            if before is None:  # a resumed run has passed earlier milestones
                before = step.tokens - settings.step_tokens
            reached = [mark for mark in _MILESTONES if before < mark <= step.tokens]
            if reached or step.step == step.steps:
                _save(student, tokenizer, folder, make_record(step.tokens))
            before = step.tokens
    print(file=sys.stderr)


def evaluate_students(arguments: argparse.Namespace) -> None:
    """Evaluate students that have no figures yet; print all figures as a table."""
    tasks = parse_tasks(arguments.tasks)
    tokenizer = load_tokenizer(arguments.teacher)
    checkpoint = open_checkpoint(arguments.teacher)
    teacher_sha256 = checkpoint.sha256()
    dtype = faster_type(checkpoint.spec, device())
    teacher = load_model(checkpoint, dtype=dtype)
    stored = Figures(arguments.out / "figures.json")
    found: dict[str, dict[str, float]] = {}
    students = sorted(arguments.out.glob("*/student-*"))
    names = ["teacher", *(f"{one.parent.name}@{int(one.name[8:])}" for one in students)]
    for name, folder in zip(names, [None, *students], strict=True):
        if arguments.at and folder is not None and int(folder.name[8:]) not in arguments.at:
            continue
        inputs = {"teacher": teacher_sha256, "limit": arguments.limit, "dtype": str(dtype)}
        if folder is not None:
            inputs["student"] = open_checkpoint(folder).sha256()
        model = None
        for task in tasks:
            key, conditions = f"{name}/{task}", inputs | task_hashes((f"{task.kind}:{task.name}",))
            values = stored.get(key, conditions)
            if values is None:
                model = model or (folder and load_model(folder, dtype=dtype)) or teacher
                scores = evaluate(
                    model,
                    tokenizer,
                    [task],
                    teacher=None if folder is None else teacher,
                    limit=arguments.limit,
                )
                values = {figure: score.value for figure, score in scores.items()}
                stored.put(key, conditions, values)
            found.setdefault(name, {}).update(values)
        print(name, found[name], file=sys.stderr)
    print(_table(found))


def _table(rows: dict[str, dict[str, float]]) -> str:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    head = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    body = [
        f"| {name} | "
        + " | ".join(f"{row[key]:.4g}" if key in row else "" for key in columns)
        + " |"
        for name, row in rows.items()
    ]
    return "\n".join([*head, *body])


def _packed(source: str, tokenizer: Tokenizer, settings: Distillation, out: Path) -> PackedTokens:
    inputs = file_hashes((source,)) | {"tokenizer": tokenizer_sha256(tokenizer)}
    path = out / f"data-{settings.sequence_length}-{digest(inputs)}.npy"
    if path.exists():
        return PackedTokens.load(path)
    return pack(read_documents(source), tokenizer, settings.sequence_length, path)


def _importance(model: Model, data: PackedTokens, path: Path) -> Importance:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        score(model, calibration_rows(data, _CALIBRATION_ROWS, 4)).save(path)
    return Importance.load(path)


def _pruned(teacher: Model, shape: Shape, importance: Importance, _: int) -> Model:
    return prune(teacher, shape, importance)


def _randomly_pruned(teacher: Model, shape: Shape, importance: Importance, seed: int) -> Model:
    generator = torch.Generator().manual_seed(seed)
    noise = {
        field: torch.rand(scores.shape, generator=generator)
        for field, scores in vars(importance).items()
        if scores is not None and field != "gates"
    }
    return prune(teacher, shape, Importance(**noise))


def _random(teacher: Model, shape: Shape, importance: Importance, seed: int) -> Model:
    student = prune(teacher, shape, importance)
    generator = torch.Generator().manual_seed(seed)
    deviation = student.config.initializer_range
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, deviation, generator=generator)
            else:
                parameter.fill_(1.0)
    return student


WEIGHTS: dict[str, Callable[[Model, Shape, Importance, int], Model]] = {
    "pruned": _pruned,
    "randomly-pruned": _randomly_pruned,
    "random": _random,
}


def _record(
    teacher: Checkpoint, student: Model, arm: Arm, settings: Distillation, tokens: int
) -> StudentRecord:
    """The record that export copies into the bundle, as `edge-compress` writes it."""
    spec = spec_of(student)
    stages = [StageRecord("prune", {"weights": arm.weights})]
    if tokens:
        stages.append(StageRecord("distill", msgspec.to_builtins(settings), tokens))
    return StudentRecord(
        teacher=teacher.path.name,
        teacher_sha256=teacher.sha256(),
        teacher_parameters=teacher.spec.parameters,
        parameters=spec.parameters,
        teacher_shape=Shape.from_spec(teacher.spec).sizes,
        shape=Shape.from_spec(spec).sizes,
        stages=tuple(stages),
        edgelm_version=__version__,
    )


def _save(student: Model, tokenizer: Tokenizer, folder: Path, record: StudentRecord) -> None:
    tokens = sum(stage.tokens for stage in record.stages)
    target = folder / f"student-{tokens:08d}"
    if not target.exists():
        save_model(student, tokenizer, target, torch.bfloat16)
    write_student_record(target, record)


if __name__ == "__main__":
    raise SystemExit(main())
