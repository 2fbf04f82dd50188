r"""Which claims of Minitron's tables hold at a small scale, which do not, which stay unclear.

    python -m bench.studies.compress.directions TEACHER --data train.jsonl --held-out valid.jsonl \
      --passages lambada.jsonl -o directions/

Arms are students of one teacher, with 0.7 of its parameters outside the embeddings. Each is made
once per seed, which selects calibration rows, the order of the data and random weights. A claim is
that one arm is better than another in some figure: it holds if it does for every seed and the mean
difference is more than twice its standard error. Claims are numbered as in the papers' tables
(arXiv 2407.14679 and 2408.11796). Figures are stored in `figures.json`; an interrupted run resumes,
and figures of other options are measured again.
"""

import argparse
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch

from bench.studies.compress.figures import Figures, digest
from bench.studies.compress.recovery import SHAPES, WEIGHTS
from edgelm.bench.machine import describe_machine
from edgelm.checkpoint.source import open_checkpoint
from edgelm.cli import run_command
from edgelm.compress.arithmetic import faster_type
from edgelm.compress.data.documents import read_documents
from edgelm.compress.data.packing import PackedTokens, pack
from edgelm.compress.distillation.cache_settings import CacheSettings
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.distillation.teacher_cache import build_cache
from edgelm.compress.distillation.train import distill
from edgelm.compress.evaluation.evaluate import evaluate
from edgelm.compress.evaluation.held_out import HeldOut
from edgelm.compress.evaluation.task_names import parse_tasks
from edgelm.compress.model import Model, Tokenizer, load_model, load_tokenizer
from edgelm.compress.pruning.aggregation import Aggregation, Reduction
from edgelm.compress.pruning.importance import Importance, score
from edgelm.compress.pruning.layer_removal import layers_without_best_block, text_loss
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.run.distributed import device
from edgelm.compress.run.run_folder import file_hashes

_LENGTH = 256
_STEP_ROWS = 4
_RATE = 3e-4

Figure = Literal["loss", "kl", "accuracy"]
"""On held-out text: next-token loss, KL from the teacher in nats; or accuracy of last words."""


class Arm(msgspec.Struct, frozen=True):
    """One way to make a student.

    rounds: number of pruning steps to the shape, with importance scored before each.
    steps: number of times that it is pruned and trained, on a share of the tokens each.
    settings: of `Distillation`. cache: the teacher's tokens per position; None is a live teacher.
    """

    shape: Shape = SHAPES["both"]
    weights: str = "pruned"
    aggregation: tuple[Reduction, Reduction] = ("mean", "l2")
    rounds: int = 1
    steps: int = 1
    block: bool = False
    corrected: bool = False
    trained: bool = True
    cache: CacheSettings | None = None
    settings: dict[str, Any] = {}


class Claim(msgspec.Struct, frozen=True):
    """`better` has the better figure; with a margin, it is worse by at most the margin."""

    number: str
    text: str
    better: str
    worse: str
    figure: Figure = "loss"
    margin: float = 0.0


_FULL = Shape(30, 576, 1536, 9, 3)
_NARROW = Shape(30, 448, 1280, 9, 3)
_ALL: tuple[Reduction, ...] = ("mean", "l2", "var")
ARMS: dict[str, Arm] = {
    **{
        f"score-{tokens}-{samples}": Arm(_NARROW, aggregation=(tokens, samples), trained=False)
        for tokens in _ALL
        for samples in _ALL
    },
    "cut-9": Arm(SHAPES["depth"], trained=False),
    "cut-9-block": Arm(SHAPES["depth"], block=True, trained=False),
    "kd": Arm(),
    "ce": Arm(settings={"cross_entropy": 1.0}),
    "random-kd": Arm(weights="random"),
    "randomly-pruned-kd": Arm(weights="randomly-pruned"),
    "kd-ce": Arm(settings={"cross_entropy": 0.5}),
    "reverse-kl": Arm(settings={"loss": "reverse-kl"}),
    "temperature-3": Arm(settings={"temperature": 3.0}),
    "top-32": Arm(cache=CacheSettings("top-k", 32)),
    "top-256": Arm(cache=CacheSettings("top-k", 256)),
    "cut-in-4": Arm(rounds=4),
    "trained-between": Arm(steps=2),
    "corrected": Arm(corrected=True),
    "width": Arm(SHAPES["width"]),
    "width-hidden": Arm(SHAPES["width"], settings={"layer_map": ((-1, -1), (27, 27))}),
    "depth": Arm(SHAPES["depth"]),
    "depth-hidden": Arm(SHAPES["depth"], settings={"layer_map": ((-1, -1), (18, 27))}),
    "depth-wrong-map": Arm(SHAPES["depth"], settings={"layer_map": ((10, 27),)}),
    "depth-in-9": Arm(SHAPES["depth"], rounds=9),
}
CLAIMS = (
    Claim(
        "R1",
        "scores: mean over tokens, L2 over samples beats L2, L2",
        "score-mean-l2",
        "score-l2-l2",
    ),
    Claim("R1", "... beats variance, variance", "score-mean-l2", "score-var-var"),
    Claim(
        "R1",
        "... mean, mean is as good (0.05 nats)",
        "score-mean-mean",
        "score-mean-l2",
        margin=0.05,
    ),
    Claim("R1", "... L2 over tokens, mean over samples is worse", "score-mean-l2", "score-l2-mean"),
    Claim("R2", "scoring once is as good as four times (0.02 nats)", "kd", "cut-in-4", margin=0.02),
    Claim("R4", "KD beats cross-entropy", "kd", "ce"),
    Claim("R4", "... in KL to the teacher", "kd", "ce", "kl"),
    Claim("R4", "pruned and cross-entropy beats random and KD", "ce", "random-kd"),
    Claim("R5", "KL alone beats KL and cross-entropy", "kd", "kd-ce"),
    Claim("R5", "... in KL to the teacher", "kd", "kd-ce", "kl"),
    Claim("R5", "forward KL beats reverse KL", "kd", "reverse-kl"),
    Claim("R6", "hidden states help a depth student", "depth-hidden", "depth"),
    Claim("R6", "... a wrong map hurts", "depth", "depth-wrong-map"),
    Claim("R6", "hidden states do not help a width student", "width", "width-hidden"),
    Claim("R7", "temperature 1 beats 3", "kd", "temperature-3"),
    Claim("R7", "the teacher's likeliest 32 tokens are not enough", "kd", "top-32"),
    Claim("R7", "... 256 are (0.01 nats)", "top-256", "kd", margin=0.01),
    Claim(
        "R8",
        "depth: one cut is as good as layer by layer (0.02 nats)",
        "depth",
        "depth-in-9",
        margin=0.02,
    ),
    Claim(
        "R8",
        "two cuts with training between are no better at this size (0.02 nats)",
        "kd",
        "trained-between",
        margin=0.02,
    ),
    Claim("R10", "a corrected teacher lowers the student's loss", "corrected", "kd"),
    Claim("R11", "layers of least influence cost less loss than a block", "cut-9", "cut-9-block"),
    Claim("R11", "... the block keeps more last words", "cut-9-block", "cut-9", "accuracy"),
    Claim(
        "R12", "pruned by importance beats pruned at random, after KD", "kd", "randomly-pruned-kd"
    ),
)


def main() -> int:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("teacher", help="folder, hub id or .gguf file; of SmolLM2-135M's shape")
    add("--data", required=True, help="text to score and distill on")
    add("--held-out", required=True, help="text to evaluate on")
    add("--passages", required=True, help="`context` and `target`, for last words")
    add("--tokens", type=int, default=24_576, help="to distill each arm on (default: 24576)")
    add("--samples", type=int, default=32, help="rows of 256 tokens to score on (default: 32)")
    add("--rows", type=int, default=32, help="rows of 256 tokens to evaluate on (default: 32)")
    add("--limit", type=int, default=300, help="passages (default: 300)")
    add("--seeds", type=int, default=3, help="(default: 3)")
    add("--only", action="append", metavar="ARM", choices=list(ARMS), help="repeatable")
    add("-o", dest="out", type=Path, required=True, help="folder for the figures")
    options = parser.parse_args()
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    bench = _Bench(options)
    for seed in range(options.seeds):
        for name, arm in ARMS.items():
            if not options.only or name in options.only:
                bench.measure(name, arm, seed)
    print(describe_machine(torch.get_num_threads()))
    print(f"{options.tokens:,} tokens per arm, {options.seeds} seeds\n")
    print(table(bench.found(options.seeds)))


class _Bench:
    """Teacher, data and the figures so far, for one set of options."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.tokenizer: Tokenizer = load_tokenizer(options.teacher)
        checkpoint = open_checkpoint(options.teacher)
        self.dtype = faster_type(checkpoint.spec, device())
        self.teacher: Model = load_model(checkpoint, dtype=self.dtype)
        self.inputs: dict[str, Any] = {
            "teacher": checkpoint.sha256(),
            "dtype": str(self.dtype),
            "files": file_hashes((options.data, options.held_out, options.passages)),
            "tokens": options.tokens,
            "samples": options.samples,
            "rows": options.rows,
            "limit": options.limit,
        }
        self.data = self._packed(options.data, "data", None)
        held = self._packed(options.held_out, "held-out", options.rows * _LENGTH)
        self.held_out = held.batch(range(len(held)))
        self.reference = HeldOut(self.teacher, self.held_out)
        self.figures = Figures(self.out / "figures.json")
        self.corrected: dict[int, Model] = {}

    def _inputs(self, arm: Arm) -> dict[str, Any]:
        return self.inputs | {"arm": msgspec.to_builtins(arm)}

    def found(self, seeds: int) -> dict[str, dict[str, dict[str, float]]]:
        """Figures of these options by arm and seed."""
        return {
            name: {
                str(seed): figures
                for seed in range(seeds)
                if (figures := self.figures.get(f"{name}/{seed}", self._inputs(arm)))
            }
            for name, arm in ARMS.items()
        }

    def measure(self, name: str, arm: Arm, seed: int) -> None:
        """Measure one arm with one seed, unless its figures exist."""
        inputs = self._inputs(arm)
        if self.figures.get(f"{name}/{seed}", inputs):
            return
        student = self._student(arm, seed, self.out / f"{name}-{seed}-{digest(inputs)}")
        student = student.to(self.dtype)
        figures = {
            "loss": text_loss(list(self.held_out.split(4)))(student),
            "kl": self.reference.divergence(student),
        }
        if any(
            name in (claim.better, claim.worse) for claim in CLAIMS if claim.figure == "accuracy"
        ):
            tasks = parse_tasks([f"last_word:{self.options.passages}"])
            scores = evaluate(student, self.tokenizer, tasks, limit=self.options.limit)
            figures["accuracy"] = next(iter(scores.values())).value
        self.figures.put(f"{name}/{seed}", inputs, figures)
        shown = ", ".join(f"{key} {value:.4f}" for key, value in figures.items())
        print(f"{name} seed {seed}: {shown}", file=sys.stderr, flush=True)

    def _student(self, arm: Arm, seed: int, folder: Path) -> Model:
        share = {"tokens": self.options.tokens // arm.steps}
        model = self.teacher
        before = _FULL
        for step, shape in enumerate(_steps_to(arm.shape, _FULL, arm.steps)):
            model = self._pruned(model, before, shape, arm, seed)
            if arm.trained:
                model = self._trained(model, arm, seed + 1000 * step, folder, share)
            before = shape
        return model

    def _pruned(self, model: Model, before: Shape, shape: Shape, arm: Arm, seed: int) -> Model:
        if arm.weights != "pruned":
            return WEIGHTS[arm.weights](model, shape, self._scores(model, arm, seed), seed)
        for between in _steps_to(shape, before, arm.rounds):
            layers = None
            if arm.block:
                removed = before.num_hidden_layers - between.num_hidden_layers
                few = list(self._samples(seed).split(4))[:2]
                layers = layers_without_best_block(model, removed, text_loss(few))
            model = prune(model, between, self._scores(model, arm, seed), layers=layers)
        return model

    def _trained(
        self, student: Model, arm: Arm, seed: int, folder: Path, over: dict[str, Any]
    ) -> Model:
        settings = self._settings(seed, **arm.settings, **over)
        teacher: Any = self._corrected(seed) if arm.corrected else self.teacher
        data = self.data
        if arm.cache is not None:
            # Only the rows that are trained on.
            rows = np.random.default_rng((seed, 0)).permutation(len(data))
            data = data.only(rows[: settings.steps * _STEP_ROWS])
            teacher = build_cache(teacher, "teacher", data, arm.cache, folder / "cache")
        student = student.float()
        for _ in distill(student, teacher, data, settings, folder / "checkpoints"):
            pass
        shutil.rmtree(folder)
        return student.eval()

    def _corrected(self, seed: int) -> Model:
        """The teacher after a short fine-tuning on the data, at a fifth of the learning rate."""
        if seed not in self.corrected:
            model = load_model(self.options.teacher)
            settings = self._settings(seed + 1000, cross_entropy=1.0, learning_rate=_RATE / 5)
            folder = self.out / f"corrected-{seed}-{digest(self.inputs)}"
            for _ in distill(model, None, self.data, settings, folder):
                pass
            shutil.rmtree(folder)
            self.corrected = {seed: model.to(self.dtype)}
        return self.corrected[seed]

    def _settings(self, seed: int, **over: Any) -> Distillation:
        known = {
            "tokens": self.options.tokens,
            "sequence_length": _LENGTH,
            "bf16": self.dtype == torch.bfloat16,
            "batch_size": _STEP_ROWS,
            "micro_batch": _STEP_ROWS,
            "learning_rate": _RATE,
            "seed": seed,
        }
        # Short runs need no checkpoint before the last step.
        return msgspec.convert(known | {"checkpoint_steps": 10**6} | over, Distillation)

    def _scores(self, model: Model, arm: Arm, seed: int) -> Importance:
        return score(model, self._samples(seed).split(8), Aggregation(*arm.aggregation))

    def _samples(self, seed: int) -> torch.Tensor:
        rows = np.random.default_rng((seed, 1)).choice(
            len(self.data), self.options.samples, replace=False
        )
        return self.data.batch(rows.tolist())

    def _packed(self, source: str, name: str, max_tokens: int | None) -> PackedTokens:
        path = self.out / f"{name}-{digest(self.inputs)}.npy"
        if path.exists():
            return PackedTokens.load(path)
        return pack(read_documents(source), self.tokenizer, _LENGTH, path, max_tokens=max_tokens)


def _steps_to(shape: Shape, full: Shape, rounds: int) -> Iterator[Shape]:
    """Shapes from the full one to a shape, in equal steps."""
    for number in range(1, rounds + 1):
        sizes = {}
        for field, start in full.sizes.items():
            end = shape.sizes[field]
            sizes[field] = start + round((end - start) * number / rounds)
        yield Shape(**sizes)


def table(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    """Claims with the mean difference between the arms, its standard error, and a verdict."""
    head = ["| | claim | better | worse | difference | verdict |", "|---|---|---:|---:|---:|---|"]
    return "\n".join(head + [_row(claim, figures) for claim in CLAIMS])


def _row(claim: Claim, figures: dict[str, dict[str, dict[str, float]]]) -> str:
    arms = [figures.get(name, {}) for name in (claim.better, claim.worse)]
    seeds = sorted(arms[0].keys() & arms[1].keys())
    if not seeds:
        return f"| {claim.number} | {claim.text} | | | | not run |"
    sides = [[arm[seed][claim.figure] for seed in seeds] for arm in arms]
    sign = 1 if claim.figure == "accuracy" else -1
    gains = [sign * (better - worse) + claim.margin for better, worse in zip(*sides, strict=True)]
    mean = sum(gains) / len(gains)
    spread = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / max(1, len(gains) - 1))
    error = spread / math.sqrt(len(gains))
    better, worse = (sum(side) / len(side) for side in sides)
    return (
        f"| {claim.number} | {claim.text} | {claim.figure} {better:.4f} | {worse:.4f} | "
        f"{better - worse:+.4f} ± {error:.4f} | {verdict(gains, mean, error)} |"
    )


def verdict(gains: list[float], mean: float, error: float) -> str:
    """The verdict over all seeds; one alone has no standard error, nor do seeds without effect."""
    if len(gains) < 2:
        return "one seed"
    if len(set(gains)) == 1:
        return "one measurement: seeds change nothing"
    if all(gain > 0 for gain in gains) and mean > 2 * error:
        return "holds"
    if all(gain < 0 for gain in gains) and -mean > 2 * error:
        return "does not hold"
    return "too small to tell"


if __name__ == "__main__":
    raise SystemExit(main())
