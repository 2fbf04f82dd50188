"""Tasks on local files: how good a model is, and how near to its teacher.

A task is `KIND:FILE`:

    perplexity:valid.jsonl    of the next token, documents packed into rows
    kl:valid.jsonl            KL divergence from the teacher and agreement of the likeliest token
    last-word:lambada.jsonl   `context`, `target`: accuracy of the last word
    choice:questions.jsonl    `question`, `choices`, `answer` (an index): accuracy by likelihood
    ifeval:ifeval.jsonl       instructions that a program can check (arXiv 2311.07911)
    lm-eval:TASK              anything of lm-evaluation-harness
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edgelm.compress.data.documents import read_documents
from edgelm.compress.data.jsonl import read_jsonl
from edgelm.compress.data.packing import pack
from edgelm.compress.evaluation.tasks.last_word import last_word
from edgelm.compress.evaluation.tasks.multiple_choice import Question, multiple_choice
from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.compress.evaluation.tasks.text_quality import perplexity, teacher_agreement
from edgelm.compress.model import Model, Tokenizer
from edgelm.errors import BadInput, UnknownName

_LENGTH = 512  # tokens a row of text
Progress = Callable[[str], None]


class Task(NamedTuple):
    """A kind of `KINDS` and the file (or name) that it is about."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{Path(self.name).name}"


class EvalContext(NamedTuple):
    """What is judged."""

    model: Model
    tokenizer: Tokenizer
    teacher: Model | None
    limit: int | None
    progress: Callable[[int, int], None]


def parse_tasks(texts: Sequence[str]) -> list[Task]:
    """Tasks by their names.

    Raises:
        UnknownName: a kind that there is not.
        BadInput: no such file, or two tasks whose figures would have one name.
    """
    tasks = []
    for text in texts:
        kind, separator, name = text.partition(":")
        if kind not in KINDS or not separator or not name:
            known = ", ".join(f"{kind}:..." for kind in KINDS)
            raise UnknownName(f"unknown task {text!r}; known: {known}")
        if kind != "lm-eval" and not Path(name).is_file():
            raise BadInput(f"task {text!r}: no such file: {name}")
        tasks.append(Task(kind, name))
    twice = [name for name, count in Counter(map(str, tasks)).items() if count > 1]
    if twice:
        raise BadInput(f"two tasks are called {twice[0]}; give their files different names")
    return tasks


def evaluate(
    model: Model,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    *,
    teacher: Model | None = None,
    limit: int | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, Score]:
    """Scores by task; a task with several figures has one entry for each.

    Args:
        model: judged in the type it has.
        tokenizer: its own.
        tasks: of `parse_tasks`.
        teacher: for `kl`, which is left out without one.
        limit: rows, passages or questions of each task to take.
        progress: called with one line.

    Raises:
        BadInput: a file of another form; names the line. A limit below 1.
        MissingPackage: a task needs a package that is not installed.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"limit is {limit}, expected 1 or more rows of each task")
    training = model.training
    model.eval()
    scores: dict[str, Score] = {}
    try:
        for task in tasks:

            def show(done: int, of: int, task: Task = task) -> None:
                progress(f"{task} {done}/{of}")

            found = KINDS[task.kind](EvalContext(model, tokenizer, teacher, limit, show), task.name)
            for name, score in found.items():
                scores[f"{task} {name}".strip()] = score
    finally:
        model.train(training)
    return scores


def _perplexity(subject: EvalContext, name: str) -> dict[str, Score]:
    tokens = _rows(subject, name)
    return {"": perplexity(subject.model, tokens, subject.progress)}


def _kl(subject: EvalContext, name: str) -> dict[str, Score]:
    if subject.teacher is None:
        return {}
    tokens = _rows(subject, name)
    return teacher_agreement(subject.model, subject.teacher, tokens, subject.progress)


def _last_word(subject: EvalContext, name: str) -> dict[str, Score]:
    rows = _lines(name, subject.limit, {"context": str, "target": str})
    passages = [(row["context"], row["target"]) for row in rows]
    return last_word(subject.model, subject.tokenizer, passages, subject.progress)


def _choice(subject: EvalContext, name: str) -> dict[str, Score]:
    fields = {"question": str, "choices": list, "answer": int}
    questions = []
    for number, row in enumerate(_lines(name, subject.limit, fields), 1):
        if not 0 <= row["answer"] < len(row["choices"]):
            raise BadInput(
                f"{name}: question {number} has answer {row['answer']}, expected an index of its "
                f"{len(row['choices'])} choices, from 0"
            )
        if not all(isinstance(choice, str) and choice.strip() for choice in row["choices"]):
            raise BadInput(
                f"{name}: question {number} has the choices {row['choices']!r}, expected texts "
                "that are not empty"
            )
        questions.append(Question(row["question"], tuple(row["choices"]), row["answer"]))
    return multiple_choice(subject.model, subject.tokenizer, questions, subject.progress)


def _ifeval(subject: EvalContext, name: str) -> dict[str, Score]:
    from edgelm.compress.evaluation.tasks.ifeval import ifeval

    rows = list(_lines(name, subject.limit, {"prompt": str, "instruction_id_list": list}))
    return ifeval(subject.model, subject.tokenizer, rows, progress=subject.progress)


def _lm_eval(subject: EvalContext, name: str) -> dict[str, Score]:
    from edgelm.compress.evaluation.tasks.lm_eval import lm_eval_task

    return lm_eval_task(subject.model, subject.tokenizer, name, limit=subject.limit)


KINDS: dict[str, Callable[[EvalContext, str], dict[str, Score]]] = {
    "perplexity": _perplexity,
    "kl": _kl,
    "last-word": _last_word,
    "choice": _choice,
    "ifeval": _ifeval,
    "lm-eval": _lm_eval,
}


def _rows(subject: EvalContext, name: str) -> torch.Tensor:
    length = min(_LENGTH, subject.model.config.max_position_embeddings)
    most = None if subject.limit is None else subject.limit * length
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        packed = pack(read_documents(name), subject.tokenizer, length, path, max_tokens=most)
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
