"""A recipe started again: what is skipped, what runs, and that a kill changes nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edgelm.compress.stages.state as state
from edgelm.checkpoint.student import StudentRecord
from edgelm.compress.pipeline import compress_model
from edgelm.compress.recipe import read_recipe
from tests.compress.recipes import (
    CORRECT,
    DISTILL,
    EVALUATE,
    PRUNE,
    QAD,
    SEARCH,
    TEACHER,
    recipe_of,
    stage,
    weights_of,
    workshop,
    write_recipe,
)
from tests.compress.training import same
from tests.forks import run_forked

USUAL = ("seed = 3\n", CORRECT, PRUNE, DISTILL, QAD, EVALUATE)
EVERYTHING = (
    "max_tokens = 2048\n",
    CORRECT,
    SEARCH,
    DISTILL,
    '[distill.cache]\nkind = "top-k"\nsize = 64\n',
    QAD,
    '[align]\ndata = "chat.jsonl"\n',
    EVALUATE,
)


def run(*arguments: str, processes: int = 1) -> int:
    """Run a recipe elsewhere; the group dies with its launcher."""
    if processes == 1:
        return run_forked("tests.compress.run_recipe", *arguments)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    module = [*launcher, "-m", "tests.compress.run_recipe", *arguments]
    with subprocess.Popen(
        [sys.executable, *module],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as started:
        try:
            return started.wait(timeout=300)
        except subprocess.TimeoutExpired:
            started.send_signal(signal.SIGTERM)  # torchrun ends its processes
            raise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workshop and in it the student of a run that nothing disturbed."""
    folder = workshop(tmp_path_factory.mktemp("restarts"))
    compress_model(recipe_of(folder, *USUAL), folder / "student")
    return folder


def again(folder: Path, *parts: str) -> tuple[StudentRecord, dict[str, str]]:
    """Run in the folder that is already there; what became of each stage."""
    said: list[str] = []
    record = compress_model(recipe_of(folder, *parts), folder / "student", report=said.append)
    skipped = [line.partition(":")[0] for line in said if line.endswith("unchanged, skipped")]
    return record, {one.name: "skipped" if one.name in skipped else "ran" for one in record.stages}


def changed(old: str, new: str) -> tuple[str, ...]:
    parts = tuple(part.replace(old, new) for part in USUAL)
    assert parts != USUAL
    return parts


def test_everything_is_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights_of(folder / "student")
    first, _ = again(folder, *USUAL)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded, so something is computed anew")

    monkeypatch.setattr(state, "load_model", refuse)
    record, found = again(folder, *USUAL)
    assert set(found.values()) == {"skipped"}
    assert record == first
    assert same(weights_of(folder / "student"), before)


@pytest.mark.parametrize(
    ("parts", "runs"),
    [
        (changed("limit = 4", "limit = 2"), {"evaluate"}),
        (changed("tokens = 256", "tokens = 128"), {"qad", "evaluate"}),
        (changed("layers = 3", "layers = 2"), {"prune", "distill", "qad", "evaluate"}),
    ],
    ids=["evaluate", "qad", "shape"],
)
def test_a_change_runs_what_follows(folder: Path, parts: tuple[str, ...], runs: set[str]) -> None:
    again(folder, *USUAL)
    _, found = again(folder, *parts)
    assert {name for name, what in found.items() if what == "ran"} == runs


def test_another_tokenizer_runs_all(folder: Path, tmp_path: Path) -> None:
    """Weights alone do not make a teacher."""
    workshop(tmp_path)
    parts = (PRUNE, DISTILL)
    again(tmp_path, *parts)
    template = tmp_path / "teacher" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<s>", "<s>\n"))
    _, found = again(tmp_path, *parts)
    assert set(found.values()) == {"ran"}


@pytest.mark.parametrize("when", ["distill: step 5/", "qad: step 1/"])
def test_kill_9_and_start_again(folder: Path, tmp_path: Path, when: str) -> None:
    recipe = write_recipe(folder, TEACHER, *USUAL, name="killed")
    student = tmp_path / "student"
    assert run(str(recipe), str(student), "--die-at", when) == -9
    assert not student.exists()
    said: list[str] = []
    record = compress_model(read_recipe(recipe), student, report=said.append)
    assert f"{when.partition(':')[0]}: resuming" in said
    assert same(weights_of(student), weights_of(undisturbed(folder)))
    expected, _ = again(folder, *USUAL)
    assert record.evaluation == expected.evaluation
    for name in ("distill", "qad"):
        assert stage(record, name).figures == stage(expected, name).figures


def undisturbed(folder: Path) -> Path:
    again(folder, *USUAL)
    return folder / "student"


def test_two_processes_make_the_student_of_one(folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe(folder, TEACHER, *EVERYTHING, name="two")
    assert run(str(recipe), str(tmp_path / "two"), processes=2) == 0
    one = compress_model(read_recipe(recipe), tmp_path / "one")
    both = compress_model(read_recipe(recipe), tmp_path / "two")
    assert [each.name for each in both.stages] == [each.name for each in one.stages]
    assert both.shape == one.shape
    assert both.parameters == one.parameters
    ours = weights_of(tmp_path / "two.run" / "distill" / "model")
    for name, tensor in weights_of(tmp_path / "one.run" / "distill" / "model").items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-3)
    for task, figures in one.evaluation.items():
        for who, figure in figures.items():
            assert both.evaluation[task][who].value == pytest.approx(figure.value, rel=0.02)
