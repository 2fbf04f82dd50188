"""Evaluate a Hugging Face model on tasks (see `tasks_table`), alone or against its teacher."""

from collections.abc import Callable, Sequence

from edgelm.compress.evaluation.backend import Backend
from edgelm.compress.evaluation.backends.shared_backend import SharedBackend
from edgelm.compress.evaluation.backends.student_backend import StudentBackend
from edgelm.compress.evaluation.metrics import Metric
from edgelm.compress.evaluation.run_tasks import run_tasks
from edgelm.compress.evaluation.task_names import Task
from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.compress.model import Model, Tokenizer
from edgelm.compress.run.distributed import world_size

Progress = Callable[[str], None]


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
    found = evaluate_items(model, tokenizer, tasks, teacher=teacher, limit=limit, progress=progress)
    return {name: score_of(one) for name, one in found.items()}


def evaluate_items(
    model: Model,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    *,
    teacher: Model | None = None,
    limit: int | None = None,
    progress: Progress = lambda _: None,
    shared: bool = False,
) -> dict[str, Metric | Score]:
    """As `evaluate`, but item by item, so that two models can be compared.

    Tasks of lm-evaluation-harness have scores only. `shared` divides the items over all processes,
    each of which has to make the same call.
    """
    training = model.training
    model.eval()
    backend: Backend = StudentBackend(model, tokenizer, teacher=teacher)
    if shared and world_size() > 1:
        backend = SharedBackend(backend)
    try:
        found = run_tasks(backend, tasks, limit=limit, progress=progress)
    finally:
        model.train(training)
    return {name: one for figures in found.values() for name, one in figures.items()}


def score_of(figure: Metric | Score) -> Score:
    """A figure with its standard error."""
    return figure if isinstance(figure, Score) else figure.score()
