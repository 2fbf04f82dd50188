"""`edge-eval`: tasks on a bundle's own engine, beside its source."""

import argparse
import shlex
import sys
import time
from pathlib import Path

from edgelm.cli import positive_int, run_command
from edgelm.errors import BadInput

_EPILOG = """\
tasks: KIND:FILE, or KIND alone where rows are built in
  perplexity:FILE       of text; documents with a field `text`
  kl:FILE               KL divergence from the checkpoint of --against, on text
  last_word:FILE        `context`, `target` (LAMBADA)
  multiple_choice:FILE  `question`, `choices`, `answer`
  ifeval:FILE           verifiable instructions (IFEval)
  lm-eval:TASK          of lm-evaluation-harness; FOLDER/TASK for local YAML files
  rag, rag:FILE         answers from documents, in ChatRAG-Bench's form
  functions[:FILE]      function calling, in BFCL's form
  rag_choice, function_choice   the same by likelihood, for small models
  needle                a sentence in a long context, at depths and lengths up to the bundle's
  mt_bench:FILE         `turns`: dialogs that --judge compares with those of --against
  persona               role play over several turns

A task that was finished in --out is not run again. Figures have standard errors, and with --against
the errors of paired differences: both models answer the same questions.

examples:
  edge-eval bundle/ --tasks last_word:lambada.jsonl ifeval:ifeval.jsonl --out eval/
  edge-eval bundle/ --against model/ --tasks perplexity:valid.jsonl --limit 100 --out eval/
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="edge-eval",
        description="Evaluate a bundle on its engine, or a checkpoint, on tasks.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", help="a bundle, or a checkpoint: a folder, a hub id or a .gguf file")
    add("--tasks", nargs="+", required=True, metavar="TASK", help="what to evaluate, see below")
    add("--against", metavar="SOURCE", help="a checkpoint or bundle to compare with")
    add(
        "--judge", metavar="JUDGE", help="for mt_bench: a URL up to /v1 (OpenAI's API), or a bundle"
    )
    add("--judge-model", default="judge", metavar="NAME", help="the judge's name at its URL")
    add("--limit", type=positive_int, metavar="N", help="the first N rows of each task")
    add(
        "--max-new-tokens",
        type=positive_int,
        default=1280,
        metavar="N",
        help="limit of a generated answer (default: 1280)",
    )
    add("--threads", type=positive_int, metavar="N", help="CPU threads (default: physical cores)")
    add(
        "--record",
        action="store_true",
        help="write the result into the bundle: evaluation.json and a table in its README.md",
    )
    add("--out", type=Path, default=Path("evaluation"), metavar="DIR", help="default: evaluation/")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of `edge-eval`."""
    arguments = parser().parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    return run_command(lambda: _run(arguments, shlex.join(["edge-eval", *given])))


def _run(arguments: argparse.Namespace, command: str) -> None:
    from edgelm.bench.evaluation.report import write_report
    from edgelm.bench.evaluation.run import EvaluationRequest, run_evaluation
    from edgelm.bench.evaluation.subjects import is_bundle
    from edgelm.bench.evaluation.text_table import text_table
    from edgelm.bench.machine import describe_machine
    from edgelm.compress.evaluation.task_names import parse_tasks
    from edgelm.devices.detection.threads import physical_cores

    if arguments.record and not is_bundle(arguments.model):
        raise BadInput(f"--record: {arguments.model} is not a bundle; only a bundle has a record")
    request = EvaluationRequest(
        model=arguments.model,
        tasks=tuple(parse_tasks(arguments.tasks)),
        out=arguments.out,
        command=command,
        machine=describe_machine(arguments.threads or physical_cores()).summary,
        against=arguments.against,
        limit=arguments.limit,
        max_new_tokens=arguments.max_new_tokens,
        threads=arguments.threads,
        judge=arguments.judge,
        judge_model=arguments.judge_model,
    )
    evaluation = run_evaluation(request, _Progress().show)
    write_report(evaluation, arguments.out)
    if arguments.record:
        from edgelm.bench.evaluation.record import record_in_bundle

        if record_in_bundle(Path(arguments.model), evaluation):
            print(
                "the bundle changed, so its signature was removed; sign it again: edge-export "
                f"--sign {arguments.model} KEY",
                file=sys.stderr,
            )
    print(text_table(evaluation))
    print(f"written to {arguments.out}/", file=sys.stderr)


class _Progress:
    """At most a line every few seconds."""

    _INTERVAL = 5.0

    def __init__(self) -> None:
        self._last = 0.0

    def show(self, line: str) -> None:
        now = time.monotonic()
        if now - self._last >= self._INTERVAL:
            self._last = now
            print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
