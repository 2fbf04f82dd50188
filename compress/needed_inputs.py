"""The files, tasks and packages that a recipe needs, checked before anything is loaded."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgelm.compress.data.conversations import (
    read_demonstrations,
    read_preferences,
    read_prompts,
)
from edgelm.compress.data.documents import check_documents, data_files
from edgelm.compress.evaluation.run_tasks import check_tasks
from edgelm.compress.evaluation.task_names import parse_tasks
from edgelm.compress.recipe import Recipe
from edgelm.compress.recipe.tables import Align
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput, MissingPackage

_ANSWERED = ("ifeval", "rag", "persona")  # tasks in which the model writes answers
_MOST_BYTES = 1 << 25  # of a file of examples that is read here; it takes a tenth of a second


def check_inputs(recipe: Recipe, context: int) -> None:
    """Raise for names, files, rows and packages that a stage would raise for hours later.

    Args:
        recipe: what is going to run.
        context: the longest sequence of the teacher.

    Raises:
        BadInput: a file is missing, or has rows of another form.
        UnknownName: of a target, an engine or a task.
        MissingPackage: a stage needs a package that is not installed.
    """
    if recipe.shapes or recipe.qad:
        load_profile(recipe.target.name).engine(recipe.target.engine)
    if recipe.evaluate:
        _check_tasks(recipe.evaluate.tasks, recipe.evaluate.limit, context)
    if recipe.importance.layer_task:
        _check_tasks([recipe.importance.layer_task], recipe.importance.layer_samples, context)
    for source in (*recipe.data, *filter(None, [recipe.held_out])):
        check_documents(source)
    _check_held_out(recipe)
    if recipe.synthesize and recipe.synthesize.prompts:
        read_prompts(Path(recipe.synthesize.prompts))
    if recipe.draft and recipe.draft.prompts:
        read_prompts(Path(recipe.draft.prompts))
    if recipe.align:
        _check_examples(recipe.align)
    _check_packages(recipe)


def check_template(recipe: Recipe, tokenizer: Any) -> None:
    """Raise BadInput for stages whose conversations the tokenizer has no template for."""
    if tokenizer.chat_template:
        return
    tasks = recipe.evaluate.tasks if recipe.evaluate else ()
    named = (*tasks, recipe.importance.layer_task)
    answered = [task for task in named if task.partition(":")[0] in _ANSWERED]
    needs = f"the task {answered[0]}" if answered else ""
    if recipe.synthesize and recipe.synthesize.prompts:
        needs = "[synthesize] prompts"
    elif recipe.draft and recipe.draft.prompts:
        needs = "[draft] prompts"
    if needs:
        raise BadInput(
            f"{needs} needs a chat template, which the teacher's tokenizer does not have; remove "
            "it, or use an instruction-tuned model"
        )


def _check_tasks(names: Sequence[str], limit: int | None, context: int) -> None:
    """Names, files, rows, and that a student can run the task."""
    tasks = parse_tasks(names)
    kinds = {task.kind for task in tasks}
    if "mt_bench" in kinds:
        raise BadInput(
            "the task mt_bench needs a judge, which a recipe does not have; run it with edge-eval"
        )
    if "functions" in kinds:
        raise BadInput(
            "the task functions reads calls with the runtime's parser, which a recipe does not "
            "have; use function_choice in the recipe, and edge-eval with --tasks functions"
        )
    check_tasks(tasks, limit, context)


def _check_held_out(recipe: Recipe) -> None:
    """Raise BadInput if the held-out text is a part of the data."""
    if recipe.held_out is None:
        return
    trained = {file.resolve() for source in recipe.data for file in data_files(source)}
    for file in data_files(recipe.held_out):
        if file.resolve() in trained:
            raise BadInput(
                f"held_out: {file} is in `data`, too, so that the figures would be those of text "
                "that was trained on; use another file, or leave out held_out to hold out 2% of "
                "the data"
            )


def _check_examples(align: Align) -> None:
    path = Path(align.data)
    if not path.is_file():
        raise BadInput(f"[align] data: no such file: {path}")
    if path.stat().st_size > _MOST_BYTES:
        return
    # With a chat template, which refuses nothing that is accepted without one.
    if align.method == "dpo":
        read_preferences(path, chat=True)
    else:
        read_demonstrations(path, chat=True)


def _check_packages(recipe: Recipe) -> None:
    tasks = recipe.evaluate.tasks if recipe.evaluate else ()
    named = (*tasks, recipe.importance.layer_task)
    times = recipe.puzzle is not None and recipe.puzzle.costs == "measured"
    needed = {
        "trl": ("[align]", "edgelm[align]", recipe.align is not None),
        "scipy": ("[puzzle]", "edgelm[compress]", recipe.puzzle is not None),
        "onnx": ('[puzzle] costs = "measured"', "edgelm[export]", times),
        "onnxruntime": ('[puzzle] costs = "measured"', "edgelm[cpu]", times),
        "lm_eval": (
            "a task of lm-evaluation-harness",
            "edgelm[evaluation]",
            any(task.startswith("lm-eval:") for task in named),
        ),
    }
    for package, (what, extra, is_needed) in needed.items():
        if is_needed and not find_spec(package):
            raise MissingPackage(f"{what} needs {package}: pip install '{extra}'")
