"""Evaluation tasks by name, on any backend.

A task is `KIND:FILE`, or `KIND` alone where it has rows of its own:

    perplexity:valid.jsonl          of the next token, documents packed into rows
    kl:valid.jsonl                  KL divergence from a reference model, and top-1 agreement
    last_word:lambada.jsonl         `context`, `target`: accuracy of the last word
    multiple_choice:questions.jsonl `question`, `choices`, `answer` (an index), by likelihood
    ifeval:ifeval.jsonl             verifiable instructions (arXiv 2311.07911)
    lm-eval:TASK                    any task of lm-evaluation-harness
    mt_bench:FILE                   `turns`: dialogs, for a judge (edge-eval)
    rag, rag:FILE                   answers from documents; rag_choice by likelihood
    functions, functions:FILE       function calling; function_choice by likelihood
    needle                          a sentence in a long context, by likelihood
    persona                         role play over several turns
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

from edgelm.compress.data.documents import read_documents
from edgelm.compress.evaluation.backend import MAX_NEW_TOKENS, Backend, no_progress
from edgelm.compress.evaluation.backend import Progress as Count
from edgelm.compress.evaluation.metrics import Metric, perplexity_of
from edgelm.compress.evaluation.rows import task_rows
from edgelm.compress.evaluation.task_names import KINDS, Task
from edgelm.compress.evaluation.tasks.function_calls.functions import (
    FunctionRow,
    function_choice,
    functions,
)
from edgelm.compress.evaluation.tasks.function_calls.functions import (
    read_rows as read_function_rows,
)
from edgelm.compress.evaluation.tasks.function_calls.rows import function_rows
from edgelm.compress.evaluation.tasks.last_word import last_word
from edgelm.compress.evaluation.tasks.multiple_choice import Question, multiple_choice
from edgelm.compress.evaluation.tasks.needle import needle
from edgelm.compress.evaluation.tasks.persona import persona, personas
from edgelm.compress.evaluation.tasks.rag import RagRow, rag, rag_choice
from edgelm.compress.evaluation.tasks.rag import read_row as read_rag_row
from edgelm.compress.evaluation.tasks.rag_rows import rag_rows
from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.compress.evaluation.time_left import TimeLeft
from edgelm.errors import BadInput

_LENGTH = 512  # tokens per row of text
_TEXT_KINDS = ("perplexity", "kl")
_OWN_ROWS = ("lm-eval", "mt_bench")  # read by lm-evaluation-harness, by edge-eval
Figures = Mapping[str, Metric | Score]
"""By name; a Score where the items are not known (lm-evaluation-harness)."""


class EvalContext(NamedTuple):
    """The model to evaluate, and the options of all tasks.

    longest: tokens of the longest row of text or haystack.
    """

    backend: Backend
    limit: int | None
    max_new_tokens: int
    progress: Count
    longest: int | None = None

    @property
    def length(self) -> int:
        """The longest sequence of the model, or less where rows have to be shorter."""
        own = self.backend.context
        return own if self.longest is None else min(own, self.longest)


def run_tasks(
    backend: Backend,
    tasks: Sequence[Task],
    *,
    limit: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Figures]:
    """Figures by task; each is named `TASK FIGURE`, or `TASK` where there is only one.

    Args:
        backend: the model.
        tasks: of `parse_tasks`.
        limit: maximum of rows, passages or questions per task.
        max_new_tokens: limit of a generated answer.
        progress: called with one line.

    Raises:
        BadInput: a file of another form (the line is named), or a limit below 1.
        MissingPackage: a task needs a package that is not installed.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"limit is {limit}, expected 1 or more rows per task")
    check_tasks(tasks, limit)
    return {
        str(task): run_task(
            backend, task, limit=limit, max_new_tokens=max_new_tokens, progress=progress
        )
        for task in tasks
    }


def check_tasks(tasks: Sequence[Task], limit: int | None, context_length: int = 0) -> None:
    """Read the rows of all tasks, so that a mistake in the last is found before the first runs.

    Args:
        tasks: of `parse_tasks`.
        limit: as in `run_tasks`.
        context_length: the longest sequence of the model; 0 if it is not known yet.

    Raises:
        BadInput, UnknownName, MissingPackage: as the task itself would.
    """
    backend = _NoModel() if not context_length else _OnlyContext(context_length)
    context = EvalContext(cast(Backend, backend), limit, MAX_NEW_TOKENS, no_progress)
    for task in tasks:
        if task.kind in _TEXT_KINDS:
            next(iter(read_documents(task.name)), None)
        elif task.kind not in _OWN_ROWS:
            with suppress(_ModelNeeded):
                TASKS[task.kind](context, task.name)


class _ModelNeeded(Exception):
    """A task has read and checked its rows, and asks for the model."""


class _NoModel:
    """A backend for tasks that are only checked."""

    def __getattr__(self, name: str) -> Any:
        raise _ModelNeeded


class _OnlyContext(_NoModel):
    """A backend of which nothing but the length of its context is known."""

    def __init__(self, context: int) -> None:
        self.context = context


def run_task(
    backend: Backend,
    task: Task,
    *,
    limit: int | None,
    max_new_tokens: int,
    progress: Callable[[str], None],
    longest: int | None = None,
) -> Figures:
    """The figures of one task.

    `longest` is the context of another model that gets the same rows, if it is shorter.
    """
    left = TimeLeft()

    def show(done: int, of: int) -> None:
        progress(f"{task} {done}/{of}{left.text(done, of)}")

    context = EvalContext(backend, limit, max_new_tokens, show, longest)
    found = TASKS[task.kind](context, task.name)
    return {f"{task} {name}".strip(): figure for name, figure in found.items()}


def _perplexity(context: EvalContext, name: str) -> Figures:
    rows = _text_rows(context, name)
    return {"": perplexity_of(context.backend.losses(rows, context.progress))}


def _kl(context: EvalContext, name: str) -> Figures:
    return context.backend.agreement(_text_rows(context, name), context.progress)


def _last_word(context: EvalContext, name: str) -> Figures:
    rows = task_rows(name, context.limit, {"context": str, "target": str})
    passages = [(row["context"], row["target"]) for _, row in rows]
    return last_word(context.backend, passages, context.progress)


def _multiple_choice(context: EvalContext, name: str) -> Figures:
    fields = {"question": str, "choices": list, "answer": int}
    questions = []
    for number, (_, row) in enumerate(task_rows(name, context.limit, fields), 1):
        if not 0 <= row["answer"] < len(row["choices"]):
            raise BadInput(
                f"{name}: question {number} has answer {row['answer']}, expected an index of its "
                f"{len(row['choices'])} choices, from 0"
            )
        if not all(isinstance(choice, str) and choice.strip() for choice in row["choices"]):
            raise BadInput(
                f"{name}: question {number} has the choices {row['choices']!r}, expected "
                "non-empty texts"
            )
        questions.append(Question(row["question"], tuple(row["choices"]), row["answer"]))
    return multiple_choice(context.backend, questions, context.progress)


def _ifeval(context: EvalContext, name: str) -> Figures:
    from edgelm.compress.evaluation.tasks.ifeval.ifeval import ifeval

    fields = {"prompt": str, "instruction_id_list": list}
    rows = [row for _, row in task_rows(name, context.limit, fields)]
    return ifeval(
        context.backend, rows, max_new_tokens=context.max_new_tokens, progress=context.progress
    )


def _lm_eval(context: EvalContext, name: str) -> Figures:
    from edgelm.compress.evaluation.tasks.lm_eval import lm_eval_task

    return lm_eval_task(context.backend, name, limit=context.limit)


def _mt_bench(context: EvalContext, name: str) -> Figures:
    raise BadInput(
        "mt_bench compares two models' answers and needs a judge: run it with edge-eval, --against "
        "and --judge; persona checks role play without one"
    )


def _rag(context: EvalContext, name: str) -> Figures:
    return rag(context.backend, _rag_rows(context, name), context.progress)


def _rag_choice(context: EvalContext, name: str) -> Figures:
    return rag_choice(context.backend, _rag_rows(context, name), context.progress)


def _rag_rows(context: EvalContext, name: str) -> list[RagRow]:
    if not name:
        return rag_rows()[: context.limit]
    fields = {"ctxs": list, "messages": list, "answers": list}
    return [read_rag_row(row, where) for where, row in task_rows(name, context.limit, fields)]


def _functions(context: EvalContext, name: str) -> Figures:
    return functions(context.backend, _function_rows(context, name), context.progress)


def _function_choice(context: EvalContext, name: str) -> Figures:
    return function_choice(context.backend, _function_rows(context, name), context.progress)


def _function_rows(context: EvalContext, name: str) -> list[FunctionRow]:
    if not name:
        return function_rows()[: context.limit]
    return read_function_rows(Path(name), context.limit)


def _needle(context: EvalContext, name: str) -> Figures:
    return needle(context.backend, context.limit, context.progress, context.length)


def _persona(context: EvalContext, name: str) -> Figures:
    return persona(context.backend, personas(context.limit), context.progress)


TASKS: dict[str, Callable[[EvalContext, str], Figures]] = {
    "perplexity": _perplexity,
    "kl": _kl,
    "last_word": _last_word,
    "multiple_choice": _multiple_choice,
    "ifeval": _ifeval,
    "lm-eval": _lm_eval,
    "mt_bench": _mt_bench,
    "rag": _rag,
    "rag_choice": _rag_choice,
    "functions": _functions,
    "function_choice": _function_choice,
    "needle": _needle,
    "persona": _persona,
}
assert tuple(TASKS) == KINDS


def _text_rows(context: EvalContext, name: str) -> list[list[int]]:
    return text_rows(context.backend, name, context.limit, context.longest)


def text_rows(
    backend: Backend, name: str, limit: int | None, longest: int | None = None
) -> list[list[int]]:
    """The rows of tokens that `perplexity` and `kl` of a file are measured on.

    Raises:
        BadInput: a file of another form, or too little text for one row.
    """
    length = min(_LENGTH, backend.context, longest or _LENGTH)
    return backend.text_rows(read_documents(name), length, limit)
