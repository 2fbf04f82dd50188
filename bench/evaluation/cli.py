"""`edge-eval`: tasks on a bundle's own engine, compared with its source."""

import argparse
import shlex
import sys
import time
from pathlib import Path

from edgelm.cli import positive_int, run_command
from edgelm.errors import BadInput

_EPILOG = """\
tasks: KIND:FILE, where FILE has a JSON object per line; KIND alone uses built-in rows
  perplexity:FILE       perplexity of documents (field `text`)
  kl:FILE               KL divergence from the checkpoint of --against, on documents
  last_word:FILE        predict the last word (LAMBADA: `context`, `target`)
  multiple_choice:FILE  choose an answer (`question`, `choices`, `answer`)
  ifeval:FILE           follow verifiable instructions (IFEval)
  lm-eval:TASK          a task of lm-evaluation-harness; FOLDER/TASK for local YAML files
  rag, rag:FILE         answer from documents, in ChatRAG-Bench's format
  functions[:FILE]      call functions, in BFCL's format
  rag_choice, function_choice   the same by likelihood, for small models
  needle                find a sentence in a long text, at several depths and lengths
  mt_bench:FILE         dialogs (`turns`), which --judge compares with those of --against
  persona               play a role over several turns

A task that was finished in --out is not run again. All figures have standard errors. With --against
both models answer the same questions, and the errors are those of the paired differences.

examples:
  edge-eval bundle/ --tasks last_word:lambada.jsonl ifeval:ifeval.jsonl --out eval/
  edge-eval bundle/ --against model/ --tasks perplexity:valid.jsonl --limit 100 --out eval/

exit codes: 0 done, 2 bad input, 3 a bug in edgelm
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
    add("--tasks", nargs="+", required=True, metavar="TASK", help="tasks, listed below")
    add("--against", metavar="SOURCE", help="a checkpoint or bundle to compare with")
    add(
        "--judge",
        metavar="JUDGE",
        help="model that compares answers, for mt_bench: a bundle, or a URL of OpenAI's API that "
        "ends with /v1",
    )
    add(
        "--judge-model",
        default="judge",
        metavar="NAME",
        help="name of the model at a --judge URL (default: judge)",
    )
    add("--limit", type=positive_int, metavar="N", help="only the first N rows of each task")
    add(
        "--max-new-tokens",
        type=positive_int,
        default=1280,
        metavar="N",
        help="maximum number of tokens of an answer (default: 1280)",
    )
    add("--threads", type=positive_int, metavar="N", help="CPU threads (default: physical cores)")
    add(
        "--sequences",
        type=positive_int,
        metavar="N",
        help="answers that each process generates at a time, for a bundle on a CPU (default: 8 if "
        "the logits then stay the same bit for bit, as with 8-bit weights; else 1)",
    )
    add(
        "--record",
        action="store_true",
        help="write the result into the bundle: evaluation.json and a table in its README.md",
    )
    add(
        "--out",
        type=Path,
        default=Path("evaluation"),
        metavar="DIR",
        help="folder for the results (default: evaluation/)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of `edge-eval`."""
    arguments = parser().parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    return run_command(lambda: _run(arguments, shlex.join(["edge-eval", *given])))


def _run(arguments: argparse.Namespace, command: str) -> None:
    from edgelm.bench.evaluation.results.report import write_report
    from edgelm.bench.evaluation.results.text_table import text_table
    from edgelm.bench.evaluation.run import EvaluationRequest, run_evaluation
    from edgelm.bench.evaluation.subjects import is_bundle
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
        sequences=arguments.sequences,
        judge=arguments.judge,
        judge_model=arguments.judge_model,
    )
    evaluation = run_evaluation(request, _Progress().show)
    write_report(evaluation, arguments.out)
    if arguments.record:
        from edgelm.bench.evaluation.results.bundle_record import record_in_bundle

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
