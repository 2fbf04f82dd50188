"""The files that edge-compress may replace: those of an older student, and nothing else."""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgelm.checkpoint.student import STUDENT_RECORD
from edgelm.compress.recipe import Recipe
from edgelm.errors import BadInput
from edgelm.files.staging import check_separate
from edgelm.reasons import reason

# Written by versions whose record lists no files.
_KNOWN = re.compile(
    r"(added_tokens|chat_template|config|generation_config|model\.safetensors\.index"
    r"|special_tokens_map|tokenizer|tokenizer_config|vocab)\.json"
    r"|model(-\d{5}-of-\d{5})?\.safetensors"
    r"|chat_template\.jinja|merges\.txt|tokenizer\.model|README\.md|LICENSE[^/]*",
    re.ASCII,
)


class _Written(msgspec.Struct):
    files: tuple[str, ...] = ()


def student_files(folder: Path) -> set[str]:
    """Relative names of a student's files; none without a record.

    Raises:
        BadInput: its record cannot be read.
    """
    path = folder / STUDENT_RECORD
    if not path.is_file():
        return set()
    try:
        files = msgspec.json.decode(path.read_bytes(), type=_Written).files
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} is damaged ({reason(error)}), so it is unknown which files of the folder "
            "belong to the student; remove the folder or choose another one"
        ) from None
    known = (one.name for one in folder.iterdir() if _KNOWN.fullmatch(one.name) and one.is_file())
    return {STUDENT_RECORD, *(files or known)}


def written_files(folder: Path) -> tuple[str, ...]:
    """Relative names of all files below a new student's folder, its record included."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(sorted({STUDENT_RECORD, *found}))


def check_inputs_separate(recipe: Recipe, output: Path, run: Path) -> None:
    """Raise BadInput if an input of the recipe lies in its output, or the reverse."""
    check_separate(output, {"run folder": run})
    for what, name in _inputs(recipe):
        check_separate(output, {what: Path(name)})
        check_separate(run, {what: Path(name)})


def _inputs(recipe: Recipe) -> Iterator[tuple[str, str]]:
    yield "teacher", recipe.teacher
    if recipe.student:
        yield "student", recipe.student
    for name in (*recipe.data, recipe.held_out or ""):
        if name:
            yield "data", name
    if recipe.align:
        yield "alignment data", recipe.align.data
    if recipe.synthesize and recipe.synthesize.prompts:
        yield "prompts", recipe.synthesize.prompts
    if recipe.draft and recipe.draft.prompts:
        yield "prompts", recipe.draft.prompts
    tasks = recipe.evaluate.tasks if recipe.evaluate else ()
    for task in (*tasks, recipe.importance.layer_task):
        if path := task.partition(":")[2]:
            yield "task's file", path
