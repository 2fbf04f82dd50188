"""`edge-compress`: prune and distill a teacher into a student that fits a device."""

import argparse
import math
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgelm.cli import bytes_argument, positive_int, run_command, size_argument
from edgelm.compress.run.distributed import is_main_process, world_size
from edgelm.errors import BadInput, DoesNotFit
from edgelm.reasons import reason

if TYPE_CHECKING:
    from edgelm.compress.recipe import Recipe

_WITH_A_RECIPE = (
    *("output", "run", "until", "only"),
    *("print_recipe", "dry_run", "world_size", "tflops"),
)
_BUDGET = {"parameters", "max_memory_bytes", "min_tokens_per_second", "max_first_token_ms"}
_OPTIONS = {  # by the fields that they set
    "teacher": "the teacher",
    "data": "--data",
    "target.name": "--target",
    "target.precision": "--precision",
    "target.context": "--context",
    "target.parameters": "--parameters",
    "target.max_memory_bytes": "--max-memory",
    "target.min_tokens_per_second": "--min-tok-s",
    "target.max_first_token_ms": "--max-ttft",
    "prune": "--shape",
    "distill.tokens": "--tokens",
    "evaluate.tasks": "--evaluate",
}
_EPILOG = """\
examples:
  edge-compress recipe.toml -o student/
  edge-compress HuggingFaceTB/SmolLM2-135M-Instruct --target jetson-orin-nano --min-tok-s 30 \\
    --data train.jsonl --tokens 100M -o student/
  edge-compress recipe.toml -o student/ --dry-run --world-size 256 --tflops 400
  edge-export student/ --target jetson-orin-nano -o bundle/

Run the same command again after an interruption: it resumes, and reruns only what changed.
Several GPUs: accelerate launch -m edgelm.compress.cli recipe.toml -o student/
To prune on one GPU and train on many, end the first run with --until prune.
exit codes: 0 done, 2 bad input, 3 a bug in edgelm
"""


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    parser = argparse.ArgumentParser(
        prog="edge-compress",
        description="Prune a language model to a device's budget and distill it (Minitron).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", help="recipe (.toml), or the teacher: folder, hub id or .gguf file")
    add("-o", "--output", type=Path, metavar="DIR", required=True, help="folder for the student")
    add(
        "--run",
        type=Path,
        metavar="DIR",
        help="folder for the stages' results (default: OUTPUT.run)",
    )
    stages = parser.add_argument_group("a part of the stages").add_mutually_exclusive_group()
    stages.add_argument(
        "--until",
        metavar="STAGE",
        help="end after this stage, e.g. prune; the same command without it continues",
    )
    stages.add_argument(
        "--only",
        metavar="STAGE",
        help="run this stage alone, e.g. evaluate; those before it have to be done",
    )
    group = parser.add_argument_group("without a recipe")
    add = group.add_argument
    add(
        "--data",
        action="append",
        default=[],
        metavar="TEXT",
        help="training text: JSONL, text or Parquet; repeatable",
    )
    add("--target", default="cpu", help="device that sets the budget (default: cpu)")
    add("--precision", default="auto", help="precision of the export (default: auto)")
    add("--context", type=positive_int, metavar="N", help="context length in tokens")
    add("--min-tok-s", type=float, metavar="X", help="minimum tokens per second")
    add("--max-memory", type=bytes_argument, metavar="SIZE", help="maximum memory, e.g. 2GB")
    add(
        "--max-ttft",
        type=float,
        metavar="MS",
        help="maximum time to first token for a prompt of 512 tokens",
    )
    add(
        "--parameters",
        type=float,
        metavar="X",
        help="maximum number of parameters without embeddings; up to 1, a share of the teacher's",
    )
    add("--shape", metavar="K=N,...", help="sizes instead of a search, e.g. intermediate_size=1024")
    tokens = "tokens to distill on (default: 2M)"
    add("--tokens", type=size_argument, default="2M", metavar="N", help=tokens)
    task = "evaluate teacher and student, e.g. perplexity:valid.jsonl; repeatable"
    add("--evaluate", action="append", default=[], metavar="TASK", help=task)
    add("--print-recipe", action="store_true", help="print these options as a recipe and exit")
    group = parser.add_argument_group("predict the cost of a run")
    add = group.add_argument
    add(
        "--dry-run",
        action="store_true",
        help="check everything, print tokens, operations, memory, disk and time of every stage "
        "(no weights are read), and exit",
    )
    add(
        "--world-size",
        type=positive_int,
        metavar="N",
        help="number of processes (GPUs) to predict for; FSDP2 shards over up to 8",
    )
    add(
        "--tflops",
        type=float,
        metavar="X",
        help="speed of one process to predict for, e.g. 400 for 40%% of an H100's 989 in bf16 "
        "(default: measured on this machine)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    options = parser().parse_args(arguments)
    return run_command(lambda: _compress_as_one(options))


def _compress_as_one(options: argparse.Namespace) -> None:
    """Compress; what all processes raise together is printed by the main one."""
    try:
        _compress(options)
    except DoesNotFit as error:
        if is_main_process() or not getattr(error, "of_all", False):
            raise
        raise SystemExit(2) from None


def _compress(options: argparse.Namespace) -> None:
    from edgelm.compress.recipe import Recipe, read_recipe, recipe_toml

    if options.source.endswith(".toml"):
        _reject_options(options)
        recipe = read_recipe(Path(options.source))
    else:
        try:
            recipe = msgspec.convert(default_recipe(options), Recipe)
        except msgspec.ValidationError as error:
            raise BadInput(_as_option(reason(error))) from None
    if options.print_recipe:
        recipe.check()
        print(recipe_toml(recipe), end="")
        return
    _check(recipe, options)
    if options.dry_run:
        print(_dry_run(recipe, options))
        return
    from edgelm.compress.pipeline import compress_model, run_stages_until

    _silence_libraries()
    line = _ProgressLine()
    if last := options.until or options.only:
        from edgelm.compress.run.run_folder import Part

        part = Part(last, only=options.only is not None)
        run_stages_until(
            recipe, options.output, part, run=options.run, progress=line.show, report=line.log
        )
        line.end()
        if is_main_process():
            option = "--only" if part.only else "--until"
            print(f"{last}: done; the same command without {option} runs the other stages")
        return
    record = compress_model(
        recipe, options.output, run=options.run, progress=line.show, report=line.log
    )
    line.end()
    if not is_main_process():
        return
    share = record.parameters / record.teacher_parameters
    size = f"{record.parameters / 1e6:,.1f} M parameters, {share:.0%} of the teacher's"
    print(f"{options.output}: {size}")
    for task, figures in record.evaluation.items():
        shown = ", ".join(f"{who} {figure.text}" for who, figure in figures.items())
        ratio = figures["student"].ratio_text if "student" in figures else ""
        print(f"  {task}: {shown}{ratio and f' ({ratio})'}")
    print(f"next: {export_command(recipe, options.output)}")


def _as_option(problem: str) -> str:
    """What msgspec says of a field of the recipe, as of the option that it is from."""
    said, _, place = problem.partition(" - at `$.")
    field = place.rstrip("`").split("[")[0]
    table, _, name = field.partition(".")
    option = _OPTIONS.get(field)
    if option is None and table in _OPTIONS:
        option = f"{_OPTIONS[table]} {name}".rstrip()
    return f"{option}: {said[:1].lower()}{said[1:]}" if option else f"invalid options: {problem}"


def _check(recipe: "Recipe", options: argparse.Namespace) -> None:
    """Refuse what cannot work within a second, before torch is loaded."""
    from edgelm.checkpoint.source import read_spec
    from edgelm.compress.preflight import preflight
    from edgelm.compress.recipe.stage_names import check_stage_name

    if (options.world_size or options.tflops) and not options.dry_run:
        raise BadInput("--world-size and --tflops belong to --dry-run; add it")
    if options.tflops is not None and not 0 < options.tflops < math.inf:
        raise BadInput(f"--tflops {options.tflops:g}: expected a number above 0")
    for name in (options.until, options.only):
        if name is not None:
            check_stage_name(recipe, name)
    if (options.until or options.only) and options.dry_run:
        raise BadInput("--dry-run describes all stages; remove --until or --only")
    processes = options.world_size or world_size()
    preflight(recipe, read_spec(recipe.teacher), processes=processes)


def _dry_run(recipe: "Recipe", options: argparse.Namespace) -> str:
    from edgelm.checkpoint.source import read_spec
    from edgelm.compress.preflight import following_sizes
    from edgelm.compress.start_plan import MOST_SHARDS, plan_stages, plan_table

    spec, processes = read_spec(recipe.teacher), options.world_size or 1
    bf16, speed = recipe.arithmetic != "fp32", 1e12 * (options.tflops or 0)
    if not speed:
        from edgelm.compress.arithmetic import TORCH_TYPES, measure_arithmetic, measured_speed
        from edgelm.compress.run.distributed import device

        sizes = spec.hidden_size, spec.intermediate_size
        chosen = recipe.arithmetic
        if chosen == "auto":
            chosen = measure_arithmetic(device(), *sizes).chosen
        bf16 = chosen == "bf16"
        speed = measured_speed(device(), TORCH_TYPES[chosen], *sizes)
    shards = min(MOST_SHARDS, processes)
    stages = plan_stages(recipe, spec, bf16=bf16, sharded_over=shards)
    table = plan_table(stages, operations_per_second=speed, processes=processes)
    line = following_sizes(recipe, spec)
    return f"{line}\n{table}" if line else table


def export_command(recipe: "Recipe", student: Path) -> str:
    """The command that exports the student; after QAD, to the grid that it was trained on.

    A draft model goes into the bundle that it drafts for.
    """
    words = ["edge-export", str(student)]
    if recipe.draft:  # target and engine are the bundle's
        words += ["--draft-for", "bundle/"]
    else:
        words += ["--target", recipe.target.name]
        if recipe.target.engine:
            words += ["--engine", recipe.target.engine]
    if not recipe.align:
        words += _grid_options(recipe, student)
    return shlex.join(words if recipe.draft else [*words, "-o", "bundle/"])


def _grid_options(recipe: "Recipe", student: Path) -> list[str]:
    """The options of the export for the grid that QAD trained on; none without QAD."""
    from edgelm.checkpoint.source import read_spec
    from edgelm.compress.qad.precisions import qad_precisions

    if not recipe.qad:
        return []
    spec = read_spec(student)
    layers, head = qad_precisions(recipe, spec)
    words = ["--precision", recipe.qad.precision, "--method", "rtn"]
    if recipe.qad_group_size is not None:
        words += ["--group-size", str(layers.group_size)]
    if recipe.qad.symmetric is not None:
        words.append("--symmetric" if layers.symmetric else "--no-symmetric")
    if head != layers:
        words += ["--layer", f"lm_head={recipe.qad.head}"]
        if not spec.tie_word_embeddings:
            words += ["--layer", f"embedding={recipe.qad.head}"]
    return words


def _silence_libraries() -> None:
    """Libraries log every file that they write; progress is reported here instead."""
    import logging

    from transformers.utils.logging import disable_progress_bar

    logging.getLogger("accelerate").setLevel(logging.WARNING)
    disable_progress_bar()


def default_recipe(options: argparse.Namespace) -> dict[str, Any]:
    """The options as a recipe: search or prune, distill, evaluate.

    Raises:
        BadInput: options that are missing or contradict each other.
    """
    limits = {
        "parameters": options.parameters,
        "max_memory_bytes": options.max_memory,
        "min_tokens_per_second": options.min_tok_s,
        "max_first_token_ms": options.max_ttft,
        "context": options.context,
    }
    target = {"name": options.target, "precision": options.precision}
    recipe: dict[str, Any] = {
        "teacher": options.source,
        "data": options.data,
        "target": target | {name: limit for name, limit in limits.items() if limit is not None},
        "distill": {"tokens": options.tokens},
    }
    if not options.data:
        raise BadInput("no training text: give --data FILE (JSONL, text or Parquet)")
    if options.shape:
        recipe["prune"] = _shape(options.shape)
    elif not recipe["target"].keys() & _BUDGET:
        raise BadInput(
            "the budget is missing: give --parameters, --max-memory, --min-tok-s or "
            "--max-ttft to search a shape within it, or the shape itself with --shape"
        )
    else:
        recipe["search"] = {}
    return recipe | {"evaluate": {"tasks": options.evaluate}}


def _reject_options(options: argparse.Namespace) -> None:
    """Raise BadInput for options that a recipe would override."""
    defaults = vars(parser().parse_args([options.source, "-o", "x"]))
    for name, value in vars(options).items():
        if name not in _WITH_A_RECIPE and value != defaults[name]:
            raise BadInput(
                f"--{name.replace('_', '-')} cannot be combined with a recipe; set it in "
                f"{options.source}"
            )


def _shape(text: str) -> dict[str, int]:
    sizes = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if not value.isdigit():
            raise BadInput(f"--shape {text!r}: expected e.g. num_hidden_layers=26,hidden_size=512")
        sizes[name.strip()] = int(value)
    return sizes


class _ProgressLine:
    """Progress on one line of standard error, below the log lines."""

    def __init__(self) -> None:
        self.width = 0
        self.shown = 0.0
        self.live = sys.stderr.isatty()
        self.is_main = is_main_process()

    def show(self, text: str) -> None:
        now = time.monotonic()
        # In a file, one line every ten seconds is enough.
        if not self.is_main or now - self.shown < (0.1 if self.live else 10):
            return
        self.shown = now
        if self.live:
            print(f"\r{text:<{self.width}}", end="", file=sys.stderr, flush=True)
            self.width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def log(self, text: str) -> None:
        self.end()
        if self.is_main:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.live and self.width:
            print(f"\r{'':<{self.width}}\r", end="", file=sys.stderr, flush=True)
        self.width = 0


if __name__ == "__main__":
    raise SystemExit(main())
