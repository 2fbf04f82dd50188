"""From teacher to student folder: run a recipe's stages, evaluate, write the record."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import torch

from edgelm import __version__
from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.checkpoint.student import (
    STUDENT_RECORD,
    Figure,
    StageRecord,
    StudentRecord,
    write_student_record,
)
from edgelm.compress.model import check_has_head, load_model, save_model
from edgelm.compress.needed_inputs import check_template
from edgelm.compress.preflight import preflight
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.recipe import Recipe
from edgelm.compress.recipe.stage_names import check_stage_name
from edgelm.compress.run.distributed import is_main_process, world_size
from edgelm.compress.run.replaceable import check_inputs_separate, student_files, written_files
from edgelm.compress.run.run_folder import Part, PartDone, RunFolder
from edgelm.compress.run.summary import write_summary
from edgelm.compress.stages import State, evaluate_models, measure_acceptance, run_stages
from edgelm.files.staging import check_replaceable, staged_folder

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def compress_model(
    recipe: Recipe,
    output: Path,
    *,
    run: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    report: Callable[[str], None] = lambda _: None,
) -> StudentRecord:
    """Compress a teacher into a student, following a recipe.

    Args:
        recipe: what to do, e.g. `edgelm.compress.recipe.read_recipe(Path("recipe.toml"))`.
        output: the student's folder: a plain Hugging Face checkpoint and `compress.json`.
        run: folder for the stages' results; next to `output` by default. Another call with the
            same folder reruns only what changed, and resumes what was interrupted.
        progress: called often, with one line of progress.
        report: called rarely, with lines for a log.

    Raises:
        BadInput: the recipe, the data or the shape cannot be used.
        DoesNotFit: no shape meets the budget, or the disk is full.
        Diverged: a training diverged; its last checkpoint remains.
    """
    state = _start(recipe, output, run, None, progress, report)
    with state.run.exclusive():
        return _compress(state, output.resolve())


def run_stages_until(
    recipe: Recipe,
    output: Path,
    part: Part,
    *,
    run: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[StageRecord, ...]:
    """Run a part of a recipe; `compress_model` with the same folders later continues after it.

    For stages that one process runs, on a machine with one GPU, before or after a training on many.

    Args:
        recipe: as in `compress_model`.
        output: as in `compress_model`; it is not written.
        part: the last stage to run, and whether earlier ones have to be done already.
        run: as in `compress_model`.
        progress: as in `compress_model`.
        report: as in `compress_model`.

    Returns:
        The records of all stages up to the last one.

    Raises:
        UnknownName: the recipe has no stage of this name.
        BadInput, DoesNotFit, Diverged: as `compress_model`; and BadInput if an earlier stage that
            has to be done is not.
    """
    check_stage_name(recipe, part.last)
    state = _start(recipe, output, run, part, progress, report)
    with state.run.exclusive(), suppress(PartDone):
        run_stages(state)
        _evaluate(state)
    return tuple(state.run.records)


def _start(
    recipe: Recipe,
    output: Path,
    run: Path | None,
    part: Part | None,
    progress: Callable[[str], None],
    report: Callable[[str], None],
) -> State:
    spec = read_spec(recipe.teacher)
    check_has_head(spec)
    preflight(recipe, spec, processes=world_size())
    check_replaceable(output, marker=STUDENT_RECORD, listing=student_files)
    output = output.resolve()
    run = run or output.with_name(f"{output.name}.run")
    check_inputs_separate(recipe, output, run)
    state = State(recipe, RunFolder(run, report, part), progress)
    check_template(recipe, state.tokenizer)
    return state


def _compress(state: State, output: Path) -> StudentRecord:
    recipe, folder = state.recipe, state.run
    run_stages(state)
    assert state.student is not None  # recipe.check requires a stage that produces one
    record = _record(state, _evaluate(state))
    if not is_main_process():
        return record
    dtype = torch.float32 if recipe.qad and not recipe.align else _DTYPES[recipe.dtype]
    with staged_folder(output, marker=STUDENT_RECORD, listing=student_files) as staging:
        model = load_model(state.student)
        save_model(model, state.tokenizer, staging, dtype)
        _copy_card(state, staging)
        record = msgspec.structs.replace(record, files=written_files(staging))
        write_student_record(staging, record)
    write_summary(folder.folder, record, state.candidates)
    return record


def _evaluate(state: State) -> dict[str, dict[str, Figure]]:
    evaluation = evaluate_models(state) if state.recipe.evaluate else {}
    if state.recipe.draft:
        evaluation |= measure_acceptance(state, state.recipe.draft)
    return evaluation


def _record(state: State, evaluation: dict[str, dict[str, Figure]]) -> StudentRecord:

    assert state.student is not None
    spec, source = open_checkpoint(state.student).spec, state.source
    return StudentRecord(
        teacher=source.name if source.revision else source.path.name,
        teacher_sha256=state.source_hash,
        teacher_parameters=source.spec.parameters,
        parameters=spec.parameters,
        teacher_shape=Shape.from_spec(source.spec).sizes,
        shape=Shape.from_spec(spec).sizes,
        stages=tuple(state.run.records),
        evaluation=evaluation,
        edgelm_version=__version__,
    )


def _copy_card(state: State, folder: Path) -> None:
    """The teacher's license goes with its weights."""
    source = state.source.path
    if source.is_dir():
        for file in source.glob("LICENSE*"):
            shutil.copyfile(file, folder / file.name)
    license_line = f"license: {state.source.license}\n" if state.source.license else ""
    name = state.source.name if state.source.revision else state.source.path.name
    (folder / "README.md").write_text(
        f"---\n{license_line}---\n# A student of {name}\n\nPruned and distilled by edgelm "
        f"{__version__}; `{STUDENT_RECORD}` lists the stages, and its figures and the teacher's.\n"
    )
