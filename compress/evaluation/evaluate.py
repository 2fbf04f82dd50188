"""Evaluation tasks on local files: quality of a model, and agreement with its teacher.

A task is `KIND:FILE`:

    perplexity:valid.jsonl          of the next token, documents packed into rows
    kl:valid.jsonl                  KL divergence from the teacher, and top-1 agreement with it
    last_word:lambada.jsonl         `context`, `target`: accuracy of the last word
    multiple_choice:questions.jsonl `question`, `choices`, `answer` (an index), by likelihood
    ifeval:ifeval.jsonl             verifiable instructions (arXiv 2311.07911)
    lm-eval:TASK                    any task of lm-evaluation-harness
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edgelm.compress.data.documents import read_documents
from edgelm.compress.data.jsonl import read_jsonl
from edgelm.compress.data.packing import pack
from edgelm.compress.evaluation.task_names import KINDS, Task
from edgelm.compress.evaluation.tasks.last_word import last_word
from edgelm.compress.evaluation.tasks.multiple_choice import Question, multiple_choice
from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.compress.evaluation.tasks.text_quality import perplexity, teacher_agreement
from edgelm.compress.model import Model, Tokenizer
from edgelm.errors import BadInput

_LENGTH = 512  # tokens per row of text
Progress = Callable[[str], None]


class EvalContext(NamedTuple):
    """The model to evaluate, and the options of all tasks."""

    model: Model
    tokenizer: Tokenizer
    teacher: Model | None
    limit: int | None
    progress: Callable[[int, int], None]


def evaluate(
    model: Model,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    *,
    teacher: Model | None = None,
    limit: int | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, Score]:
    """Scores by task; a task with several figures has an entry for each.

    Args:
        model: evaluated in its own type.
        tokenizer: the model's.
        tasks: of `parse_tasks`.
        teacher: for `kl`, which is skipped without one.
        limit: maximum of rows, passages or questions per task.
        progress: called with one line.

    Raises:
        BadInput: a file of another form (the line is named), or a limit below 1.
        MissingPackage: a task needs a package that is not installed.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"limit is {limit}, expected 1 or more rows per task")
    training = model.training
    model.eval()
    scores: dict[str, Score] = {}
    try:
        for task in tasks:

            def show(done: int, of: int, task: Task = task) -> None:
                progress(f"{task} {done}/{of}")

            found = TASKS[task.kind](EvalContext(model, tokenizer, teacher, limit, show), task.name)
            for name, score in found.items():
                scores[f"{task} {name}".strip()] = score
    finally:
        model.train(training)
    return scores


def _perplexity(context: EvalContext, name: str) -> dict[str, Score]:
    tokens = _rows(context, name)
    return {"": perplexity(context.model, tokens, context.progress)}


def _kl(context: EvalContext, name: str) -> dict[str, Score]:
    if context.teacher is None:
        return {}
    tokens = _rows(context, name)
    return teacher_agreement(context.model, context.teacher, tokens, context.progress)


def _last_word(context: EvalContext, name: str) -> dict[str, Score]:
    rows = _lines(name, context.limit, {"context": str, "target": str})
    passages = [(row["context"], row["target"]) for row in rows]
    return last_word(context.model, context.tokenizer, passages, context.progress)


def _multiple_choice(context: EvalContext, name: str) -> dict[str, Score]:
    fields = {"question": str, "choices": list, "answer": int}
    questions = []
    for number, row in enumerate(_lines(name, context.limit, fields), 1):
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
    return multiple_choice(context.model, context.tokenizer, questions, context.progress)


def _ifeval(context: EvalContext, name: str) -> dict[str, Score]:
    from edgelm.compress.evaluation.tasks.ifeval import ifeval

    rows = list(_lines(name, context.limit, {"prompt": str, "instruction_id_list": list}))
    return ifeval(context.model, context.tokenizer, rows, progress=context.progress)


def _lm_eval(context: EvalContext, name: str) -> dict[str, Score]:
    from edgelm.compress.evaluation.tasks.lm_eval import lm_eval_task

    return lm_eval_task(context.model, context.tokenizer, name, limit=context.limit)


TASKS: dict[str, Callable[[EvalContext, str], dict[str, Score]]] = {
    "perplexity": _perplexity,
    "kl": _kl,
    "last_word": _last_word,
    "multiple_choice": _multiple_choice,
    "ifeval": _ifeval,
    "lm-eval": _lm_eval,
}
assert tuple(TASKS) == KINDS


def _rows(context: EvalContext, name: str) -> torch.Tensor:
    length = min(_LENGTH, context.model.config.max_position_embeddings)
    max_tokens = None if context.limit is None else context.limit * length
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        packed = pack(read_documents(name), context.tokenizer, length, path, max_tokens=max_tokens)
        return packed.batch(range(len(packed)))


def _lines(name: str, limit: int | None, fields: dict[str, type]) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file that have all fields."""
    count = 0
    for where, row in read_jsonl(Path(name)):
        for field, kind in fields.items():
            if not isinstance(row.get(field), kind):
                raise BadInput(
                    f"{where}: expected a field `{field}` ({kind.__name__}) among "
                    f"{', '.join(fields)}; found {', '.join(row)[:200] or 'none'}"
                )
        yield row
        count += 1
        if count == limit:
            return
    if not count:
        raise BadInput(f"{name} holds no rows; expected one JSON object per line")
