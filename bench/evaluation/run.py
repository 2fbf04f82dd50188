"""Run tasks on a model and on its source; finished tasks are kept in the output folder.

One model is loaded at a time: the subject and then its source, so that a source that fills the
memory can be used. Only KL between two checkpoints needs both at once.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path

import msgspec

import edgelm
from edgelm.bench.evaluation.judge import judge_dialogs, open_judge
from edgelm.bench.evaluation.results.records import (
    SCHEMA_VERSION,
    Evaluation,
    Subject,
    TaskItems,
    TaskResult,
)
from edgelm.bench.evaluation.subjects import (
    OpenSubject,
    is_bundle,
    longest_context,
    open_subject,
)
from edgelm.checkpoint.source import open_checkpoint
from edgelm.compress.evaluation.metrics import Metric
from edgelm.compress.evaluation.run_tasks import check_tasks, run_task, text_rows
from edgelm.compress.evaluation.task_names import Task
from edgelm.compress.evaluation.tasks.mt_bench import dialogs, read_turns
from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.errors import BadInput
from edgelm.files.hashing import file_sha256
from edgelm.files.replacing import replacing
from edgelm.files.staging import check_output_folder
from edgelm.runtime.loading import check_sequences

Progress = Callable[[str], None]
_ITEMS = "items"
_OF_LENGTH = ("perplexity", "kl", "needle")  # tasks whose rows fit the context


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate.

    model and against: a bundle's folder, or a checkpoint. tasks: of `parse_tasks`. out: the folder
    of results. machine: described for the report. sequences: answers that each process of a bundle
    writes at a time; None: see `open_subject`. judge: a URL or a bundle, for `mt_bench`, and
    judge_model the model's name at the URL.
    """

    model: str
    tasks: tuple[Task, ...]
    out: Path
    command: str
    machine: str
    against: str | None = None
    limit: int | None = None
    max_new_tokens: int = 1280
    threads: int | None = None
    sequences: int | None = None
    judge: str | None = None
    judge_model: str = "judge"

    @property
    def compares(self) -> bool:
        """Whether a task compares the model's logits with those of `against`."""
        return any(task.kind == "kl" for task in self.tasks)

    def check(self) -> None:
        """Raise BadInput for numbers that make no evaluation."""
        if not self.tasks:
            raise BadInput("no tasks; give at least one, e.g. --tasks rag functions")
        judged = any(task.kind == "mt_bench" for task in self.tasks)
        if judged and (self.judge is None or self.against is None):
            raise BadInput(
                "mt_bench compares two models' answers: give --against and --judge (a URL or a "
                "bundle); persona checks role play without a judge"
            )
        if self.compares and (self.against is None or is_bundle(self.against)):
            raise BadInput(
                "kl compares the logits with those of a checkpoint: give it with --against (a "
                "folder, a hub id or a .gguf file; not a bundle)"
            )
        if self.limit is not None and self.limit < 1:
            raise BadInput(f"--limit is {self.limit}, expected 1 or more rows per task")
        if self.sequences is not None:
            check_sequences(self.sequences)
        if self.max_new_tokens < 1:
            raise BadInput(f"--max-new-tokens is {self.max_new_tokens}, expected 1 or more")


def run_evaluation(request: EvaluationRequest, progress: Progress) -> Evaluation:
    """Evaluate the model, and what it is compared with.

    Raises:
        BadInput: a task that cannot run on this model; the message says which. A mistake in the
            rows of any task is found before a model is loaded.
    """
    request.check()
    check_output_folder(request.out, "--out")
    check_tasks(request.tasks, request.limit)
    source = request.against if request.compares else None
    longest = _common_context(request)
    subject, ours = _evaluate(request, request.model, source, longest, progress)
    against: Subject | None = None
    theirs: Sequence[TaskItems | None] = [None] * len(ours)
    if request.against is not None:
        against, theirs = _evaluate(request, request.against, None, longest, progress)
    results = [
        _judged(request, *one, progress=progress)
        for one in zip(request.tasks, ours, theirs, strict=True)
    ]
    return Evaluation(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        edgelm_version=edgelm.__version__,
        command=request.command,
        machine=request.machine,
        subject=subject,
        limit=request.limit,
        max_new_tokens=request.max_new_tokens,
        tasks=tuple(results),
        against=against,
        judge=request.judge or "",
    )


def _evaluate(
    request: EvaluationRequest,
    model: str,
    source: str | None,
    longest: int | None,
    progress: Progress,
) -> tuple[Subject, list[TaskItems]]:
    """A model's figures on all tasks."""
    with ExitStack() as stack:
        opened = open_subject(
            model,
            stack,
            threads=request.threads,
            sequences=request.sequences,
            source=source,
        )
        found = [_items(request, opened, task, longest, progress) for task in request.tasks]
    return opened.record, found


def _items(
    request: EvaluationRequest,
    opened: OpenSubject,
    task: Task,
    longest: int | None,
    progress: Progress,
) -> TaskItems:
    """A task's figures: those of an earlier run that was the same, or new ones."""
    if longest is not None and longest >= opened.backend.context:
        longest = None  # the model's own rows, as without another model
    key = _key(request, opened.record, task, longest)
    path = request.out / _ITEMS / f"{key[:24]}.json"
    stored = _read(path, key)
    if stored is not None:
        progress(f"{task}: resumed, {opened.record.name} was evaluated before")
        return stored
    started = time.perf_counter()

    def show(line: str) -> None:
        progress(f"{opened.record.name}: {line}, {time.perf_counter() - started:.0f} s")

    if task.kind == "mt_bench":
        return _write(path, _dialogs(request, opened, task, key, show, started))
    found = run_task(
        opened.backend,
        task,
        limit=request.limit,
        max_new_tokens=request.max_new_tokens,
        progress=show,
        longest=longest,
    )
    items = TaskItems(
        key,
        time.perf_counter() - started,
        {name: one for name, one in found.items() if isinstance(one, Metric)},
        {name: one for name, one in found.items() if isinstance(one, Score)},
        rows_sha256=_tokens_sha256(request, opened, task, longest),
    )
    return _write(path, items)


def _common_context(request: EvaluationRequest) -> int | None:
    """The shorter context of two models, so that they get the same rows; None for one model."""
    if request.against is None:
        return None
    return min(longest_context(request.model), longest_context(request.against))


def _tokens_sha256(
    request: EvaluationRequest, opened: OpenSubject, task: Task, longest: int | None
) -> str:
    if task.kind != "perplexity":
        return ""
    rows = text_rows(opened.backend, task.name, request.limit, longest)
    return sha256(msgspec.json.encode(rows)).hexdigest()


def _dialogs(
    request: EvaluationRequest,
    opened: OpenSubject,
    task: Task,
    key: str,
    show: Progress,
    started: float,
) -> TaskItems:
    """The answers of a model that a judge will compare."""
    turns = read_turns(task.name, request.limit)
    answers = dialogs(
        opened.backend,
        turns,
        request.max_new_tokens,
        lambda done, of: show(f"{task} {done}/{of}"),
    )
    return TaskItems(key, time.perf_counter() - started, {}, {}, tuple(answers))


def _write(path: Path, items: TaskItems) -> TaskItems:
    with replacing(path) as file:
        file.write(msgspec.json.encode(items))
    return items


def _key(request: EvaluationRequest, subject: Subject, task: Task, longest: int | None) -> str:
    """Names all that a task's figures depend on."""
    parts = [
        edgelm.__version__,
        subject,
        task,
        rows_sha256(task),
        request.limit,
        request.max_new_tokens,
        _weights_sha256(request.against) if task.kind == "kl" else None,
        # By default as many as change nothing.
        request.sequences if subject.kind == "bundle" else None,
        longest if task.kind in _OF_LENGTH else None,
    ]
    return sha256(msgspec.json.encode(parts)).hexdigest()


def _weights_sha256(name: str | None) -> str | None:
    """Of the checkpoint whose logits a task compares with."""
    return None if name is None else open_checkpoint(name).sha256()


def rows_sha256(task: Task) -> str:
    """Of a task's file; "" where it has none."""
    path = Path(task.name)
    return file_sha256(path) if task.name and path.is_file() else ""


def _read(path: Path, key: str) -> TaskItems | None:
    try:
        items = msgspec.json.decode(path.read_bytes(), type=TaskItems)
    except (OSError, msgspec.MsgspecError):
        return None
    return items if items.key == key else None


def _judged(
    request: EvaluationRequest,
    task: Task,
    ours: TaskItems,
    theirs: TaskItems | None,
    *,
    progress: Progress,
) -> TaskResult:
    """A task's result, after the judge has compared dialogs."""
    if task.kind != "mt_bench" or theirs is None or request.judge is None:
        return _result(task, ours, theirs)
    started = time.perf_counter()
    with ExitStack() as stack:
        judge = open_judge(request.judge, request.judge_model, stack)
        found = judge_dialogs(
            judge,
            read_turns(task.name, request.limit),
            ours.dialogs,
            theirs.dialogs,
            lambda done, of: progress(f"judge: {task} {done}/{of}"),
        )
    seconds = ours.seconds + time.perf_counter() - started
    figures = {f"{task} {name}": metric.score() for name, metric in found.items()}
    return TaskResult(str(task), rows_sha256(task), seconds, figures)


def _result(task: Task, ours: TaskItems, theirs: TaskItems | None) -> TaskResult:
    figures = ours.all_scores()
    if theirs is None:
        return TaskResult(str(task), rows_sha256(task), ours.seconds, figures)
    both = {
        name: metric.difference(theirs.metrics[name])
        for name, metric in ours.metrics.items()
        if name in theirs.metrics and _same_items(ours, theirs, name)
    }
    return TaskResult(
        str(task), rows_sha256(task), ours.seconds, figures, theirs.all_scores(), both
    )


def _same_items(ours: TaskItems, theirs: TaskItems, name: str) -> bool:
    """Whether two models' figures are of the same items, so that they can be paired.

    A text has other tokens with another tokenizer, and a perplexity per token is another figure.
    """
    rows = ours.rows_sha256, theirs.rows_sha256
    if all(rows) and rows[0] != rows[1]:
        return False
    return len(ours.metrics[name].sums) == len(theirs.metrics[name].sums)
