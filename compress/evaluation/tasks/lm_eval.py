"""Tasks of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

The harness downloads the data of its own tasks from the Hugging Face hub. A custom task needs no
network: a YAML file with `dataset_path: json` and `dataset_kwargs` that name local files, given as
`FOLDER/TASK`, where TASK is the name in the YAML file.
"""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from edgelm.compress.evaluation.backend import Backend
from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.errors import BadInput, MissingPackage, UnknownName
from edgelm.reasons import reason

# The harness's metrics that are parts of a whole.
_SHARES = re.compile(r"(?:^|_)acc(?:_|$)|^exact_match$|^em$|^f1$|^pass@")


def lm_eval_task(backend: Backend, name: str, *, limit: int | None = None) -> dict[str, Score]:
    """Scores of a task by metric: `acc`, or with a filter `exact_match,strict`.

    Scores of a group's tasks are named `task metric`.

    Args:
        backend: the model; a student's may be in another mode (train or eval) afterwards.
        name: a task or group of the harness, or `FOLDER/TASK` of local YAML files.
        limit: items per task.

    Raises:
        MissingPackage: lm_eval is not installed.
        UnknownName: no such task.
        BadInput: the task's data cannot be loaded; a tokenizer without a first token.
    """
    harness = _harness()
    model = backend.harness_model()
    folder, _, task = name.rpartition("/")
    manager = import_module("lm_eval.tasks").TaskManager(
        include_path=folder or None, include_defaults=not folder
    )
    if task not in manager.all_tasks:
        raise UnknownName(_unknown(task, folder, manager.all_tasks))
    try:
        results = harness.simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=manager,
            limit=limit,
            log_samples=False,
            # The process's own random state; few-shot examples have a seed of their own.
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    except OSError as error:  # among them the errors of `datasets` and of the connection
        raise BadInput(f"lm-eval cannot load the data of task {task!r}: {reason(error)}") from None
    return scores_of(results, task)


def scores_of(results: Mapping[str, Any], task: str) -> dict[str, Score]:
    """Scores from the result of `simple_evaluate`; subtasks are prefixed with their name."""
    found = {}
    for name, metrics in results["results"].items():
        upwards = results["higher_is_better"].get(name, {})
        count = results["n-samples"].get(name, {}).get("effective", metrics.get("sample_len", 0))
        for key, value in metrics.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{kind}")
            # A group's figure is over those of its tasks that have the metric.
            items = metrics.get("sample_count", {}).get(key, count)
            shown = metric if kind == "none" else key
            found[shown if name == task else f"{name} {shown}"] = Score(
                float(value),
                float(error) if isinstance(error, int | float) else None,
                int(items),
                "lower" if upwards.get(metric) is False else "higher",
                # Others, such as BLEU and ROUGE, reach from 0 to 100 or have no limit.
                is_share=0 <= value <= 1 and _SHARES.search(metric) is not None,
            )
    return found


def _harness() -> Any:
    try:
        return import_module("lm_eval")
    except ImportError as error:
        raise MissingPackage(
            f"tasks of lm-evaluation-harness need lm-eval ({error}): pip install 'lm-eval>=0.4.10'"
        ) from None


def _unknown(task: str, folder: str, known: list[str]) -> str:
    if folder:
        return f"no task {task!r} in {folder}; its YAML files hold: {', '.join(known) or 'none'}"
    from difflib import get_close_matches

    similar = get_close_matches(task, known)
    hint = f"; did you mean {', '.join(similar)}?" if similar else f"; it has {len(known):,} tasks"
    return f"lm-eval has no task {task!r}{hint}"
