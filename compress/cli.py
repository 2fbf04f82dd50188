"""`edge-compress`: a teacher in, a student that fits the device out."""

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgelm.cli import positive_int, run_command, size_argument
from edgelm.compress.run.distributed import is_main_process
from edgelm.errors import BadInput

if TYPE_CHECKING:
    from edgelm.compress.recipe import Recipe

_EPILOG = """\
examples:
  edge-compress recipe.toml -o student/
  edge-compress HuggingFaceTB/SmolLM2-135M-Instruct --target jetson-orin-nano --min-tok-s 30 \\
    --data train.jsonl --tokens 100M -o student/
  edge-export student/ --target jetson-orin-nano -o bundle/

Start the same command again after a kill: it goes on where it was, and repeats only what changed.
Many GPUs: accelerate launch -m edgelm.compress.cli recipe.toml -o student/
exit codes: 0 done, 2 bad input, 3 a fault of edgelm's
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="edge-compress",
        description="Prune a language model to a device's budget and distil it (Minitron).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", help="recipe (.toml), or the teacher: folder, hub id or .gguf file")
    add("-o", "--output", type=Path, metavar="DIR", required=True, help="folder of the student")
    add("--run", type=Path, metavar="DIR", help="folder of the stages (default: OUTPUT.run)")
    group = parser.add_argument_group("without a recipe")
    add = group.add_argument
    add(
        "--data",
        action="append",
        default=[],
        metavar="TEXT",
        help="JSONL, text, Parquet; repeatable",
    )
    add("--target", default="cpu", help="device whose budget counts (default: cpu)")
    add("--precision", default="auto", help="that the student will be exported at (default: auto)")
    add("--context", type=positive_int, metavar="N", help="tokens that its cache holds")
    add("--min-tok-s", type=float, metavar="X", help="tokens per second that it must reach")
    add("--max-memory", type=size_argument, metavar="SIZE", help="memory it may take, e.g. 2GB")
    add("--max-ttft", type=float, metavar="MS", help="time to the first token, prompt of 512")
    add("--parameters", type=float, metavar="X", help="outside the embeddings: share or number")
    add("--shape", metavar="K=N,...", help="sizes instead of a search, e.g. intermediate_size=1024")
    add(
        "--tokens", type=size_argument, default="2M", metavar="N", help="to distil on (default: 2M)"
    )
    add(
        "--evaluate",
        action="append",
        default=[],
        metavar="TASK",
        help="e.g. perplexity:valid.jsonl",
    )
    add("--print-recipe", action="store_true", help="print what these options mean, and stop")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    options = parser().parse_args(arguments)
    return run_command(lambda: _compress(options))


def _compress(options: argparse.Namespace) -> None:
    from edgelm.compress.recipe import Recipe, read_recipe, recipe_toml

    if options.source.endswith(".toml"):
        _refuse_options(options)
        recipe = read_recipe(Path(options.source))
    else:
        try:
            recipe = msgspec.convert(default_recipe(options), Recipe)
        except msgspec.ValidationError as error:
            raise BadInput(f"these options make no recipe: {error}") from None
    if options.print_recipe:
        recipe.check()
        print(recipe_toml(recipe), end="")
        return
    from edgelm.compress.pipeline import compress_model

    _quieten()
    line = _Line()
    record = compress_model(
        recipe, options.output, run=options.run, progress=line.show, report=line.keep
    )
    line.end()
    if not is_main_process():
        return
    share = record.parameters / record.teacher_parameters
    size = f"{record.parameters / 1e6:,.1f} M parameters, {share:.0%} of the teacher's"
    print(f"{options.output}: {size}")
    for task, figures in record.evaluation.items():
        shown = ", ".join(f"{who} {figure.value:.4g}" for who, figure in figures.items())
        print(f"  {task}: {shown}")
    print(f"next: {export_command(recipe, options.output)}")


def export_command(recipe: "Recipe", student: Path) -> str:
    """How to export the student; after QAD, to the very grid that it was trained on."""
    from edgelm.checkpoint.source import open_checkpoint

    words = ["edge-export", str(student), "--target", recipe.target.name]
    if recipe.target.engine:
        words += ["--engine", recipe.target.engine]
    if recipe.qad and not recipe.align:
        layers, head = recipe.qad_precisions
        words += ["--precision", recipe.qad.precision, "--method", "rtn"]
        if recipe.qad_group_size is not None:
            words += ["--group-size", str(recipe.qad_group_size)]
        if recipe.qad.symmetric is not None:
            words.append("--symmetric" if layers.symmetric else "--no-symmetric")
        if head != layers:
            words += ["--layer", f"lm_head={recipe.qad.head}"]
            if not open_checkpoint(student).spec.tie_word_embeddings:
                words += ["--layer", f"embedding={recipe.qad.head}"]
    return shlex.join([*words, "-o", "bundle/"])


def _quieten() -> None:
    """Libraries tell of every file that they write; what matters is told here."""
    import logging

    from transformers.utils.logging import disable_progress_bar

    logging.getLogger("accelerate").setLevel(logging.WARNING)
    disable_progress_bar()


def default_recipe(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe of the command line's options: importance, search, prune, distil, evaluate."""
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
    if options.shape:
        recipe["prune"] = _shape(options.shape)
    else:
        recipe["search"] = {}
    return recipe | {"evaluate": {"tasks": options.evaluate}}


def _refuse_options(options: argparse.Namespace) -> None:
    """A recipe says it all: an option beside it would be ignored."""
    defaults = vars(parser().parse_args([options.source, "-o", "x"]))
    for name, value in vars(options).items():
        if name not in ("output", "run", "print_recipe") and value != defaults[name]:
            raise BadInput(
                f"--{name.replace('_', '-')} stands beside a recipe; write it into {options.source}"
            )


def _shape(text: str) -> dict[str, int]:
    sizes = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if not value.isdigit():
            raise BadInput(f"--shape {text!r}: expected e.g. num_hidden_layers=26,hidden_size=512")
        sizes[name.strip()] = int(value)
    return sizes


class _Line:
    """Progress on one line of standard error, which what is kept scrolls past."""

    def __init__(self) -> None:
        self.width = 0
        self.shown = 0.0
        self.live = sys.stderr.isatty()
        self.first = is_main_process()

    def show(self, text: str) -> None:
        now = time.monotonic()
        # Into a file, a line every ten seconds is enough.
        if not self.first or now - self.shown < (0.1 if self.live else 10):
            return
        self.shown = now
        if self.live:
            print(f"\r{text:<{self.width}}", end="", file=sys.stderr, flush=True)
            self.width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def keep(self, text: str) -> None:
        self.end()
        if self.first:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.live and self.width:
            print(f"\r{'':<{self.width}}\r", end="", file=sys.stderr, flush=True)
        self.width = 0


if __name__ == "__main__":
    raise SystemExit(main())
